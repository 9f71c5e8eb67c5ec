#!/usr/bin/env python3
"""SLICE's headline setting (arXiv 2510.18544), simulated: slice at ten ratios, orca and fastserve
on `edge` and the published 4060 Ti table, from half to four times saturation.

    python benchmark/studies/slice_headline.py
    python benchmark/studies/slice_headline.py --report
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
from slicellm.bench.workload import load_workload
from slicellm.cli.workload_flags import listed

PROFILE = "rtx4060ti-chatglm2-6b-int4"
KEYS = ("load", "seed", "policy")
SWEPT = ("slice:ratio=1", *(f"slice:ratio=0.{k}" for k in (9, 7, 5, 3)))  # SLICE's sweep
FINER = tuple(f"slice:ratio=0.{k}" for k in (8, 6, 4, 2, 1))  # only for what a ratio allows at best
OTHERS = ("orca", "fastserve")
CLASSES = ("realtime", "voice", "qa")
LOADS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
OVERLOADS = (1.5, 2.0, 3.0, 4.0)
ATTAINMENTS = ("attainment", *(f"{c}_attainment" for c in CLASSES))
TIMES = ("e2el_s", *(f"{c}_e2el_s" for c in CLASSES))


def measure(load: float, seed: int, policy: str, tasks: int) -> Mapping[str, Any]:
    """Shares of tasks and of utility, mean completion times (s; a task runs to its end)."""
    run = slicellm.simulate(
        load_workload("edge"),
        policy,
        PROFILE,
        num_tasks=tasks,
        load=load,
        seed=seed,
        event_log=False,
    )
    found = {key: run.metrics[key] for key in ("attainment", "utility")}
    found["e2el_s"] = run.metrics["e2el_ms"]["mean"] / 1e3
    for name in CLASSES:
        of_class = run.metrics["classes"][name]
        found[f"{name}_attainment"] = of_class["attainment"]
        found[f"{name}_e2el_s"] = of_class["e2el_ms"]["mean"] / 1e3
    return found


def best(cells: list[dict[str, Any]], load: float, policies: tuple[str, ...], metric: str) -> str:
    """The policy with the highest mean of a metric."""
    return max(policies, key=lambda p: study.mean(study.chosen(cells, load=load, policy=p), metric))


def tables(cells: list[dict[str, Any]]) -> list[str]:
    """One table a load."""
    lines: list[str] = []
    for load in sorted({c["load"] for c in cells}):
        rows = []
        for policy in (*SWEPT, *OTHERS):
            found = study.chosen(cells, load=load, policy=policy)
            shares = (
                study.spread_text([100 * v for v in study.values(found, metric)], "{:.1f}")
                for metric in (*ATTAINMENTS, "utility")
            )
            times = (study.spread_text(study.values(found, metric)) for metric in TIMES)
            rows.append((policy, *shares, *times))
        head = ["policy", "tasks %", *(f"{c} %" for c in CLASSES), "utility %", "completion s"]
        head += [f"{c} s" for c in CLASSES]
        lines += ["", f"## {load:g}x saturation", "", *study.table(head, rows)]
    return lines


def comparison(cells: list[dict[str, Any]]) -> list[str]:
    """At each load: the best ratio of the sweep beside the best of ten, orca and fastserve."""
    rows = []
    for load in sorted({c["load"] for c in cells}):
        ours = best(cells, load, SWEPT, "attainment")
        ideal = best(cells, load, SWEPT + FINER, "realtime_attainment")
        swept = best(cells, load, SWEPT, "realtime_attainment")
        mean = {
            p: {
                m: study.mean(study.chosen(cells, load=load, policy=p), m)
                for m in (*ATTAINMENTS, *TIMES)
            }
            for p in (*SWEPT, *FINER, *OTHERS)
        }
        row = [f"{load:g}x", ours]
        for policy, metric in (
            (swept, "realtime_attainment"),
            (SWEPT[0], "realtime_attainment"),
            (ideal, "realtime_attainment"),
        ):
            row.append(f"{100 * mean[policy][metric]:.1f} ({policy.partition('=')[2]})")
        for other in OTHERS:
            row.append(f"{mean[ours]['attainment'] / mean[other]['attainment']:.3g}x")
        for metric in ("e2el_s", "realtime_e2el_s"):
            for other in OTHERS:
                row.append(f"{mean[other][metric] / mean[ours][metric]:.3g}x")
        rows.append(row)
    head = (
        "load",
        "slice, best by tasks met",
        "real-time %, best swept ratio",
        "ratio 1",
        "best of ten ratios",
        "tasks met / orca's",
        "/ fastserve's",
        "orca's completion time / slice's",
        "fastserve's",
        "real-time: orca's / slice's",
        "fastserve's",
    )
    return study.table(head, rows)


def claims(cells: list[dict[str, Any]]) -> list[str]:
    """What the paper claims beside what these cells say."""

    def at(load: float, policy: str, metric: str) -> float:
        return study.mean(study.chosen(cells, load=load, policy=policy), metric)

    def highest(load: float, policies: tuple[str, ...]) -> float:
        metric = "realtime_attainment"
        return at(load, best(cells, load, policies, metric), metric)

    short = {x: highest(x, SWEPT + FINER) - highest(x, SWEPT) for x in OVERLOADS}
    low = [load for load in OVERLOADS if at(load, "orca", "attainment") < 0.05]
    times = {
        load: at(load, best(cells, load, SWEPT, "attainment"), "attainment")
        / at(load, "orca", "attainment")
        for load in low
    }
    faster = {
        load: tuple(
            at(load, "orca", metric) / at(load, best(cells, load, SWEPT, "attainment"), metric)
            for metric in ("e2el_s", "realtime_e2el_s")
        )
        for load in LOADS
    }
    listed_times = ", ".join(f"{v:.3g}x at {k:g}x" for k, v in times.items())
    overall = ", ".join(f"{v[0]:.2f}x at {k:g}x" for k, v in faster.items())
    realtime = ", ".join(f"{v[1]:.3g}x at {k:g}x" for k, v in faster.items())
    near = {load: highest(load, SWEPT) for load in OVERLOADS}
    return study.claims(
        [
            (
                "slice's real-time attainment at overload within 0.05 of the best of ten ratios",
                "-",
                ", ".join(f"{v:.3f} under at {k:g}x" for k, v in short.items()),
                max(short.values()) <= 0.05,
            ),
            (
                "at least 20 times orca's attainment where orca is under 0.05",
                "up to 35x",
                listed_times,
                min(times.values()) >= 20,
            ),
            (
                "real-time attainment near 1 at overload",
                "near 100 %",
                ", ".join(f"{v:.3f} at {k:g}x" for k, v in near.items()),
                min(near.values()) > 0.95,
            ),
            (
                "completion time 3.4 times better than orca's, all tasks",
                "3.4x",
                overall,
                max(v[0] for v in faster.values()) >= 3.4,
            ),
            (
                "the same, real-time tasks",
                "-",
                realtime,
                max(v[1] for v in faster.values()) >= 3.4,
            ),
        ]
    )


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Attainment over load; one line a policy."""
    made, axes = study.figure(4, 3.5)
    blues = ("#08306b", "#2171b5", "#4292c6", "#6baed6", "#a6bddb")
    colours = dict(zip((*SWEPT, *OTHERS), (*blues, "#E69F00", "#009E73")))
    panels = {
        "attainment": ("all tasks", 100),
        "realtime_attainment": ("real-time tasks", 100),
        "utility": ("utility", 100),
        "realtime_e2el_s": ("completion time, real-time (s)", 1),
    }
    loads = sorted({c["load"] for c in cells})
    for panel, (metric, (title, factor)) in zip(axes, panels.items()):
        for policy, colour in colours.items():
            seen = [
                [
                    factor * v
                    for v in study.values(study.chosen(cells, load=x, policy=policy), metric)
                ]
                for x in loads
            ]
            fmt = "s--" if policy in OTHERS else "o-"
            study.draw(panel, loads, seen, fmt=fmt, color=colour, label=policy)
        panel.set_title(f"{title}, % met" if factor == 100 else title, fontsize=10)
        panel.set_xlabel("load, x saturation")
        if factor == 1:
            panel.set_yscale("log")
    study.save(made, path)


