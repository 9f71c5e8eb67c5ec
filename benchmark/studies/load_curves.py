#!/usr/bin/env python3
"""Attainment and utility over load for every policy, simulated: `edge`, and three traces.

    python benchmark/studies/load_curves.py --traces ../shared/traces
    python benchmark/studies/load_curves.py --report

`edge` runs on the published 4060 Ti table, the traces on the profile fitted to SLAI's data with the
classes of `tiers`, whose own lengths are ShareGPT's. slice is shown at the best of five ratios of
each load.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import study

import slicellm
from slicellm.bench.lengths import read_trace
from slicellm.bench.workload import Workload, load_workload, trace_workload
from slicellm.cli.workload_flags import listed
from slicellm.policies import list_policies

KEYS = ("workload", "policy", "load", "seed")
TRACES = {
    "tiers": "sharegpt_lengths",
    "arxiv": "arxiv_summarization_lengths",
    "azure": "azure_conv_2023",
}
PROFILES = {"edge": "rtx4060ti-chatglm2-6b-int4"}
PROFILE = "rtx6000ada-mistral-7b"  # where PROFILES names none
RATIOS = (1, 0.9, 0.7, 0.5, 0.3)
SLICE = tuple(f"slice:ratio={ratio:g}" for ratio in RATIOS)
# scls is a dispatcher's, for several instances.
OTHERS = tuple(p["name"] for p in list_policies() if p["name"] not in ("slice", "scls"))
METRICS = {"attainment": "tasks met", "utility": "utility met"}


@functools.lru_cache
def workload(traces: Path, name: str) -> Workload:
    """`edge`, or a trace's lengths with the classes of `tiers`."""
    if name == "edge":
        return load_workload(name)
    return trace_workload(read_trace(traces / f"{TRACES[name]}.csv"))


def measure(
    name: str, policy: str, load: float, seed: int, traces: Path, tasks: int
) -> Mapping[str, Any]:
    """Share of tasks and of utility met; Poisson arrivals."""
    run = slicellm.simulate(
        workload(traces, name),
        policy,
        PROFILES.get(name, PROFILE),
        num_tasks=tasks,
        load=load,
        seed=seed,
        event_log=False,
    )
    return {metric: run.metrics[metric] for metric in METRICS}


def write_report(results: Path) -> None:
    """summary.md and one figure a workload."""
    setup, cells = study.read_setup(results), study.read_cells(results)
    loads = sorted({c["load"] for c in cells})
    seeds = ", ".join(map(str, sorted({c["seed"] for c in cells})))
    lines = [
        "# Attainment over load, all policies, simulated",
        "",
        f"Made by `{setup['command']}` at commit {setup['commit']}. {setup['tasks']} tasks a run, "
        f"seeds {seeds}, Poisson arrivals. `edge` on {PROFILES['edge']}, the others on {PROFILE}; "
        "`tiers` has ShareGPT's lengths, arxiv and azure have its classes. "
        "slice: the best of five ratios, load by load and metric by metric, which no operator can "
        "choose in advance. In %.",
        "",
        "## What it shows",
        "",
        study.text_beside(__file__),
    ]
    for name in dict.fromkeys(c["workload"] for c in cells):
        made, axes = study.figure(2, 5.2)
        for panel, (metric, title) in zip(axes, METRICS.items()):
            rows = []
            for i, policy in enumerate(("slice, best ratio", *OTHERS)):
                seen = []
                for load in loads:
                    at = study.chosen(cells, workload=name, load=load)
                    found = [study.values(study.chosen(at, policy=p), metric) for p in SLICE]
                    own = study.values(study.chosen(at, policy=policy), metric)
                    best = max(found, key=sum) if policy.startswith("slice") else own
                    seen.append([100 * value for value in best])
                colour = study.COLOURS[i % len(study.COLOURS)]
                fmt = "o-" if i < len(study.COLOURS) else "s--"
                study.draw(panel, loads, seen, fmt=fmt, color=colour, label=policy)
                rows.append((policy, *(study.spread_text(v, "{:.1f}") for v in seen)))
            panel.set_title(f"{name}: {title} (%)", fontsize=10)
            panel.set_xlabel("load, x saturation")
            lines += ["", f"## {name}: {title}", ""]
            lines += study.table(("policy", *(f"{load:g}x" for load in loads)), rows)
        study.save(made, results / f"{name}.png")
        lines += ["", f"![{name}]({name}.png)"]
    (results / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=Path, default=study.TRACES, help="folder of the traces")
    parser.add_argument("--tasks", type=int, default=500, help="tasks a run (default 500)")
    parser.add_argument("--loads", type=listed(float), default=[0.5, 0.75, 1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--seeds", type=listed(int), default=[0])
    parser.add_argument("--results", type=Path, default=study.RESULTS / "load_curves")
    parser.add_argument("--report", action="store_true", help="only summary and figures, no runs")
    args = parser.parse_args()
    if not args.report:
        study.begin(args.results, {"tasks": args.tasks})
        names = ("edge", *TRACES)
        grid = itertools.product(names, OTHERS + SLICE, args.loads, args.seeds)
        run = functools.partial(measure, traces=args.traces, tasks=args.tasks)
        study.fill(args.results, KEYS, grid, run)
    write_report(args.results)


if __name__ == "__main__":
    main()
