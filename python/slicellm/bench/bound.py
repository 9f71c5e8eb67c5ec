"""The clairvoyant upper bound: what nobody could have beaten on these tasks and this machine, even
knowing all arrivals and output lengths beforehand.

A linear program over time bins (`bound_lp`) gives prices, and a certificate (`bound_prices`) turns
any prices into a number that no schedule of the engine exceeds; that number is the bound. It counts
what the engine counts: a task is met if its first token is in time for its TTFT, its last one for
its deadline and for its TPOT on the average. It holds for steps that mix decode rows with prefill
chunks of several prompts in any way, for pauses, swaps and recomputes. It knows nothing of KV
memory and lets a share of a task be run, so it lies above the best schedule: `bound_exact` and the
study `bound_gap` tell by how much on tiny instances.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slicellm.bench import bound_lp, checks
from slicellm.bench.bound_prices import certify
from slicellm.bench.bound_steps import Bools, Floats, StepTimes, step_times
from slicellm.bench.bound_windows import Grid, Windows, make_grid, windows_of
from slicellm.bench.saturation import Latency
from slicellm.bench.tasks import TaskColumns

_BUDGET, _BUDGET_PER_TASK = 4_000, 8  # (task, bin) pairs; more: a sharper bound, later
_MOST_SECONDS = 300.0  # for one linear program


@dataclass(frozen=True)
class TaskBound:
    """What the linear program makes of each task; arrays with one entry a task, by its number."""

    share: Floats  # [tasks] X_i, how much of the task is met where all are worth their utility
    count_share: Floats  # [tasks] the same where each is worth 1
    windows: Windows


@dataclass(frozen=True)
class Bound:
    """Fractions of what was submitted. If not `valid`, a run may exceed them; `note` says why."""

    utility: float
    attainment: float
    valid: bool
    note: str  # one sentence; "" if there is nothing to say
    lp_utility: float  # the linear program's own values, as the solver gives them: no certificate
    lp_attainment: float
    bins: int
    seconds: float  # to compute it
    tasks: TaskBound | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result file's `bound`."""
        return {key: value for key, value in vars(self).items() if key != "tasks"}

    def compare(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What a run's metrics gain by the bound: it, and the run's shares of it."""
        of = {
            key: metrics[key] / limit if limit > 0 else 1.0
            for key, limit in (("utility", self.utility), ("attainment", self.attainment))
        }
        return {"bound": self.as_dict(), "optimality": of}

    def describe(self) -> str:
        """One line for people."""
        line = (
            f"no policy can exceed {100 * self.utility:.1f} % of utility, "
            f"{100 * self.attainment:.1f} % of tasks ({self.bins} bins, {self.seconds:.1f} s)"
        )
        return f"{line}; {self.note}" if self.note else line


def missing() -> str | None:
    """Why no bound can be computed here, as one sentence."""
    try:
        import highspy  # noqa: F401
    except ImportError:
        return "highspy is not installed (pip install 'slicellm[bound]')"
    return None


def upper_bound(
    tasks: TaskColumns,
    latency: Latency,
    *,
    max_rows: int = 64,
    max_step_tokens: int = 2048,
    caveat: str = "",
    closed_loop: bool = False,
    budget: int | None = None,
    details: bool = False,
) -> Bound:
    """The bound for an engine with these limits on a machine whose steps take what `latency`
    predicts.

    Args:
        tasks: with true output lengths.
        caveat: why steps may take less than `latency` says, if they may: then a lucky run can
            exceed the bound, and it is not valid.
        closed_loop: arrivals depend on the schedule, so that there is none to bound.
        budget: pairs of tasks and bins; the bins become as fine as it allows. None: as many as
            take seconds for up to 1,000 tasks.
        details: also returns what the linear program makes of each task.

    Raises InvalidArgument without highspy.
    """
    problem = missing()
    if problem is not None:
        raise checks.invalid("--bound", "on", problem)
    begin = time.perf_counter()
    why = ""
    if closed_loop:
        why = "in a closed loop arrivals depend on the schedule"
    elif len(tasks) == 0 or tasks.output_tokens.min() < 1:
        why = "not every task has a true output length"
    steps = why or step_times(latency, max_rows, max_step_tokens)
    if isinstance(steps, str):
        return Bound(1.0, 1.0, False, f"not valid: {steps}", 1.0, 1.0, 0, 0.0)

    windows = windows_of(tasks, steps)
    pairs = _BUDGET + _BUDGET_PER_TASK * len(tasks) if budget is None else budget
    grid = make_grid(windows, steps, pairs) if windows.competing.any() else None
    notes = []
    if caveat:
        notes.append(f"not valid: {caveat}, so that a lucky run may exceed it")
    if windows.free.any():
        notes.append(f"{windows.free.sum()} tasks without TTFT and deadline count as met")
    count = _objective(windows, grid, steps, np.ones(len(tasks)))
    weighted = count
    if np.ptp(windows.utility) > 0:
        weighted = _objective(windows, grid, steps, windows.utility)
    notes.extend(dict.fromkeys(o.note for o in (weighted, count) if o.note))
    return Bound(
        utility=weighted.bound,
        attainment=count.bound,
        valid=not caveat,
        note="; ".join(notes),
        lp_utility=weighted.program,
        lp_attainment=count.program,
        bins=0 if grid is None else len(grid.width),
        seconds=time.perf_counter() - begin,
        tasks=TaskBound(weighted.share, count.share, windows) if details else None,
    )


@dataclass(frozen=True)
class _Objective:
    bound: float  # fractions of the sum of all utilities
    program: float
    share: Floats
    note: str


def _objective(
    windows: Windows, grid: Grid | None, steps: StepTimes, utility: Floats
) -> _Objective:
    competing: Bools = windows.competing
    share = windows.free.astype(np.float64)
    free, total = float(utility[windows.free].sum()), float(utility.sum())
    worth = utility[competing]
    value = program = float(worth.sum())
    note = ""
    if grid is not None and value > 0:
        solved = bound_lp.solve(windows, grid, steps, worth, _MOST_SECONDS)
        if isinstance(solved, str):
            share[competing] = 1.0
            note = f"{solved}: every task that could be met alone is counted"
        else:
            certificate = certify(windows, grid, steps, worth, solved.prices)
            value, program = min(value, certificate.value), solved.value
            share[competing] = np.clip(solved.share, 0.0, 1.0)
    if total <= 0:
        return _Objective(0.0, 0.0, share, note)
    return _Objective((free + value) / total, (free + program) / total, share, note)
