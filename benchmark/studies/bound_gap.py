#!/usr/bin/env python3
"""How far the clairvoyant upper bound lies above the best schedule, on instances that are small
enough for exact search: three to five short tasks on the published 4060 Ti table.

    python benchmark/studies/bound_gap.py --output benchmark/results/bound-gap.json

The gap of an instance is bound / optimum - 1. Instances of which nothing can be met have none. On
them the bound is as far above as it can be: a share of each task may be run, and with few tasks
that tells most.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import study

from slicellm._core import LatencyModel
from slicellm.bench.bound import upper_bound
from slicellm.bench.bound_exact import best_utility, tiny_instance
from slicellm.bench.tasks import TaskColumns, WorkloadTask

# l(1) .. l(7), after which the table no longer rises; prefill 20 ms + 0.4 ms a token.
TABLE_MS = [14.0, 27.0, 38.0, 50.0, 60.0, 72.0, 83.0]


def measure(seed: int) -> dict[str, Any]:
    """Optimum and bound of one instance, by utility and by count, as fractions."""
    latency = LatencyModel.from_decode_table(TABLE_MS, 20.0, 0.4)
    tasks: list[WorkloadTask] = tiny_instance(seed)
    bound = upper_bound(TaskColumns.of(tasks), latency)
    counted = [replace(task, utility=1.0) for task in tasks]
    return {
        "seed": seed,
        "tasks": len(tasks),
        "optimum": {
            "utility": best_utility(tasks, latency) / sum(task.utility for task in tasks),
            "attainment": best_utility(counted, latency) / len(tasks),
        },
        "bound": {"utility": bound.utility, "attainment": bound.attainment},
    }


def summary(instances: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Mean, median and largest gap; how many are exact; and instances that break the bound."""
    pairs = [(i["optimum"][key], i["bound"][key]) for i in instances]
    gaps = np.array([bound / best - 1 for best, bound in pairs if best > 0])
    return {
        "mean": float(gaps.mean()),
        "median": float(np.median(gaps)),
        "max": float(gaps.max()),
        "below_1_percent": int((gaps < 0.01).sum()),
        "instances": len(gaps),
        "nothing_can_be_met": sum(best == 0 for best, _ in pairs),
        "bound_below_optimum": sum(bound < best - 1e-9 for best, bound in pairs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=50, help="seeds 0, 1, ... (default 50)")
    parser.add_argument("--output", type=Path, help="result file")
    args = parser.parse_args()
    instances = [measure(seed) for seed in range(args.instances)]
    gaps = {key: summary(instances, key) for key in ("utility", "attainment")}
    result = {
        **study.origin(),
        "table_ms": TABLE_MS,
        "gap": gaps,
        "instances": instances,
    }
    for key, gap in gaps.items():
        print(
            f"{key}: gap mean {100 * gap['mean']:.1f} %, median {100 * gap['median']:.1f} %, max "
            f"{100 * gap['max']:.1f} %; below 1 % in {gap['below_1_percent']} of "
            f"{gap['instances']}; bound below the optimum in {gap['bound_below_optimum']}"
        )
    study.write(args.output, result)
    return 1 if any(gap["bound_below_optimum"] for gap in gaps.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
