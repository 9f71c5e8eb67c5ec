#!/usr/bin/env python3
"""Measures slicellm beside PyTorch with transformers on a GPU: the same random weights.

PyTorch computes in float16 with a static cache, decode steps compiled where that works; slicellm in
its types. Each engine lives in a process of its own and they run in turns; figures are medians over
rounds of the median step, ratios medians of the rounds' own ratios (slicellm's tokens/s over
PyTorch's).

    python benchmark/peers/pytorch.py --models DIR                     # -> benchmark/results/gpu/
    python benchmark/peers/pytorch.py --models DIR --device cpu --rounds 1 --steps 2 --batches 1

Needs no network. With --device cpu it shows that the engines compute the same model, not a speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from parts import models
from parts.pipe import Worker
from parts.provenance import commit, machine

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).resolve().parent / "parts"
SEED = 0  # of weights and prompts


def measure(worker: Worker, cell: int, prompts: list[list[int]], args: argparse.Namespace) -> float:
    """Tokens per second of decode steps of `cell` sequences, or of a prefill where it is 0."""
    if cell == 0:
        return float(args.prefill / worker.ask("prefill", prompts[0]))
    return float(cell / statistics.median(worker.ask("decode", prompts, args.steps)))


def run_cell(
    cell: int, workers: list[Worker], rng: np.random.Generator, args: argparse.Namespace
) -> dict[str, Any]:
    def prompt(length: int) -> list[int]:
        ids: list[int] = rng.integers(3, models.SHAPES[args.shape]["vocab_size"], length).tolist()
        return ids

    rounds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for i in range(args.rounds + 1):
        # New prompts each time: slicellm keeps K and V of those it has seen.
        prompts = [prompt(args.context if cell else args.prefill) for _ in range(max(1, cell))]
        for worker in workers:
            speed = measure(worker, cell, prompts, args)
            if i > 0:  # the first is to warm up
                rounds[worker.name].append(speed)
    peer = rounds["torch"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(speeds, peer))
        for name, speeds in rounds.items()
        if name != "torch"
    }
    name = f"decode {cell}" if cell else f"prefill {args.prefill}"
    medians = {name: statistics.median(speeds) for name, speeds in rounds.items()}
    print(name, {k: f"{v:.1f}" for k, v in medians.items()}, ratios, flush=True)
    return {"cell": name, "tokens_per_s": medians, "ratio_to_torch": ratios, "rounds": rounds}


def command(args: argparse.Namespace) -> str:
    """The command without the places of one machine."""
    names = ("shape", "dtypes", "device", "batches", "context", "steps", "prefill", "rounds")
    flags = [f"--{name} {getattr(args, name)}" for name in names]
    return " ".join(["python benchmark/peers/pytorch.py --models DIR", *flags])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=Path, required=True, help="folder where models are kept or made")
    add("--shape", default="tinyllama-1.1b", choices=models.SHAPES)
    add("--dtypes", default="int4g32,float16", help="slicellm's weights")
    add("--device", default="cuda:0")
    add("--batches", default="1,8,32,0", help="of decode steps; 0 is the prefill")
    add("--context", type=int, default=64, help="prompt tokens before the decode steps")
    add("--steps", type=int, default=32, help="decode steps a run")
    add("--prefill", type=int, default=512, help="tokens of the prefill")
    add("--rounds", type=int, default=7, help="runs of each engine that count")
    add("--slicellm-python", default=sys.executable, help="interpreter that has slicellm")
    add("--torch-python", default=sys.executable, help="interpreter that has torch, transformers")
    add("--output", type=Path, default=ROOT / "benchmark/results/gpu/pytorch.json")
    add("--verbose", action="store_true", help="show what the engines print")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    source = args.models / args.shape
    if not (source / "config.json").exists():
        models.write_safetensors(source, models.SHAPES[args.shape], SEED)
    workers = [
        Worker(
            "torch",
            [args.torch_python, str(PARTS / "torch_worker.py"), str(source), args.device],
            args.verbose,
        )
    ]
    for dtype in args.dtypes.split(","):
        command = [args.slicellm_python, str(PARTS / "slicellm_worker.py"), str(source), dtype]
        workers.append(Worker(dtype, [*command, "0", "", args.device], args.verbose))
    rng = np.random.default_rng(SEED)
    record: dict[str, Any] = {
        "command": command(args),
        "commit": commit(),
        "machine": machine(),
        "engines": {worker.name: worker.ask("info") for worker in workers},
        **{key: getattr(args, key) for key in ("context", "steps", "rounds")},
    }
    ids = [int(i) for i in rng.integers(3, models.SHAPES[args.shape]["vocab_size"], 48)]
    theirs = np.array(workers[0].ask("logits", ids), np.float64)
    record["logits_distance"] = {
        worker.name: float(
            np.linalg.norm(np.array(worker.ask("logits", ids)) - theirs) / np.linalg.norm(theirs)
        )
        for worker in workers[1:]
    }
    for dtype, distance in record["logits_distance"].items():
        if not distance < (2e-2 if dtype == "float16" else 1.0):  # also where it is no number
            raise SystemExit(f"{dtype}: the engines do not compute the same model")
    cells = [int(batch) for batch in args.batches.split(",")]
    record["cells"] = [run_cell(cell, workers, rng, args) for cell in cells]
    for worker in workers:
        worker.close()
    if args.device != "cpu":
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: record[k] for k in ("engines", "logits_distance")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
