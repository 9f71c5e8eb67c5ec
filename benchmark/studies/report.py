#!/usr/bin/env python3
"""The laboratory's report: every study's result as a picture, on one page that needs nothing else.

    python benchmark/studies/report.py        # writes benchmark/results/report.html

Made from whatever is recorded under benchmark/results/, and from a few simulated runs of its own
that take seconds: all policies on `edge` by class, and one small scene token by token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import study
from report_parts import claims, runs, sections
from report_parts.page import Page, Section, render

from slicellm.cli.workload_flags import listed

ORDER = "load classes pace bound gantt mask completion engine rivals scls gap plan claims".split()
# What a section needs among the results, and what makes it.
RECORDED: Mapping[str, tuple[tuple[str, ...], Callable[[Path], Section]]] = {
    "load": (("load_curves/cells.jsonl",), sections.load),
    "pace": (("pace/cells.jsonl",), sections.pace),
    "bound": (("pace/cells.jsonl",), sections.bound),
    "completion": (("slice_headline/cells.jsonl",), sections.completion),
    "engine": (("edge/setup.json",), sections.engine),
    "rivals": (("sarathi_vllm/cells.jsonl", "slai/cells.jsonl"), sections.rivals),
    "scls": (("scls/cells.jsonl",), sections.scls),
    "gap": (("bound-gap.json",), sections.gap),
    "plan": (("plan_time/plan_time.json",), sections.plan),
}


def build(results: Path, tasks: int, seeds: Sequence[int]) -> Page:
    """The page of what is recorded under `results`, and of own runs of so many tasks."""
    made: dict[str, Section] = {}
    lacking: list[str] = []
    for name, (needed, make) in RECORDED.items():
        absent = [path for path in needed if not (results / path).exists()]
        lacking += [path for path in absent if path not in lacking]
        if not absent:
            made[name] = make(results)
    rows = claims.rows(results)
    made["claims"] = claims.section(rows)
    made["classes"] = sections.classes(tasks, seeds)
    made["gantt"], made["mask"] = sections.scene()
    policies = (f"{len(runs.policies())}", "policies in one engine, on the same arrivals")
    return Page(
        "Promises kept: the scheduler laboratory",
        "An edge box serves robots, voices and readers at once, and each was promised something. "
        "Which policy keeps most promises when not all can be kept? Every rival ran in one engine "
        "on the same arrivals, in virtual time unless it says otherwise; misses are shown like "
        "hits.",
        [policies, *claims.facts(rows)],
        [made[name] for name in ORDER if name in made],
        lacking,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=study.RESULTS, help="recorded results")
    parser.add_argument("--tasks", type=int, default=500, help="tasks of an own run (default 500)")
    parser.add_argument("--seeds", type=listed(int), default=[0, 1, 2], help="of its own runs")
    parser.add_argument("--output", type=Path, help="default: report.html among the results")
    args = parser.parse_args()
    text = render(build(args.results, args.tasks, args.seeds))
    output = args.output or args.results / "report.html"
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}, {len(text.encode()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
