#!/usr/bin/env python3
"""SLAI's claims (arXiv 2508.01002), simulated: its workload and metrics on its machine's profile.

ShareGPT lengths, Poisson arrivals, TBT targets of 0.1 s for 5 % of the tasks and 0.5 s for the
others, or 0.2 s for all. Sarathi (first come, and shortest prompt first) and SLAI's four variants
over rates. Capacity: the highest rate with a median TTFT below 0.5 s and each class's p99 TBT (of
all gaps between its tasks' tokens) within its target; a straight line between two rates gives the
median TTFT between them. Then sarathi over token budgets.

    python benchmark/studies/slai_claims.py --trace ../shared/traces/sharegpt_lengths.csv
    python benchmark/studies/slai_claims.py --report
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import study

import slicellm
from slicellm.bench.eventlog import EventLog
from slicellm.bench.lengths import read_trace
from slicellm.bench.tasks import Slo
from slicellm.bench.workload import TaskClass, Workload, class_workload
from slicellm.cli.workload_flags import listed

PROFILE = "rtx6000ada-mistral-7b"
KEYS = ("mix", "policy", "rate", "seed")
SARATHI, SHORTEST = "sarathi", "sarathi:order=spf"
VARIANTS = ("fcfs_fixed", "spf_fixed", "spf_dynamic", "spf_dynamic_user_priority")
SLAI = tuple(f"slai:variant={name}" for name in VARIANTS)
POLICIES = (SARATHI, SHORTEST, *SLAI)
MIXES: Mapping[str, tuple[tuple[str, float, float], ...]] = {  # name, share, TBT target in ms
    "strict and relaxed": (("strict", 0.05, 100.0), ("relaxed", 0.95, 500.0)),
    "uniform": (("uniform", 1.0, 200.0),),
}
BUDGET_MIX, BUDGET_RATE = "strict and relaxed", 0.3  # at 1 request/s a budget of 64 is too small
BUDGETS = (64, 128, 256, 384, 512, 768, 1024)
PUBLISHED = {  # token budget: median TTFT, step time (ms)
    64: (724, 22.7),
    128: (386, 24.1),
    256: (239, 28.8),
    384: (244, 37.8),
    512: (212, 46.5),
    768: (205, 57.1),
    1024: (202, 74.7),
}
MAX_TOKENS = 8192  # no cap: no answer of the trace is longer
TTFT_S = 0.5  # the median at which capacity is read


@functools.lru_cache
def workload(trace: Path, mix: str) -> Workload:
    """The trace's lengths with the mix's classes."""
    classes = [
        TaskClass(name, share, 1.0, Slo(tpot_ms=tbt), MAX_TOKENS) for name, share, tbt in MIXES[mix]
    ]
    return class_workload(classes, read_trace(trace))


def kv_in_use(log: EventLog, start: Any) -> tuple[Any, Any]:
    """Tasks with KV and their tokens of KV at the start of each step: what was computed of the
    prompt, then a token a step; 0 after a preemption."""
    held: dict[int, int] = {}
    total = 0
    times, tokens, active = [0.0], [0], [0]
    for event in log.events:
        before = held.get(event.task, 0)
        if event.event in ("finish", "preempt"):
            held.pop(event.task, None)
            total -= before
        elif event.event in ("prefill", "token"):
            more = int(event.value or 0) if event.event == "prefill" else 1
            held[event.task] = before + more
            total += more
        else:
            continue
        times.append(event.t)
        tokens.append(total)
        active.append(len(held))
    place = np.searchsorted(times, start, side="right") - 1
    return np.array(active)[place], np.array(tokens)[place]


def measure(
    mix: str, policy: str, rate: float, seed: int, trace: Path, tasks: int
) -> Mapping[str, Any]:
    """Median TTFT (s), p99 TBT of each class (s), and means over steps."""
    run = slicellm.simulate(
        workload(trace, mix),
        policy,
        PROFILE,
        num_tasks=tasks,
        rate=rate,
        seed=seed,
        slo_scale=1.0,
        event_log=True,
    )
    each = run.task_metrics()
    assert run.log is not None and run.steps is not None
    same = each.token_task[1:] == each.token_task[:-1]
    of_class = each.declared.class_id[each.token_task[1:][same]]
    active, tokens = kv_in_use(run.log, run.steps["start"])
    return {
        "ttft_s": float(np.median(each.ttft)),
        "tbt_s": {
            name: float(np.quantile(each.itl[of_class == i], 0.99))
            for i, name in enumerate(each.declared.classes)
        },
        "step_ms": float(1e3 * run.steps["duration"].mean()),
        # Every hundredth step: tasks that hold KV, KV tokens, decodes, prompt tokens, ms.
        "steps": [
            [int(a), int(t), int(d), int(p), round(1e3 * float(ms), 2)]
            for a, t, d, p, ms in zip(
                active[::100],
                tokens[::100],
                run.steps["decode_rows"][::100],
                run.steps["prefill_tokens"][::100],
                run.steps["duration"][::100],
            )
        ]
        if seed == 0
        else None,
    }


def grid(args: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Token budgets at one rate, then rates for every policy."""
    for budget, seed in itertools.product(BUDGETS, args.seeds):
        yield BUDGET_MIX, f"sarathi:token_budget={budget}", BUDGET_RATE, seed
    yield from itertools.product(MIXES, POLICIES, args.rates, args.seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = study.TRACES / "sharegpt_lengths.csv"
    parser.add_argument("--trace", type=Path, default=default, help="CSV of lengths")
    parser.add_argument("--tasks", type=int, default=1000, help="tasks a run (default 1000)")
    parser.add_argument(
        "--rates",
        type=listed(float),
        default=[0.8, 1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.2],
        help="requests/s",
    )
    parser.add_argument("--seeds", type=listed(int), default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=study.RESULTS / "slai")
    parser.add_argument("--report", action="store_true", help="only summary and figures, no runs")
    args = parser.parse_args()
    if not args.report:
        shared = {"profile": PROFILE, "trace": args.trace.name, "tasks": args.tasks}
        study.begin(
            args.results, {**shared, "mixes": {k: list(map(list, v)) for k, v in MIXES.items()}}
        )
        study.fill(
            args.results,
            KEYS,
            grid(args),
            functools.partial(measure, trace=args.trace, tasks=args.tasks),
        )
    import slai_report

    slai_report.write(args.results)


if __name__ == "__main__":
    main()
