#!/usr/bin/env python3
"""What decoding loses when other programs want the cores that it runs on.

python benchmark/studies/shared_machine.py -p demo/demo.flm

Decodes with as many threads as cores, by turns alone and beside one process of the same priority
that computes without end, and prints tokens per second as JSON. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import study

import slicellm
from slicellm import _core
from slicellm.cli import speed

PROMPT = 32  # tokens


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keeps that many processes busy."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(model: slicellm.Model, args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Decode speed alone and beside `--busy` processes, tokens per second."""
    engine = _core.Engine(
        model.core,
        f"orca:max_batch={batch}",
        _core.LatencyModel.from_decode_table([1.0]),
        host_kv_bytes=0,
        max_rows=batch,
    )
    rng = np.random.default_rng(0)
    prompts = [list(map(int, row)) for row in rng.integers(0, 1000, (batch, PROMPT))]
    flags = speed_flags(args.tokens)
    speeds: dict[int, list[float]] = {0: [], args.busy: []}
    try:
        speed.measure(engine, prompts, flags)
        for _ in range(args.rounds):
            for processes, found in speeds.items():
                with busy(processes):
                    run = speed.measure(engine, prompts, flags)
                found.append(round(float(run["decode_tokens_per_s"] or 0), 2))
    finally:
        engine.close()
    alone, beside = (float(np.median(found)) for found in speeds.values())
    return {
        "batch": batch,
        "alone": alone,
        "beside": beside,
        "ratio": round(beside / alone, 3),
        "alone_runs": speeds[0],
        "beside_runs": speeds[args.busy],
    }


def speed_flags(tokens: int) -> argparse.Namespace:
    """The flags of `slicellm bench` that its measurement reads."""
    return argparse.Namespace(
        output_tokens=tokens, temperature=0.0, top_p=1.0, top_k=1, repeat_penalty=1.0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-p", "--path", required=True, help="the model")
    parser.add_argument("-t", "--threads", type=int, help="default: every usable core")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--busy", type=int, default=1, help="processes beside it (default 1)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default 128)")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    model = slicellm.load(args.path, device=args.device, threads=args.threads)
    result = {
        **study.origin(),
        "device": model.device,
        "busy_processes": args.busy,
        "unit": "decoded tokens/s, medians",
        "results": [measure(model, args, batch) for batch in args.batches],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
