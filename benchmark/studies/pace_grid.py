#!/usr/bin/env python3
"""pace beside every other policy: workloads x loads x machines x utilities, paired over seeds.

Every cell of seed x profile x workload x load x utility runs all policies on the same tasks in the
simulator, and pace told the true lengths; for the first seed the clairvoyant bound is computed too
(without jitter, else it is no bound). Cells that have a result are not run again; seeds come one
after the other, so that a study that was stopped has whole seeds. Then the summary: in which cells
pace has the most utility, and by how much, against the best other policy of the cell, slice at its
best ratio included; what it has of the bound; every cell that misses.

    python benchmark/studies/pace_grid.py --traces ../shared/traces
    python benchmark/studies/pace_grid.py --report
    python benchmark/studies/pace_grid.py --renew    # pace has changed, the others have not
    python benchmark/studies/pace_grid.py --seeds 100,101,102 --results FOLDER    # not tuned on
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import study

import slicellm
from slicellm.bench.bound import upper_bound
from slicellm.bench.lengths import Trace, read_trace
from slicellm.bench.profiles import Profile, load_profile
from slicellm.bench.tasks import TaskColumns
from slicellm.bench.workload import Workload, load_workload, trace_workload
from slicellm.cli.workload_flags import listed

KEYS = ("seed", "profile", "workload", "load", "utility")
PROFILES = ("rtx4060ti-chatglm2-6b-int4", "demo-cpu", "jetson-orin-llama3-8b-int4")
TRACES = {
    "azure": "azure_conv_2023.csv",
    "arxiv": "arxiv_summarization_lengths.csv",
    "sharegpt": "sharegpt_lengths.csv",
}
WORKLOADS = ("edge", "tiers", *TRACES)
URGENT = ("realtime", "strict")  # the classes whose utility is varied
OURS = ("pace", "pace-told")
OTHERS = (
    *(f"slice:ratio={ratio:g}" for ratio in (1, 0.9, 0.7, 0.5, 0.3)),
    "orca",
    "fastserve",
    "static",
    "sarathi",
    "vllm",
    "vllm:order=priority",
    "slai:variant=spf_dynamic",
    "slai:variant=spf_dynamic_user_priority",
    "edf",
    "priority-pause",
)
BARS = {"utility": 0.95, "attainment": 0.90}  # of the bound
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 0.975 quantile by number of seeds


@functools.cache
def trace(path: Path) -> Trace:
    return read_trace(path)


def make_workload(name: str, utility: float, traces: Path) -> Workload:
    if name == "edge":
        workload = load_workload("edge")
    elif name == "tiers":
        workload = load_workload("tiers", trace(traces / TRACES["sharegpt"]))
    else:
        workload = trace_workload(trace(traces / TRACES[name]))
        if name == "sharegpt":  # tiers has its lengths; here every task is of the strict class
            strict = next(c for c in workload.classes if c.name == "strict")
            workload = replace(workload, classes=(replace(strict, share=1.0),))
    classes = (replace(c, utility=utility) if c.name in URGENT else c for c in workload.classes)
    return replace(workload, classes=tuple(classes))


def run_all(
    args: argparse.Namespace, policies: Sequence[str], *key: Any
) -> tuple[dict[str, list[float]], TaskColumns]:
    """[utility, attainment] of `policies` on the tasks of one cell, and the tasks."""
    seed, profile, workload, load, utility = key
    results, tasks = {}, None
    for policy in policies:
        run = slicellm.simulate(
            make_workload(workload, utility, args.traces) if tasks is None else tasks,
            policy,
            load_profile(profile),
            num_tasks=args.tasks,
            load=load,
            seed=seed,
            event_log=False,
        )
        tasks = run.tasks
        results[policy] = [
            round(run.metrics["utility"], 5),
            round(run.metrics["attainment"], 5),
        ]
    assert tasks is not None
    return results, tasks


def beside_bound(
    valid: bool, limits: Mapping[str, float], tasks: TaskColumns, profile: Profile
) -> dict[str, Any]:
    """The bound of utility and of the number of tasks; of each, what pace gets without jitter, not
    told the lengths and told them, where all utilities are 1 if tasks are counted."""
    steady = replace(profile, jitter=0.0)
    alike = replace(tasks, kinds=tuple(replace(kind, utility=1.0) for kind in tasks.kinds))
    found: dict[str, Any] = {"valid": valid}
    for metric, given in (("utility", tasks), ("attainment", alike)):
        runs = (slicellm.simulate(given, p, steady, event_log=False).metrics for p in OURS)
        found[metric] = [limits[metric], *(metrics[metric] for metrics in runs)]
    return found


def measure(args: argparse.Namespace, *key: Any) -> dict[str, Any]:
    """All policies on the tasks of one cell, and the bound where there is one."""
    seed, profile_name, workload, load, utility = key
    results, tasks = run_all(args, (*OURS, *OTHERS), *key)
    found = None
    if seed == args.seeds[0] and (utility == 10 or workload == "sharegpt") and load in args.bounds:
        profile = load_profile(profile_name)
        bound = upper_bound(
            tasks,
            replace(profile, jitter=0.0).truth(),
            max_rows=profile.max_rows,
            max_step_tokens=profile.max_step_tokens,
        )
        limits = {"utility": bound.utility, "attainment": bound.attainment}
        found = beside_bound(bound.valid, limits, tasks, profile)
    return {"policies": results, "bound": found}


def renew(args: argparse.Namespace) -> None:
    """Runs pace again in every cell that has a result; the others and the bound stay."""
    cells = study.read_cells(args.results)
    for cell in cells:
        key = [cell[k] for k in KEYS]
        results, tasks = run_all(args, OURS, *key)
        cell["policies"].update(results)
        if cell["bound"]:
            limits = {metric: cell["bound"][metric][0] for metric in BARS}
            profile = load_profile(cell["profile"])
            cell["bound"] = beside_bound(cell["bound"]["valid"], limits, tasks, profile)
        print(*key, flush=True)
    lines = (json.dumps(cell, allow_nan=False) + "\n" for cell in cells)
    (args.results / "cells.jsonl").write_text("".join(lines), encoding="utf-8")


def compare(cells: Sequence[study.Cell]) -> dict[str, Any]:
    """pace against the best other policy by mean utility, paired over the cells' seeds."""
    none = [float("nan")]  # of pace-told, in cells from before it
    scores = {p: np.array([c["policies"].get(p, none)[0] for c in cells]) for p in (*OURS, *OTHERS)}
    best = max(OTHERS, key=lambda p: float(scores[p].mean()))
    gain = scores["pace"] - scores[best]
    half = 0.0
    if len(cells) > 1:
        half = STUDENT.get(len(cells), 2.57) * float(gain.std(ddof=1)) / len(cells) ** 0.5
    return {
        "pace": float(scores["pace"].mean()),
        "told": float(scores["pace-told"].mean()),
        "best": best,
        "best_utility": float(scores[best].mean()),
        "gain": float(gain.mean()),
        "half": half,
        "bound": next((c["bound"] for c in cells if c["bound"]), None),
    }


