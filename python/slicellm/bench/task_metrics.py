"""What each task of a run went through, from an event log or from a simulation's columns.

The definitions stand at the top of metrics.py, which computes the metrics of the run from this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slicellm.bench.eventlog import NORMAL, REASONS, EventLog
from slicellm.bench.tasks import Slo, TaskColumns

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Declarations:
    """What the tasks declared, one entry a task; targets in seconds, NaN where not declared."""

    classes: tuple[str, ...]
    class_id: Ints
    utility: Floats
    ttft: Floats
    tpot: Floats
    deadline: Floats

    @staticmethod
    def of(
        names: Sequence[str], utilities: Sequence[float], slos: Sequence[Slo], entry: Ints
    ) -> Declarations:
        """Task i declares entry[i] of the given names, utilities and targets."""
        classes = {name: i for i, name in enumerate(dict.fromkeys(names))}

        def targets(key: str) -> Floats:
            values = [getattr(slo, key) for slo in slos]
            seconds = np.array([np.nan if v is None else v / 1000.0 for v in values])
            return seconds.astype(np.float64)[entry]

        return Declarations(
            tuple(classes),
            np.array([classes[name] for name in names], dtype=np.int64)[entry],
            np.array(utilities, dtype=np.float64)[entry],
            targets("ttft_ms"),
            targets("tpot_ms"),
            targets("deadline_ms"),
        )


@dataclass(frozen=True)
class TaskMetrics:
    """One entry a task; NaN where undefined. Times in seconds. What needs every token (p99_itl and
    the last three fields) is undefined or empty without an event log."""

    declared: Declarations
    arrival: Floats
    tokens: Ints
    ttft: Floats
    tpot: Floats
    e2el: Floats  # last token, whether or not the task finished normally
    max_itl: Floats
    p99_itl: Floats
    max_lateness: Floats  # NaN unless both ttft and tpot are declared and there are tokens
    reason: Texts  # "" = the log ends before the task does
    normal: Bools  # finished normally
    end: Floats  # time of finish from arrival
    met: Bools
    itl: Floats  # pooled, not one a task
    token_task: Ints  # [all tokens] the task of each token, ascending
    token_time: Floats  # [all tokens] s from the start of the run, ascending within a task


def _held(measured: Floats, target: Floats) -> Bools:
    """Whether a target held; one that is not declared (NaN) did."""
    with np.errstate(invalid="ignore"):
        held: Bools = np.isnan(target) | (measured <= target)
    return held


def slo_met(tasks: TaskMetrics, ttft: Floats, tpot: Floats, deadline: Floats) -> Bools:
    """Which tasks finished normally and held the targets, in seconds, NaN where not declared."""
    first = np.where(tasks.tokens > 0, tasks.ttft, tasks.end)
    last = np.where(tasks.tokens > 0, tasks.e2el, tasks.end)
    average = np.where(tasks.tokens > 1, tasks.tpot, 0.0)
    return tasks.normal & _held(first, ttft) & _held(average, tpot) & _held(last, deadline)


def _judged(tasks: TaskMetrics) -> TaskMetrics:
    """The same tasks with `met` by their own targets."""
    declared = tasks.declared
    tasks.met[:] = slo_met(tasks, declared.ttft, declared.tpot, declared.deadline)
    return tasks


def _mean_gap(ttft: Floats, e2el: Floats, tokens: Ints) -> Floats:
    """TPOT; undefined for fewer than two tokens."""
    tpot = np.full(len(tokens), np.nan)
    many = tokens > 1
    tpot[many] = (e2el - ttft)[many] / (tokens[many] - 1)
    return tpot


def _p99_by_task(gap: Floats, task: Ints, counts: Ints) -> Floats:
    """Linearly interpolated p99 of each task's gaps; `task` ascending, counts[i] gaps of task i."""
    order = np.lexsort((gap, task))
    sorted_gap = gap[order]
    out = np.full(len(counts), np.nan)
    some = counts > 0
    start = np.cumsum(counts) - counts
    place = 0.99 * (counts[some] - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, counts[some] - 1)
    below, above = sorted_gap[start[some] + low], sorted_gap[start[some] + high]
    out[some] = below + (above - below) * (place - low)
    return out


