"""The certificate: an upper bound from any prices, by weak duality.

Let every task that is met pay for what it gets: a price for each decode row by bin, for each
prefill token by bin, for its prompt as a whole, and theta_k for each second that its own context
adds to a step in bin k. A step that reaches over several bins is paid by the bins' shares of its
time.

* What steps collect: let theta_k be the most that any step can collect per second in bin k, over
  all numbers of decode rows (the tasks that pay most) and of prefill tokens. Then everything
  collected is at most sum_k theta_k * width_k, because steps run one after another.
* What a task pays is at least the cheapest way f_i through its window, in order: prefill, then the
  tokens one by one.

So sum of U_i over met tasks <= sum_k theta_k width_k + sum over met tasks of (U_i - f_i)
                             <= sum_k theta_k width_k + sum_i max(0, U_i - f_i).

Nothing of this depends on where the prices come from. A token may also come from computing the
whole context again after its KV was dropped; then it pays for prefill tokens instead of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slicellm.bench.bound_lp import Prices
from slicellm.bench.bound_steps import Floats, Ints, StepTimes
from slicellm.bench.bound_windows import Grid, Windows

_PARTS = 8  # of a prompt, to tell its cheap first tokens from the dear last ones
_CHUNK = 1 << 18  # entries of the tasks that are looked at together
_SLACK = 1e-9  # relative, added for rounding


@dataclass(frozen=True)
class Certificate:
    value: float
    second_price: Floats  # [bins] theta_k
    task_price: Floats  # [competing tasks] f_i


def certify(
    windows: Windows, grid: Grid, steps: StepTimes, utility: Floats, prices: Prices
) -> Certificate:
    """An upper bound on the utility of competing tasks worth `utility` each."""
    for values in (prices.decode, prices.prompt_token, prices.prompt):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError("prices have to be finite and not below 0")
    theta, token = _second_prices(windows, grid, steps, prices)
    prices = replace(prices, prompt_token=token)
    pays = _task_prices(windows, grid, steps, prices, theta)
    value = float(theta @ grid.width + np.maximum(utility - pays, 0.0).sum())
    return Certificate(value * (1 + _SLACK), theta, pays)


def _second_prices(
    windows: Windows, grid: Grid, steps: StepTimes, prices: Prices
) -> tuple[Floats, Floats]:
    """theta, the most that a step can collect per second, by bin; and the prices of a prefill
    token, raised as far as theta allows."""
    rows, tokens = steps.base.shape[0] - 1, steps.base.shape[1] - 1
    prompt = windows.prompt[windows.competing]
    with np.errstate(divide="ignore"):
        rate = 1.0 / steps.base  # 0 where there is no such step
    rate[0, 0] = 0.0
    possible = np.isfinite(steps.base)[:, 1:]
    base = np.where(np.isfinite(steps.base), steps.base, 0.0)
    theta, token = np.zeros(len(grid.width)), np.zeros(len(grid.width))
    order = np.argsort(grid.bin, kind="stable")
    stops = np.searchsorted(grid.bin[order], np.arange(len(theta) + 1))
    amounts = np.arange(tokens + 1)
    for k in range(len(theta)):
        here = order[stops[k] : stops[k + 1]]
        if len(here) == 0:
            continue
        pay = np.sort(prices.decode[here])[::-1][:rows]
        by_rows = np.zeros(rows + 1)
        by_rows[1 : len(pay) + 1] = np.cumsum(pay)
        by_rows[len(pay) + 1 :] = by_rows[len(pay)]
        whole = prices.prompt[here] / prompt[grid.task[here]]
        best = np.argsort(-whole, kind="stable")
        size = np.append(0, np.cumsum(prompt[grid.task[here]][best]))
        worth = np.append(0.0, np.cumsum(prices.prompt[here][best]))
        collected = by_rows[:, None] + np.interp(amounts, size, worth)
        theta[k] = ((collected + prices.prompt_token[k] * amounts) * rate).max()
        room = (theta[k] * base - collected)[:, 1:] / amounts[1:]
        token[k] = max(float(room[possible].min()), prices.prompt_token[k])
    return theta, token


def _task_prices(
    windows: Windows, grid: Grid, steps: StepTimes, prices: Prices, theta: Floats
) -> Floats:
    """The cheapest way of each task through its window. Tasks with about as many tokens and bins go
    together, one token of each at a time."""
    prompt, decodes = windows.prompt[windows.competing], windows.decodes[windows.competing]
    bins = np.diff(grid.start)
    pays = np.zeros(len(prompt))
    order = np.lexsort((bins, decodes))
    begin = 0
    while begin < len(order):
        stop = begin + 1
        while stop < len(order) and (stop - begin) * bins[order[begin : stop + 1]].max() < _CHUNK:
            stop += 1
        group = order[begin:stop]
        pays[group] = _cheapest(group, grid, steps, prices, theta, prompt[group], decodes[group])
        begin = stop
    return pays


def _cheapest(
    group: Ints,
    grid: Grid,
    steps: StepTimes,
    prices: Prices,
    theta: Floats,
    prompt: Ints,
    decodes: Ints,
) -> Floats:
    bins = np.diff(grid.start)[group]
    column = np.arange(bins.max())
    inside = column < bins[:, None]
    entry = np.minimum(grid.start[group][:, None] + column, grid.start[group + 1][:, None] - 1)
    second = theta[grid.bin[entry]]
    token = prices.prompt_token[grid.bin[entry]]
    length = prompt[:, None].astype(np.float64)

    # Prefill, in parts; each token's attention work at least that of the first of its part.
    parts = _PARTS if steps.chunk_s > 0 else 1
    may = inside & grid.prefill[entry]
    part = np.where(may, (length * token + prices.prompt[entry]) / parts, np.inf)
    cost = np.zeros(entry.shape)
    for g in range(parts):
        work = steps.chunk_s * length / parts * (length * g / parts) * second
        cost = np.minimum.accumulate(cost, axis=1) + part + work
    cost = cost + steps.row_s * second

    # Decode: `cost` is the least of having token j at the end of that bin.
    may = inside & grid.decode[entry]
    pay = np.where(may, prices.decode[entry], np.inf)
    again = np.where(may, token, np.inf)
    result: Floats = cost.min(axis=1)
    # Tasks are sorted by their number of tokens: those that go on are the last.
    for j in range(1, int(decodes.max()) + 1):
        on = int(np.searchsorted(decodes, j, "left"))
        skip = len(decodes) - len(cost)
        cost = cost[on - skip :]
        before = np.minimum.accumulate(cost, axis=1)
        context = length[on:] + (j - 1)
        row = before + pay[on:] + steps.context_s * second[on:] * context
        dropped = np.minimum.accumulate(before + token[on:] * context, axis=1) + again[on:]
        cost = np.minimum(row, dropped)
        last = decodes[on:] == j
        result[on:][last] = cost[last].min(axis=1)
    return result
