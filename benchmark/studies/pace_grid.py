#!/usr/bin/env python3
"""pace beside every other policy: workloads x loads x machines x utilities, paired over seeds.

Every cell of profile x workload x load x utility x seed runs all policies on the same tasks in the
simulator; for the first seed the clairvoyant bound is computed too (without jitter, else it is no
bound). Cells that have a result are not run again. Then the summary: in which cells pace has the
most utility, and by how much, against the best other policy of the cell, slice at its best ratio
included.

    python benchmark/studies/pace_grid.py --traces ../shared/traces
    python benchmark/studies/pace_grid.py --report
    python benchmark/studies/pace_grid.py --seeds 100,101,102 --results FOLDER    # not tuned on
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import study

import slicellm
from slicellm.bench.bound import upper_bound
from slicellm.bench.lengths import read_trace
from slicellm.bench.profiles import Profile, load_profile
from slicellm.bench.tasks import TaskColumns
from slicellm.bench.workload import Workload, load_workload, trace_workload
from slicellm.cli.benchmark_flags import listed

KEYS = ("profile", "workload", "load", "utility", "seed")
PROFILES = ("rtx4060ti-chatglm2-6b-int4", "demo-cpu", "jetson-orin-llama3-8b-int4")
TRACES = {
    "azure": "azure_conv_2023.csv",
    "arxiv": "arxiv_summarization_lengths.csv",
    "sharegpt": "sharegpt_lengths.csv",
}
WORKLOADS = ("edge", "tiers", *TRACES)
URGENT = ("realtime", "strict")  # the classes whose utility is varied
POLICIES = (
    "pace",
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
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 0.975 quantile by number of seeds


def make_workload(name: str, utility: float, traces: Path) -> Workload:
    if name == "edge":
        workload = load_workload("edge")
    elif name == "tiers":
        workload = load_workload("tiers", read_trace(traces / TRACES["sharegpt"]))
    else:
        workload = trace_workload(read_trace(traces / TRACES[name]))
        if name == "sharegpt":  # tiers has its lengths; here every task is of the strict class
            strict = next(c for c in workload.classes if c.name == "strict")
            workload = replace(workload, classes=(replace(strict, share=1.0),))
    classes = (replace(c, utility=utility) if c.name in URGENT else c for c in workload.classes)
    return replace(workload, classes=tuple(classes))


def bound_of(tasks: TaskColumns, profile: Profile) -> dict[str, Any]:
    """The bound of utility and of the number of tasks, and what pace gets without jitter when it is
    told the utilities and when it is told that all are 1."""
    steady = replace(profile, jitter=0.0)
    bound = upper_bound(
        tasks,
        steady.truth(),
        max_rows=profile.max_rows,
        max_step_tokens=profile.max_step_tokens,
    )
    metrics = slicellm.simulate(tasks, "pace", steady, event_log=False).metrics
    alike = replace(tasks, kinds=tuple(replace(kind, utility=1.0) for kind in tasks.kinds))
    counted = slicellm.simulate(alike, "pace", steady, event_log=False).metrics
    return {
        "valid": bound.valid,
        "utility": bound.utility,
        "attainment": bound.attainment,
        "pace_utility": metrics["utility"],
        "pace_attainment": counted["attainment"],
    }


def measure(args: argparse.Namespace, *key: Any) -> dict[str, Any]:
    """All policies on the tasks of one cell: [utility, attainment] each."""
    profile_name, workload, load, utility, seed = key
    profile = load_profile(profile_name)
    results, tasks = {}, None
    for policy in POLICIES:
        run = slicellm.simulate(
            make_workload(workload, utility, args.traces) if tasks is None else tasks,
            policy,
            profile,
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
    bound = None
    if tasks is not None and (seed, utility) == (args.seeds[0], 10) and load in args.bounds:
        bound = bound_of(tasks, profile)
    return {"policies": results, "bound": bound}


def compare(cells: Sequence[study.Cell]) -> dict[str, Any]:
    """pace against the best other policy by mean utility, paired over the cells' seeds."""
    scores = {p: np.array([c["policies"][p][0] for c in cells]) for p in POLICIES}
    best = max((p for p in POLICIES if p != "pace"), key=lambda p: float(scores[p].mean()))
    gain = scores["pace"] - scores[best]
    half = 0.0
    if len(cells) > 1:
        half = STUDENT.get(len(cells), 2.57) * float(gain.std(ddof=1)) / len(cells) ** 0.5
    return {
        "pace": float(scores["pace"].mean()),
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


def write_summary(results: Path) -> None:
    cells = study.read_cells(results)
    setup = study.read_setup(results)
    groups = sorted({tuple(c[k] for k in KEYS[:4]) for c in cells}, key=str)
    compared = {group: compare(study.chosen(cells, **dict(zip(KEYS, group)))) for group in groups}
    verdicts = [verdict(r) for r in compared.values()]
    lines = [
        "# pace beside all other policies",
        "",
        f"Simulated, {setup['tasks']} tasks a run, seeds {setup['seeds']}; commit "
        f"{setup['commit']}. Utility attained, mean over seeds; gain = pace minus the best other "
        "policy of the cell, with its 95 % interval over paired seeds.",
        "",
        f"In {verdicts.count('more')} of {len(verdicts)} cells pace has more utility, in "
        f"{verdicts.count('within the interval')} not more but within the interval, in "
        f"{verdicts.count('LESS')} less.",
        "",
        "Of bound: what pace gets of the certified clairvoyant bound on the first seed, without "
        "jitter, by utility and, told that all utilities are 1, by number of tasks.",
        "",
    ]
    for profile in dict.fromkeys(g[0] for g in groups):
        lines += [f"## {profile}", ""]
        rows = []
        for group in (g for g in groups if g[0] == profile):
            r, bound = compared[group], compared[group]["bound"]
            share = ""
            if bound and bound["valid"]:
                share = (
                    f"{bound['pace_utility'] / bound['utility']:.3f}, "
                    f"{bound['pace_attainment'] / bound['attainment']:.3f}"
                )
            rows.append(
                (
                    group[1],
                    f"{group[2]:g}x",
                    f"{group[3]:g}",
                    f"{r['pace']:.3f}",
                    r["best"],
                    f"{r['best_utility']:.3f}",
                    f"{r['gain']:+.3f} ± {r['half']:.3f}",
                    verdict(r),
                    share,
                )
            )
        head = ("workload", "load", "U", "pace", "best other", "its utility", "gain", "pace has")
        lines += [*study.table((*head, "of bound"), rows), ""]
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
    args = parser.parse_args()
    if not args.report:
        study.begin(args.results, {"tasks": args.tasks, "seeds": args.seeds})
        grid = itertools.product(
            args.profiles, args.workloads, args.loads, args.utilities, args.seeds
        )
        study.fill(args.results, KEYS, grid, lambda *key: measure(args, *key))
    write_summary(args.results)


if __name__ == "__main__":
    main()
