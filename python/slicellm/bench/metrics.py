"""Every metric of a run, from its event log and its step records, or from a simulation's columns.

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

`python -m slicellm.bench LOG` prints the table of an event log again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slicellm.bench.eventlog import EventLog
from slicellm.bench.task_metrics import (
    Floats,
    TaskMetrics,
    column_metrics,
    slo_met,
    task_metrics,
)
from slicellm.bench.tasks import Slo, TaskColumns

PERCENTILES = (50.0, 99.0)


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


def sketch_summary(
    sketch: Mapping[str, Any], factor: float, percentiles: Sequence[float]
) -> dict[str, float | None]:
    """`summary` and the maximum, from a quantile sketch that was asked for `percentiles`."""
    keys = ["mean", *(f"p{p:g}" for p in percentiles), "max"]
    values = [sketch["mean"], *sketch["percentiles"], sketch["max"]]
    return {k: float(v * factor) if sketch["count"] else None for k, v in zip(keys, values)}


def points(percentiles: Sequence[float]) -> tuple[float, ...]:
    """The percentiles that every summary has, and those asked for."""
    return tuple(dict.fromkeys([*PERCENTILES, *percentiles]))


def _class_metrics(tasks: TaskMetrics, percentiles: Sequence[float]) -> dict[str, Any]:
    classes: dict[str, Any] = {}
    utility = tasks.declared.utility
    names = tasks.declared.classes
    counts = np.bincount(tasks.declared.class_id, minlength=len(names))
    for i in sorted(range(len(names)), key=lambda i: (-counts[i], names[i])):  # the largest first
        if counts[i] == 0:
            continue
        mine = tasks.declared.class_id == i
        met = mine & tasks.met
        classes[names[i]] = {
            "submitted": int(mine.sum()),
            "met": int(met.sum()),
            "attainment": _share(met.sum(), mine.sum()),
            "utility": _share(utility[met].sum(), utility[mine].sum()),
            "ttft_ms": summary(tasks.ttft[mine], 1e3, percentiles),
            "tpot_ms": summary(tasks.tpot[mine], 1e3, percentiles),
            "e2el_ms": summary(tasks.e2el[mine & tasks.normal], 1e3, percentiles),
        }
    return classes


def run_metrics(
    tasks: TaskMetrics,
    end: float,
    itl_ms: Mapping[str, float | None],
    steps: Mapping[str, Any],
    percentiles: Sequence[float] = PERCENTILES,
    goodput: Slo | None = None,
) -> dict[str, Any]:
    """Every metric of one run under one policy, with the result file's keys, however the run was
    recorded. `end`: time of the last event; `itl_ms`: summary of the pooled gaps between tokens;
    `steps`: what is known of steps, with the keys of `step_metrics`; `goodput` adds tasks per
    second that meet those targets instead of their own."""
    n = len(tasks.tokens)
    utility = tasks.declared.utility
    makespan = end - float(tasks.arrival.min()) if n else 0.0
    smooth = ~np.isnan(tasks.max_lateness)
    finish = dict(Counter(reason or "unfinished" for reason in tasks.reason.tolist()))
    asked = points(percentiles)
    result: dict[str, Any] = {
        "attainment": _share(tasks.met.sum(), n),
        "utility": _share(utility[tasks.met].sum(), utility.sum()),
        "goodput": _share(tasks.met.sum(), makespan),
        "goodput_tokens_per_s": _share(tasks.tokens[tasks.met].sum(), makespan),
        "makespan_s": makespan,
        "output_tokens_per_s": _share(tasks.tokens.sum(), makespan),
        "ttft_ms": summary(tasks.ttft, 1e3, asked),
        "tpot_ms": summary(tasks.tpot, 1e3, asked),
        "itl_ms": dict(itl_ms),
        "e2el_ms": summary(tasks.e2el[tasks.normal], 1e3, asked),
        "task_itl_ms": {
            "max": summary(tasks.max_itl, 1e3, asked),
            "p99": summary(tasks.p99_itl, 1e3, asked),
        },
        "smooth": float((tasks.max_lateness[smooth] <= 0).mean()) if smooth.any() else None,
        "lateness_ms": {
            "max": float(tasks.max_lateness[smooth].max() * 1e3) if smooth.any() else None
        },
        "plan_us": {"p50": None, "p99": None, "max": None},
        "submitted": n,
        "met": int(tasks.met.sum()),
        "output_tokens": int(tasks.tokens.sum()),
        "classes": _class_metrics(tasks, asked),
        "finish": finish,
        "bound": None,
        **steps,
    }
    if goodput is not None:
        given = [
            np.full(n, np.nan if v is None else v / 1e3)
            for v in (goodput.ttft_ms, goodput.tpot_ms, goodput.deadline_ms)
        ]
        result["goodput_given"] = _share(slo_met(tasks, *given).sum(), makespan)
    return result


def compute(
    log: EventLog,
    steps: Mapping[str, npt.NDArray[Any]] | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    goodput: Slo | None = None,
) -> dict[str, Any]:
    """`run_metrics` of an event log; `steps` adds what comes from step records."""
    tasks = task_metrics(log)
    start = float(tasks.arrival.min()) if len(log.tasks) else 0.0
    end = max((e.t for e in log.events), default=start)
    itl_ms = summary(tasks.itl, 1e3, points(percentiles))
    itl_ms["max"] = float(tasks.itl.max() * 1e3) if len(tasks.itl) else None
    known = {} if steps is None else step_metrics(steps)
    return run_metrics(tasks, end, itl_ms, known, percentiles, goodput)


def compute_columns(
    tasks: TaskColumns,
    result: Mapping[str, Any],
    percentiles: Sequence[float] = PERCENTILES,
    goodput: Slo | None = None,
) -> dict[str, Any]:
    """`run_metrics` of a simulation without an event log: from the columns and quantile sketches of
    `_core.simulate`, which was asked for `points(percentiles)`. What needs every token or every
    step is None."""
    asked = points(percentiles)
    plan = sketch_summary(result["plan_seconds"], 1e6, asked)
    steps = {
        "plan_us": {key: plan[key] for key in ("mean", "p50", "p99", "max")},
        "prefill_share": _share(result["prefill_seconds"], result["busy_seconds"]),
        "steps": result["num_steps"],
    }
    itl_ms = sketch_summary(result["gaps"], 1e3, asked)
    measured = column_metrics(tasks, result)
    return run_metrics(measured, result["end"], itl_ms, steps, percentiles, goodput)
