#!/usr/bin/env python3
"""Plan time of every policy over the number of live tasks, by build/policy_benchmark.

cmake --build build --target policy_benchmark
python benchmark/studies/plan_time.py --binary build/policy_benchmark
python benchmark/studies/plan_time.py --report
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import study

TASKS = (16, 64, 256, 1024, 4096, 10000)
LIMIT_US = 2000.0  # p99 asked of pace at 10,000 tasks


def run(args: argparse.Namespace) -> None:
    """Writes plan_time.json."""
    command = [str(args.binary), "--steps", f"{args.steps}", "--tasks", ",".join(map(str, TASKS))]
    busy = os.getloadavg()[0]
    found = subprocess.run([*command, "--commit", study.commit()], capture_output=True, check=True)
    args.results.mkdir(parents=True, exist_ok=True)
    result = json.loads(found.stdout)
    result["command"] = "python benchmark/studies/plan_time.py --binary build/policy_benchmark"
    result["load_average"] = [busy, os.getloadavg()[0]]  # of the last minute, before and after
    text = json.dumps(result, indent=1) + "\n"
    (args.results / "plan_time.json").write_text(text, encoding="utf-8")


def write_report(results: Path) -> None:
    """summary.md and the figure."""
    recorded = json.loads((results / "plan_time.json").read_text(encoding="utf-8"))
    found: Mapping[tuple[str, int], Mapping[str, Any]] = {
        (r["policy"], r["tasks"]): r for r in recorded["results"]
    }
    policies = list(dict.fromkeys(policy for policy, _ in found))
    made, axes = study.figure(2, 5.0)
    titles = {
        "plan_us": "plan, p99 (us)",
        "all_us": "events, plan, check and commit of a step, p99 (us)",
    }
    for panel, (key, title) in zip(axes, titles.items()):
        for i, policy in enumerate(policies):
            panel.plot(
                TASKS,
                [found[policy, n][key]["p99"] for n in TASKS],
                "o-" if i < len(study.COLOURS) else "s--",
                color=study.COLOURS[i % len(study.COLOURS)],
                label=policy,
                markersize=4,
            )
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("live tasks")
    study.save(made, results / "plan_time.png")
    pace = found["pace", TASKS[-1]]
    lines = [
        "# Plan time over the number of live tasks",
        "",
        f"Made by `{recorded['command']}` at commit {recorded['commit']} on {recorded['machine']}, "
        f"{recorded['steps']} steps a policy and number of tasks, {recorded['clock']}; the "
        f"machine's load average was {recorded['load_average'][0]:.1f} before and "
        f"{recorded['load_average'][1]:.1f} after: above 1, others ran beside it.",
        "",
        *study.claims(
            [
                (
                    "pace's plan, p99 at 10,000 live tasks in a steady state, under 2 ms",
                    "-",
                    f"{pace['plan_us']['p99']:.2f} us; with events, check and commit "
                    f"{pace['all_us']['p99']:.1f} us",
                    pace["plan_us"]["p99"] < LIMIT_US,
                )
            ]
        ),
        "",
        "![plan time over live tasks](plan_time.png)",
        "",
        "The number of live tasks is held: with every task that leaves another of `edge` arrives. "
        "Among thousands nearly all wait far beyond their targets, which policies with deadlines "
        "set aside; a burst of as many tasks that could all still be met is not measured here.",
        "",
        *study.table(
            ("policy", *(f"{n} tasks: p50 / p99 (us)" for n in TASKS)),
            [
                (
                    policy,
                    *("{p50:.2f} / {p99:.2f}".format(**found[policy, n]["plan_us"]) for n in TASKS),
                )
                for policy in policies
            ],
        ),
    ]
    (results / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--binary", type=Path, default=Path("build/policy_benchmark"))
    parser.add_argument("--steps", type=int, default=20000, help="a policy and number of tasks")
    parser.add_argument("--results", type=Path, default=study.RESULTS / "plan_time")
    parser.add_argument("--report", action="store_true", help="only summary and figure, no runs")
    args = parser.parse_args()
    if not args.report:
        run(args)
    write_report(args.results)


if __name__ == "__main__":
    main()
