#!/usr/bin/env python3
"""How pace, slice, orca, fastserve and sarathi serve the workload `edge` at saturation and above.

Runs every cell of load x seed x policy on one model and writes one result file a cell, so that an
interrupted study goes on where it stopped; then, from whatever cells there are, a table, the ratios
that the SLICE paper claims (35x attainment, 3.4x completion time) and a figure.

    python benchmark/studies/edge_policies.py -p demo/demo.flm
    python benchmark/studies/edge_policies.py --report

Everything lies in --results: setup.json (the latency model that fixes saturation and targets for
all cells), one JSON a cell, summary.md, edge.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import edge_report
import study

from slicellm._core import LatencyModel
from slicellm.bench import report
from slicellm.bench.machine import ModelMachine, Wanted
from slicellm.bench.scenario import Scenario, make_scenario, read_source
from slicellm.calibration import latency_model
from slicellm.cli import benchmark_flags, workload_flags
from slicellm.model import Model

HERE = Path(__file__).resolve().parent
POLICIES = (
    "slice:ratio=1",
    "slice:ratio=0.9",
    "slice:ratio=0.7",
    "slice:ratio=0.5",
    "orca",
    "fastserve",
    "sarathi",
    "pace",
)
LOADS = (1.0, 2.0, 3.0)
SEEDS = (0, 1, 2)


def cell_path(results: Path, load: float, seed: int, policy: str) -> Path:
    """The result file of one cell."""
    return results / f"load{load:g}_seed{seed}_{policy.replace(':', '_').replace('=', '')}.json"


def prepare(results: Path, model: Model, tasks: int) -> Mapping[str, Any]:
    """What all cells share; made by the first call, and checked against the model by later ones."""
    path = results / "setup.json"
    if path.exists():
        setup: Mapping[str, Any] = json.loads(path.read_text())
        if setup["fingerprint"] != model.fingerprint or setup["tasks"] != tasks:
            sys.exit(
                f"{path} belongs to another model, machine or number of tasks: choose --results"
            )
        return setup
    setup = {
        "fingerprint": model.fingerprint,
        "model": Path(model.path).name,
        "device": model.device,
        "threads": model.threads,
        "machine": report.machine(),
        "tasks": tasks,
        "latency": latency_model(model).to_json(),
    }
    study.write(path, setup)
    return setup


def scenario_at(load: float, tasks: int, latency: LatencyModel) -> Scenario:
    """`edge` at a multiple of saturation, as `benchmark --load` makes it."""
    flags = ["-p", "model", "--load", f"{load}", "--total-tasks", f"{tasks}"]
    args = benchmark_flags.build_parser().parse_args(flags)
    return make_scenario(args, read_source(args), latency, max_rows=64)


def run_cells(args: argparse.Namespace) -> None:
    """Runs the cells that have no result file yet."""
    model = Model(args.path, threads=args.threads)
    setup = prepare(args.results, model, args.tasks)
    latency = LatencyModel.from_json(setup["latency"])
    machine = ModelMachine(model, latency)
    grid = [(s, load, p) for s in args.seeds for load in args.loads for p in args.policy]
    left = sum(not cell_path(args.results, load, s, p).exists() for s, load, p in grid)
    # Every cell has the same work, which at saturation and above takes at least tasks / saturation.
    least = left * args.tasks / scenario_at(1.0, args.tasks, latency).work.saturation
    print(f"{left} of {len(grid)} cells to run, at least {least / 60:.0f} minutes", flush=True)
    for seed in args.seeds:
        for load in args.loads:
            scenario = scenario_at(load, args.tasks, latency)
            tasks = scenario.columns(seed)
            for policy in args.policy:
                path = cell_path(args.results, load, seed, policy)
                if path.exists():
                    continue
                result = machine.run(policy, tasks, seed, 0, Wanted(), None).metrics
                config = {
                    "workload": "edge",
                    "load": load,
                    "seed": seed,
                    "policy": policy,
                    "tasks": args.tasks,
                    "rate": scenario.rate,
                    "saturation": scenario.work.saturation,
                    "slo_scale": scenario.slo_scale,
                    "prefill_ms": scenario.work.prefill_ms,
                    "decode_ms": scenario.work.decode_ms,
                    "decode_1_ms": scenario.work.decode_1_ms,
                    "commit": study.commit(),
                    **{key: setup[key] for key in ("model", "device", "threads", "machine")},
                }
                content = {"config": config, "policies": {policy: result}}
                path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
                print(
                    f"load {load:g}, seed {seed}, {policy}: {result['met']} of "
                    f"{result['submitted']} met in {result['makespan_s']:.1f} s",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-p", "--path", help="the model")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--tasks", type=int, default=40, help="tasks a cell (default 40)")
    parser.add_argument("--loads", type=workload_flags.listed(float), default=list(LOADS))
    parser.add_argument("--seeds", type=workload_flags.listed(int), default=list(SEEDS))
    parser.add_argument("--policy", type=benchmark_flags.split_policies, default=list(POLICIES))
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "edge")
    parser.add_argument("--report", action="store_true", help="only summary and figure, no runs")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    if not args.report:
        if args.path is None:
            parser.error("-p MODEL is needed, except with --report")
        run_cells(args)
    edge_report.write(args.results)


if __name__ == "__main__":
    main()
