"""The linear program of the upper bound, whose duals are the prices that the certificate is drawn
from. Solved by HiGHS, an optional dependency.

Over competing tasks i, bins k, step kinds s of d_s decode rows and c_s prefill tokens, and groups g
of step kinds with about as many decode rows:

    X_i in [0, 1]   the share of the task that is met
    y_ks >= 0       steps of kind s in bin k
    x_ikg >= 0      the task's decode tokens in bin k by steps of group g
    z_ik >= 0       the share of its prefill in bin k

    max sum U_i X_i   s.t.
    sum_kg x_ikg = (n_i - 1) X_i                        sum_k z_ik = X_i
    sum_i x_ikg <= sum of d_s y_ks with s in g          sum_i p_i z_ik <= sum_s c_s y_ks
    x_ikg <= sum of y_ks with s in g                    z_ik <= sum of y_ks with c_s > 0
    time of the y_ks + context and chunk work of x_ikg and z_ik <= width of bin k

The groups tell that a step of few rows serves few tasks: without them full steps and steps of one
row could be mixed as if every task were in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from slicellm.bench.bound_steps import Floats, Ints, StepTimes
from slicellm.bench.bound_windows import Grid, Windows

_TOLERANCE = 1e-4  # of the duals, whose rest the certificate makes good
_GROUPS = (4, 8)  # decode rows at which a new group begins


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


class _Columns:
    """Numbers columns."""

    def __init__(self) -> None:
        self.count = 0

    def block(self, *shape: int) -> Ints:
        """Numbers of new columns, in that shape."""
        start, self.count = self.count, self.count + int(np.prod(shape))
        return np.arange(start, self.count).reshape(shape)


class _Rows(_Columns):
    """Numbers rows and collects their coefficients as (row, column, value) triples."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[Ints, Ints, Floats]] = []
        self.lower: list[Floats] = []
        self.upper: list[Floats] = []

    def limited(self, lower: float, upper: Floats | float, *shape: int) -> Ints:
        """Numbers of new rows with these limits, in that shape."""
        rows = self.block(*shape)
        self.lower.append(np.full(rows.size, lower))
        self.upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), shape).ravel())
        return rows

    def add(self, rows: Ints, columns: Ints, values: Floats | Ints | float) -> None:
        """Coefficients at all pairs of `rows` and `columns`; everything is broadcast together."""
        value = np.asarray(values, dtype=np.float64)
        r, c, v = np.broadcast_arrays(rows, columns, value)
        self.parts.append((r.ravel(), c.ravel(), v.ravel()))


def solve(
    windows: Windows, grid: Grid, steps: StepTimes, utility: Floats, seconds: float
) -> Solution | str:
    """The program for competing tasks worth `utility` each; or why HiGHS found no solution."""
    import highspy

    inf = highspy.kHighsInf
    chosen = np.flatnonzero(windows.competing)
    n = len(chosen)
    prompt, decodes = windows.prompt[chosen], windows.decodes[chosen]
    kind_d, kind_c, kind_time = steps.columns()
    decoding, filling = np.flatnonzero(kind_d > 0), np.flatnonzero(kind_c > 0)
    group = np.unique(np.searchsorted(_GROUPS, kind_d[decoding], "right"), return_inverse=True)[1]
    groups = int(group.max()) + 1
    used, at = np.unique(grid.bin, return_inverse=True)
    bins, kinds = len(used), len(kind_d)
    d_entry, z_entry = np.flatnonzero(grid.decode), np.flatnonzero(grid.prefill)
    x_task, z_task, x_bin, z_bin = grid.task[d_entry], grid.task[z_entry], at[d_entry], at[z_entry]

    columns = _Columns()
    share = columns.block(n)
    x = columns.block(len(d_entry), groups)
    z = columns.block(len(z_entry))
    y = columns.block(bins, kinds)
    # How many steps of a group, and with prefill, there are: columns that keep the rows short.
    in_group = columns.block(bins, groups)
    with_prefill = columns.block(bins)

    rows = _Rows()
    r = rows.limited(0, 0, n)
    rows.add(r[x_task, None], x, 1.0)
    rows.add(r, share, -decodes)
    r = rows.limited(0, 0, n)
    rows.add(r[z_task], z, 1.0)
    rows.add(r, share, -1.0)
    r = rows.limited(0, 0, bins, groups)
    rows.add(r, in_group, -1.0)
    rows.add(r[:, group], y[:, decoding], 1.0)
    r = rows.limited(0, 0, bins)
    rows.add(r, with_prefill, -1.0)
    rows.add(r[:, None], y[:, filling], 1.0)

    tokens = rows.limited(-inf, 0, bins, groups)
    rows.add(tokens[x_bin], x, 1.0)
    rows.add(tokens[:, group], y[:, decoding], -kind_d[decoding])
    once = rows.limited(-inf, 0, len(d_entry), groups)
    rows.add(once, x, 1.0)
    rows.add(once, in_group[x_bin], -1.0)
    prompts = rows.limited(-inf, 0, bins)
    rows.add(prompts[z_bin], z, prompt[z_task])
    rows.add(prompts[:, None], y, -kind_c)
    whole = rows.limited(-inf, 0, len(z_entry))
    rows.add(whole, z, 1.0)
    rows.add(whole, with_prefill[z_bin], -1.0)

    time = rows.limited(-inf, grid.width[used], bins)
    rows.add(time[:, None], y, kind_time)
    context = steps.context_s * (prompt + (decodes - 1) / 2)
    rows.add(time[x_bin, None], x, context[x_task, None])
    rows.add(time[z_bin], z, (steps.chunk_s * prompt**2 / 2 + steps.row_s)[z_task])

    cost, upper = np.zeros(columns.count), np.full(columns.count, inf)
    scale = float(utility.max())
    cost[share], upper[share] = -utility / scale, 1.0
    result = _run(rows, cost, upper, seconds)
    if isinstance(result, str):
        return result
    value, primal, dual = result
    pay = np.maximum(-dual, 0.0) * scale  # clipped: a row <= has a dual <= 0 where cost is least
    decode, whole_prompt = np.zeros(len(grid.task)), np.zeros(len(grid.task))
    decode[d_entry] = (pay[tokens][x_bin] + pay[once]).min(axis=1)
    whole_prompt[z_entry] = pay[whole]
    prompt_token = np.zeros(len(grid.edges) - 1)
    prompt_token[used] = pay[prompts]
    return Solution(-value * scale, primal[share], Prices(decode, prompt_token, whole_prompt))


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
    solver.setOptionValue("ipm_optimality_tolerance", _TOLERANCE)
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