def verdict(result: Mapping[str, Any]) -> str:
    if result["gain"] > 0:
        return "more"
    return "within the interval" if result["gain"] + result["half"] >= 0 else "LESS"


def shares(bound: Mapping[str, Any], metric: str) -> list[float]:
    """Of the bound: pace, and pace told the lengths."""
    limit, *found = bound[metric]
    return [value / limit for value in found]


def bound_lines(compared: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> list[str]:
    """What pace has of the bound, cell by cell, and how many reach the bars."""
    rows, reached = [], dict.fromkeys(BARS, 0)
    for group, result in compared.items():
        bound = result["bound"]
        if not bound or not bound["valid"]:
            continue
        row = [*group[:2], f"{group[2]:g}x"]
        for metric, bar in BARS.items():
            limit, (share, told) = bound[metric][0], shares(bound, metric)
            reached[metric] += share >= bar
            row += [f"{limit:.3f}", f"{share:.3f}" + ("" if share >= bar else " <"), f"{told:.3f}"]
        rows.append(row)
    head = ("bound: utility", "pace has of it", "told", "bound: tasks", "pace has of it", "told")
    return [
        "## Of the bound",
        "",
        "Without jitter, first seed, urgent utility 10; tasks are counted with all utilities 1. In "
        + " and in ".join(
            f"{reached[metric]} of {len(rows)} cells pace has at least {bar:g} of the bound by "
            f"{'utility' if metric == 'utility' else 'number of tasks'}"
            for metric, bar in BARS.items()
        )
        + "; the others are marked <.",
        "",
        *study.table(("machine", "workload", "load", *head), rows),
        "",
    ]


def write_summary(results: Path) -> None:
    cells = study.read_cells(results)
    setup = study.read_setup(results)
    whole = [seed for seed in setup["seeds"] if any(c["seed"] == seed for c in cells)]
    groups = sorted({tuple(c[k] for k in KEYS[1:]) for c in cells}, key=str)
    compared = {
        group: compare(study.chosen(cells, **dict(zip(KEYS[1:], group)))) for group in groups
    }
    verdicts = [verdict(r) for r in compared.values()]
    lines = [
        "# pace beside all other policies",
        "",
        f"Simulated, {setup['tasks']} tasks a run, seeds {whole}; commit {setup['commit']}. "
        "Utility attained, mean over seeds; gain = pace minus the best other policy of the cell, "
        "with its 95 % interval over paired seeds; told = pace told the true lengths.",
        "",
        f"In {verdicts.count('more')} of {len(verdicts)} cells pace has more utility, in "
        f"{verdicts.count('within the interval')} not more but within the interval, in "
        f"{verdicts.count('LESS')} less.",
        "",
    ]
    head = (
        "workload",
        "load",
        "U",
        "pace",
        "told",
        "best other",
        "its utility",
        "gain",
        "pace has",
    )
    for profile in dict.fromkeys(g[0] for g in groups):
        rows = [
            (
                group[1],
                f"{group[2]:g}x",
                f"{group[3]:g}",
                f"{r['pace']:.3f}",
                f"{r['told']:.3f}",
                r["best"],
                f"{r['best_utility']:.3f}",
                f"{r['gain']:+.3f} ± {r['half']:.3f}",
                verdict(r),
            )
            for group, r in compared.items()
            if group[0] == profile
        ]
        lines += [f"## {profile}", "", *study.table(head, rows), ""]
    lines += bound_lines(compared)
    (results / "summary.md").write_text("\n".join(lines), encoding="utf-8")
    print(f"wrote {results / 'summary.md'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--traces", type=Path, default=study.TRACES, help="folder of the trace files")
    add("--tasks", type=int, default=400, help="tasks a run")
    add("--profiles", type=listed(str), default=list(PROFILES))
    add("--workloads", type=listed(str), default=list(WORKLOADS))
    add("--loads", type=listed(float), default=[1.0, 1.5, 2.0, 3.0])
    add("--utilities", type=listed(float), default=[100.0, 10.0, 1.0])
    add("--bounds", type=listed(float), default=[1.0, 2.0], help="loads with a bound")
    add("--seeds", type=listed(int), default=[0, 1, 2, 3, 4])
    add("--results", type=Path, default=study.RESULTS / "pace")
    add("--report", action="store_true", help="only the summary, no runs")
    add("--renew", action="store_true", help="run pace again where there are results, no others")
    args = parser.parse_args()
    if not args.report:
        study.begin(args.results, {"tasks": args.tasks, "seeds": args.seeds})
    if args.renew:
        renew(args)
    elif not args.report:
        grid = (
            key
            for key in itertools.product(
                args.seeds, args.profiles, args.workloads, args.loads, args.utilities
            )
            if key[2] != "sharegpt"
            or key[4] == args.utilities[0]  # one class: utility is no matter
        )
        study.fill(args.results, KEYS, grid, lambda *key: measure(args, *key))
    write_summary(args.results)


if __name__ == "__main__":
    main()
