"""The linear program of the upper bound, whose duals are the prices that the certificate is drawn
from. Solved by HiGHS, an optional dependency.

Over competing tasks i, bins k and step kinds s of d_s decode rows and c_s prefill tokens:

    X_i in [0, 1]   the share of the task that is met     x_ik >= 0   its decode tokens in bin k
    y_ks >= 0       steps of kind s in bin k              z_ik >= 0   the share of its prefill there

    max sum U_i X_i   s.t.
    sum_k x_ik = (n_i - 1) X_i                  sum_k z_ik = X_i
    sum_i x_ik <= sum_s d_s y_ks                sum_i p_i z_ik <= sum_s c_s y_ks
    x_ik <= sum of y_ks with d_s > 0            z_ik <= sum of y_ks with c_s > 0
    sum_{k' <= k} x_ik' <= (n_i - 1) sum_{k' <= k} z_ik'
    time of the y_ks + context and chunk work of x_ik and z_ik <= width of bin k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from slicellm.bench.bound_steps import Floats, Ints, StepTimes
from slicellm.bench.bound_windows import Grid, Windows


@dataclass(frozen=True)
class Prices:
    """What a task pays, in utility, for what it gets in a bin. Any prices >= 0 give a bound."""

    decode: Floats  # [entries] a decode row
    prompt_token: Floats  # [bins] a prefill token
    prompt: Floats  # [entries] the whole prompt, besides its tokens; a part of it costs that share


@dataclass(frozen=True)
class Solution:
    value: float  # of the linear program, as the solver gives it
    share: Floats  # [competing tasks] X_i
    prices: Prices


class _Rows:
    """Collects constraint rows as (row, column, value) triples."""

    def __init__(self) -> None:
        self.parts: list[tuple[Ints, Ints, Floats]] = []
        self.lower: list[Floats] = []
        self.upper: list[Floats] = []
        self.count = 0

    def block(self, size: int, lower: float, upper: Floats | float) -> Ints:
        """Numbers of `size` new rows."""
        self.lower.append(np.full(size, lower))
        self.upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), (size,)))
        self.count += size
        return np.arange(self.count - size, self.count)

    def add(self, rows: Ints, columns: Ints, values: Floats | float) -> None:
        value = np.broadcast_to(np.asarray(values, dtype=np.float64), rows.shape)
        self.parts.append((rows, columns, value))


def solve(
    windows: Windows, grid: Grid, steps: StepTimes, utility: Floats, seconds: float
) -> Solution | str:
    """The program for competing tasks worth `utility` each; or why HiGHS found no solution."""
    import highspy

    inf = highspy.kHighsInf
    chosen = np.flatnonzero(windows.competing)
    n, bins = len(chosen), len(grid.edges) - 1
    prompt, decodes = windows.prompt[chosen], windows.decodes[chosen]
    d_entry, z_entry = np.flatnonzero(grid.decode), np.flatnonzero(grid.prefill)
    kind_d, kind_c, kind_time = steps.columns()
    kinds = len(kind_d)
    used = np.unique(grid.bin)
    place = np.full(bins, -1)
    place[used] = np.arange(len(used))
    at = place[grid.bin]

    x0 = n
    z0 = x0 + len(d_entry)
    y0 = z0 + len(z_entry)
    s0 = y0 + len(used) * kinds
    share = np.arange(n)
    x, z = np.arange(x0, z0), np.arange(z0, y0)
    y = np.arange(y0, s0).reshape(len(used), kinds)
    x_task, z_task = grid.task[d_entry], grid.task[z_entry]
    x_bin, z_bin = at[d_entry], at[z_entry]

    rows = _Rows()
    r = rows.block(n, 0, 0)
    rows.add(r[x_task], x, 1.0)
    rows.add(r, share, -decodes.astype(np.float64))
    r = rows.block(n, 0, 0)
    rows.add(r[z_task], z, 1.0)
    rows.add(r, share, -1.0)

    decoding, filling = np.flatnonzero(kind_d > 0), np.flatnonzero(kind_c > 0)
    row_tokens = rows.block(len(used), -inf, 0)
    rows.add(row_tokens[x_bin], x, 1.0)
    rows.add(np.repeat(row_tokens, kinds), y.ravel(), -np.tile(kind_d, len(used)).astype(float))
    row_prompt = rows.block(len(used), -inf, 0)
    rows.add(row_prompt[z_bin], z, prompt[z_task].astype(np.float64))
    rows.add(np.repeat(row_prompt, kinds), y.ravel(), -np.tile(kind_c, len(used)).astype(float))
    row_x = rows.block(len(x), -inf, 0)
    rows.add(row_x, x, 1.0)
    # Sums of y a bin as columns of their own keep the rows short.
    step_d = np.arange(s0, s0 + len(used))
    step_c = step_d + len(used)
    inventory = step_c[-1] + 1 + np.arange(len(d_entry))
    for total, part in ((step_d, decoding), (step_c, filling)):
        r = rows.block(len(used), 0, 0)
        rows.add(r, total, -1.0)
        rows.add(np.repeat(r, len(part)), y[:, part].ravel(), 1.0)
    rows.add(row_x, step_d[x_bin], -1.0)
    row_z = rows.block(len(z), -inf, 0)
    rows.add(row_z, z, 1.0)
    rows.add(row_z, step_c[z_bin], -1.0)

    # inventory: prefilled so far, in decode tokens, less those decoded; it never falls below 0.
    r = rows.block(len(x), 0, 0)
    rows.add(r, inventory, -1.0)
    rows.add(r, x, -1.0)
    follows = np.flatnonzero(x_task[1:] == x_task[:-1]) + 1
    rows.add(r[follows], inventory[follows - 1], 1.0)
    # A task's entries before its first decode bin are prefilled into that bin.
    last_at = np.full(len(grid.task), -1)
    last_at[d_entry] = np.arange(len(x))
    first_x = np.full(n, -1)
    first_x[x_task[::-1]] = np.arange(len(x))[::-1]
    z_row = np.where(grid.decode[z_entry], last_at[z_entry], first_x[z_task])
    some = z_row >= 0
    rows.add(r[z_row[some]], z[some], decodes[z_task[some]].astype(np.float64))

    row_time = rows.block(len(used), -inf, grid.width[used])
    rows.add(np.repeat(row_time, kinds), y.ravel(), np.tile(kind_time, len(used)))
    mean_context = prompt + (decodes - 1) / 2
    rows.add(row_time[x_bin], x, steps.context_s * mean_context[x_task])
    rows.add(row_time[z_bin], z, (steps.chunk_s * prompt**2 / 2 + steps.row_s)[z_task])

    count = int(inventory[-1]) + 1 if len(inventory) else int(step_c[-1]) + 1
    cost = np.zeros(count)
    scale = float(utility.max())
    cost[:n] = -utility / scale
    upper = np.full(count, inf)
    upper[:n] = 1.0
    result = _run(rows, cost, upper, seconds)
    if isinstance(result, str):
        return result
    value, primal, dual = result
    pay = np.maximum(-dual, 0.0) * scale
    decode, whole = np.zeros(len(grid.task)), np.zeros(len(grid.task))
    decode[d_entry] = pay[row_tokens][x_bin] + pay[row_x]
    whole[z_entry] = pay[row_z]
    token = np.zeros(bins)
    token[used] = pay[row_prompt]
    return Solution(-value * scale, primal[:n], Prices(decode, token, whole))


def _run(
    rows: _Rows, cost: Floats, upper: Floats, seconds: float
) -> tuple[float, Floats, Floats] | str:
    """Objective, columns and row duals of min cost @ v with 0 <= v <= upper."""
    import highspy

    row = np.concatenate([p[0] for p in rows.parts])
    column = np.concatenate([p[1] for p in rows.parts])
    value = np.concatenate([p[2] for p in rows.parts])
    order = np.lexsort((row, column))
    lp: Any = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(cost), rows.count
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, np.zeros(len(cost)), upper
    lp.row_lower_, lp.row_upper_ = np.concatenate(rows.lower), np.concatenate(rows.upper)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.searchsorted(column[order], np.arange(len(cost) + 1))
    lp.a_matrix_.index_, lp.a_matrix_.value_ = row[order], value[order]
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.setOptionValue("solver", "ipm")
    solver.setOptionValue("run_crossover", "off")
    solver.setOptionValue("time_limit", seconds)
    solver.setOptionValue("threads", 1)
    solver.passModel(lp)
    solver.run()
    solution = solver.getSolution()
    if not solution.dual_valid:
        status = solver.modelStatusToString(solver.getModelStatus())
        return f"HiGHS gave no duals ({status})"
    return (
        solver.getInfo().objective_function_value,
        np.array(solution.col_value),
        np.array(solution.row_dual),
    )
