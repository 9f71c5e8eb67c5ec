"""Every metric of a run, from its event log and its step records.

Definitions (vLLM's, unless said). All times count from the scheduled arrival.

TTFT        time of first token - arrival
E2EL        last token - arrival
TPOT        (E2EL - TTFT) / (output tokens - 1); undefined for one token or none, counts as met
ITL         every gap between consecutive tokens of a task, pooled; also max and p99 a task
lateness    of token i (from 0): t_i - (arrival + ttft + i * tpot), for tasks that declare both
smooth      no token of the task is late
SLO met     every declared target held (ttft; tpot on the average; deadline on E2EL) and the task
            finished normally (stop or length). A task that finished without a token is judged by
            the time of its finish.
attainment  SLO-met tasks / submitted tasks; whatever ended otherwise counts as missed
utility     utility of SLO-met tasks / utility of submitted tasks
goodput     SLO-met tasks per second of makespan (first arrival to last event)

TTFT, TPOT and ITL are over every task that has the tokens for them, E2EL over tasks that finished
normally. Percentiles interpolate linearly.

`python -m slicellm.bench.metrics LOG` prints the table of an event log again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slicellm.bench.eventlog import NORMAL, EventLog, read
from slicellm.bench.workload import Slo

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
PERCENTILES = (50.0, 99.0)


@dataclass(frozen=True)
class TaskMetrics:
    """One entry a task; NaN where undefined. Times in seconds."""

    arrival: Floats
    tokens: Ints
    ttft: Floats
    tpot: Floats
    e2el: Floats  # last token, whether or not the task finished normally
    max_itl: Floats
    p99_itl: Floats
    max_lateness: Floats  # NaN unless both ttft and tpot are declared and there are tokens
    reason: list[str]  # "" = the log ends before the task does
    normal: Bools  # finished normally
    end: Floats  # time of finish from arrival
    met: Bools
    itl: Floats  # pooled, not one a task
    token_task: Ints  # [all tokens] the task of each token, ascending
    token_time: Floats  # [all tokens] s from the start of the run, ascending within a task


def _targets(log: EventLog, key: str) -> Floats:
    values = [getattr(task.slo, key) for task in log.tasks]
    return np.array([np.nan if v is None else v / 1000.0 for v in values], dtype=np.float64)


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
    """The metrics of each task."""
    n = len(log.tasks)
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
    tpot = np.full(n, np.nan)
    many = count > 1
    tpot[many] = (e2el - ttft)[many] / (count[many] - 1)

    same = token_task[1:] == token_task[:-1]
    itl = np.diff(token_time)[same]
    itl_task = token_task[1:][same]
    max_itl = np.full(n, -np.inf)
    np.maximum.at(max_itl, itl_task, itl)
    max_itl[~many] = np.nan
    p99_itl = _p99_by_task(itl, itl_task, np.maximum(count - 1, 0))

    due = (arrival + _targets(log, "ttft_ms"))[token_task] + (
        np.arange(len(token_task)) - start[token_task]
    ) * _targets(log, "tpot_ms")[token_task]
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
    normal = np.array([r in NORMAL for r in reason], dtype=np.bool_)
    tasks = TaskMetrics(
        arrival,
        count,
        ttft,
        tpot,
        e2el,
        max_itl,
        p99_itl,
        max_lateness,
        reason,
        normal,
        end,
        np.zeros(n, dtype=np.bool_),
        itl,
        token_task,
        token_time,
    )
    met = slo_met(tasks, *(_targets(log, key) for key in ("ttft_ms", "tpot_ms", "deadline_ms")))
    tasks.met[:] = met
    return tasks


def summary(values: Floats, factor: float, percentiles: Sequence[float]) -> dict[str, float | None]:
    """{"mean", "p50", "p99", ...} of the values that are defined, times `factor`; None if none."""
    defined = values[~np.isnan(values)] * factor
    keys = [f"p{p:g}" for p in percentiles]
    if len(defined) == 0:
        return dict.fromkeys(["mean", *keys])
    result: dict[str, float | None] = {"mean": float(defined.mean())}
    result.update(zip(keys, (float(v) for v in np.percentile(defined, percentiles))))
    return result


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0


def step_metrics(steps: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Plan time, share of step time in prefill, and how well steps were predicted. `steps` holds
    the columns of the engine's step records. A step that mixes prefill and decode is divided by its
    tokens."""
    duration = np.asarray(steps["duration"], dtype=np.float64)
    plan = np.asarray(steps["plan_seconds"], dtype=np.float64)
    prefill = np.asarray(steps["prefill_tokens"], dtype=np.float64)
    decode = np.asarray(steps["decode_rows"], dtype=np.float64)
    predicted = np.asarray(steps["predicted"], dtype=np.float64)
    overhead = np.asarray(steps["overhead_seconds"], dtype=np.float64)
    in_prefill = duration * prefill / np.maximum(prefill + decode, 1)
    ran = duration > 0
    error = np.abs(predicted - duration)[ran] / duration[ran]
    total = float(duration.sum())
    plan_us = summary(plan, 1e6, PERCENTILES)
    plan_us["max"] = float(plan.max() * 1e6) if len(plan) else None
    return {
        "plan_us": plan_us,
        "plan_share": _share(float(plan.sum()), total + float(plan.sum() + overhead.sum())),
        "overhead_us": summary(overhead, 1e6, PERCENTILES),
        "prefill_share": _share(float(in_prefill.sum()), total),
        "steps": len(duration),
        "step_ms": summary(duration, 1e3, PERCENTILES),
        "decode_rows_mean": float(decode[decode > 0].mean()) if (decode > 0).any() else 0.0,
        "prediction_error": {
            "relative": summary(error, 1, PERCENTILES),
            "bias": _share(float(predicted.sum()) - total, total),
        },
    }