def write_report(results: Path) -> None:
    """summary.md and the figure from the cells."""
    setup, cells = study.read_setup(results), study.read_cells(results)
    head = [
        "# SLICE's headline setting, simulated",
        "",
        f"Made by `{setup['command']}` at commit {setup['commit']}. Profile {PROFILE}, workload "
        f"`edge` (real-time utility 100), Poisson arrivals, {setup['tasks']} tasks a run, seeds "
        f"{', '.join(map(str, sorted({c['seed'] for c in cells})))}. Mean ± half the spread over "
        "seeds. Completion: arrival to last token; every task is served to its end.",
        "",
        *claims(cells),
        "",
        "![attainment over load](attainment.png)",
        "",
        "## What it shows",
        "",
        study.text_beside(__file__),
        "",
        "## slice at its best beside the others",
        "",
        *comparison(cells),
        *tables(cells),
    ]
    (results / "summary.md").write_text("\n".join(head) + "\n", encoding="utf-8")
    draw(cells, results / "attainment.png")
    print("\n".join(claims(cells)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=2000, help="tasks a run (default 2000)")
    parser.add_argument("--loads", type=listed(float), default=list(LOADS))
    parser.add_argument("--seeds", type=listed(int), default=[0, 1, 2, 3, 4])
    parser.add_argument("--results", type=Path, default=study.RESULTS / "slice_headline")
    parser.add_argument("--report", action="store_true", help="only summary and figure, no runs")
    args = parser.parse_args()
    if not args.report:
        study.begin(args.results, {"profile": PROFILE, "workload": "edge", "tasks": args.tasks})
        grid = itertools.product(args.loads, args.seeds, SWEPT + FINER + OTHERS)
        study.fill(args.results, KEYS, grid, functools.partial(measure, tasks=args.tasks))
    write_report(args.results)


if __name__ == "__main__":
    main()