def task_metrics(log: EventLog) -> TaskMetrics:
    """The metrics of each task of an event log."""
    n = len(log.tasks)
    declared = Declarations.of(
        [task.class_name for task in log.tasks],
        [task.utility for task in log.tasks],
        [task.slo for task in log.tasks],
        np.arange(n),
    )
    arrival = np.array([task.arrival for task in log.tasks], dtype=np.float64)
    pairs = [(e.task, e.t) for e in log.events if e.event == "token"]
    token_task = np.array([p[0] for p in pairs], dtype=np.int64)
    token_time = np.array([p[1] for p in pairs], dtype=np.float64)
    order = np.lexsort((token_time, token_task))
    token_task, token_time = token_task[order], token_time[order]
    count = np.bincount(token_task, minlength=n).astype(np.int64)
    stop = np.cumsum(count)
    start = stop - count
    some = count > 0

    first, last = np.full(n, np.nan), np.full(n, np.nan)
    first[some], last[some] = token_time[start[some]], token_time[stop[some] - 1]
    ttft, e2el = first - arrival, last - arrival

    same = token_task[1:] == token_task[:-1]
    itl = np.diff(token_time)[same]
    itl_task = token_task[1:][same]
    max_itl = np.full(n, -np.inf)
    np.maximum.at(max_itl, itl_task, itl)
    max_itl[count < 2] = np.nan

    due = (arrival + declared.ttft)[token_task] + (
        np.arange(len(token_task)) - start[token_task]
    ) * declared.tpot[token_task]
    paced = ~np.isnan(due)  # both targets declared
    max_lateness = np.full(n, -np.inf)
    np.maximum.at(max_lateness, token_task[paced], (token_time - due)[paced])
    max_lateness[np.isinf(max_lateness)] = np.nan

    reason = [""] * n
    end = np.full(n, np.nan)
    for event in log.events:
        if event.event == "finish":
            reason[event.task], end[event.task] = str(event.value), event.t - arrival[event.task]
        elif event.event == "reject" and not reason[event.task]:
            reason[event.task], end[event.task] = "rejected", event.t - arrival[event.task]
    reasons = np.array(reason, dtype=np.str_)
    return _judged(
        TaskMetrics(
            declared=declared,
            arrival=arrival,
            tokens=count,
            ttft=ttft,
            tpot=_mean_gap(ttft, e2el, count),
            e2el=e2el,
            max_itl=max_itl,
            p99_itl=_p99_by_task(itl, itl_task, np.maximum(count - 1, 0)),
            max_lateness=max_lateness,
            reason=reasons,
            normal=np.isin(reasons, NORMAL),
            end=end,
            met=np.zeros(n, dtype=np.bool_),
            itl=itl,
            token_task=token_task,
            token_time=token_time,
        )
    )


def column_metrics(tasks: TaskColumns, result: Mapping[str, npt.NDArray[Any]]) -> TaskMetrics:
    """The metrics of each task of a simulation, from the columns of `_core.simulate`."""
    n = len(tasks)
    arrival = np.asarray(result["arrival"], dtype=np.float64)
    tokens = np.asarray(result["tokens"], dtype=np.int64)
    ttft = result["first_token"] - arrival
    e2el = result["last_token"] - arrival
    reasons = np.array(["", *REASONS])[result["reason"]]  # FinishReason's order
    return _judged(
        TaskMetrics(
            declared=Declarations.of(
                [kind.class_name for kind in tasks.kinds],
                [kind.utility for kind in tasks.kinds],
                [kind.slo for kind in tasks.kinds],
                tasks.kind,
            ),
            arrival=arrival,
            tokens=tokens,
            ttft=ttft,
            tpot=_mean_gap(ttft, e2el, tokens),
            e2el=e2el,
            max_itl=np.asarray(result["max_gap"], dtype=np.float64),
            p99_itl=np.full(n, np.nan),
            max_lateness=np.asarray(result["max_lateness"], dtype=np.float64),
            reason=reasons,
            normal=np.isin(reasons, NORMAL),
            end=result["finish"] - arrival,
            met=np.zeros(n, dtype=np.bool_),
            itl=np.empty(0),
            token_task=np.empty(0, dtype=np.int64),
            token_time=np.empty(0),
        )
    )