def _class_metrics(
    log: EventLog, tasks: TaskMetrics, utility: Floats, percentiles: Sequence[float]
) -> dict[str, Any]:
    classes: dict[str, Any] = {}
    names = np.array([task.class_name for task in log.tasks])
    counts = Counter(task.class_name for task in log.tasks)
    for name in sorted(counts, key=lambda name: (-counts[name], name)):  # the largest first
        mine = names == name
        met = mine & tasks.met
        classes[name] = {
            "submitted": int(mine.sum()),
            "met": int(met.sum()),
            "attainment": _share(met.sum(), mine.sum()),
            "utility": _share(utility[met].sum(), utility[mine].sum()),
            "ttft_ms": summary(tasks.ttft[mine], 1e3, percentiles),
            "tpot_ms": summary(tasks.tpot[mine], 1e3, percentiles),
            "e2el_ms": summary(tasks.e2el[mine & tasks.normal], 1e3, percentiles),
        }
    return classes


def compute(
    log: EventLog,
    steps: Mapping[str, npt.NDArray[Any]] | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    goodput: Slo | None = None,
) -> dict[str, Any]:
    """Every metric of one run under one policy, with the result file's keys. `steps` adds what
    comes from step records; `goodput` adds tasks per second that meet those targets instead of
    their own."""
    tasks = task_metrics(log)
    n = len(log.tasks)
    utility = np.array([task.utility for task in log.tasks], dtype=np.float64)
    times = [e.t for e in log.events]
    makespan = max(times) - float(tasks.arrival.min()) if n and times else 0.0
    smooth = ~np.isnan(tasks.max_lateness)
    finish: dict[str, int] = {}
    for reason in tasks.reason:
        finish[reason or "unfinished"] = finish.get(reason or "unfinished", 0) + 1
    points = tuple(dict.fromkeys([*PERCENTILES, *percentiles]))
    itl_ms = summary(tasks.itl, 1e3, points)
    itl_ms["max"] = float(tasks.itl.max() * 1e3) if len(tasks.itl) else None
    result: dict[str, Any] = {
        "attainment": _share(tasks.met.sum(), n),
        "utility": _share(utility[tasks.met].sum(), utility.sum()),
        "goodput": _share(tasks.met.sum(), makespan),
        "goodput_tokens_per_s": _share(tasks.tokens[tasks.met].sum(), makespan),
        "makespan_s": makespan,
        "output_tokens_per_s": _share(tasks.tokens.sum(), makespan),
        "ttft_ms": summary(tasks.ttft, 1e3, points),
        "tpot_ms": summary(tasks.tpot, 1e3, points),
        "itl_ms": itl_ms,
        "e2el_ms": summary(tasks.e2el[tasks.normal], 1e3, points),
        "task_itl_ms": {
            "max": summary(tasks.max_itl, 1e3, points),
            "p99": summary(tasks.p99_itl, 1e3, points),
        },
        "smooth": float((tasks.max_lateness[smooth] <= 0).mean()) if smooth.any() else None,
        "lateness_ms": {
            "max": float(tasks.max_lateness[smooth].max() * 1e3) if smooth.any() else None
        },
        "plan_us": {"p50": None, "p99": None, "max": None},
        "submitted": n,
        "met": int(tasks.met.sum()),
        "output_tokens": int(tasks.tokens.sum()),
        "classes": _class_metrics(log, tasks, utility, points),
        "finish": finish,
        "bound": None,
    }
    if steps is not None:
        result.update(step_metrics(steps))
    if goodput is not None:
        given = [
            np.full(n, np.nan if v is None else v / 1e3)
            for v in (goodput.ttft_ms, goodput.tpot_ms, goodput.deadline_ms)
        ]
        result["goodput_given"] = _share(slo_met(tasks, *given).sum(), makespan)
    return result


def main(arguments: Sequence[str]) -> int:
    """Prints the table of an event log."""
    from slicellm.bench.report import print_results  # here: report builds on this module

    if len(arguments) != 1:
        print("usage: python -m slicellm.bench.metrics LOG", file=sys.stderr)
        return 2
    try:
        runs = read(arguments[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for seed in dict.fromkeys(seed for _, seed in runs):
        print_results(
            {policy: compute(log) for (policy, s), log in runs.items() if s == seed}, f"seed {seed}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
