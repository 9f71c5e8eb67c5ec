#!/usr/bin/env python3
"""What int8 keys and values change: logits beside those of float32 KV, and decode speed.

python benchmark/studies/int8_kv.py demo/demo.flm

Logits of random prompts of each length, by the forward pass with float32, float16 and int8 KV: the
differences to float32's (largest and mean, in units of the logits' standard deviation) and the
share of tokens whose most likely next token is the same. Speed is that of one row that decodes at
each context, by turns with float16 and int8 KV, medians over the rounds. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import study

import slicellm
from slicellm import _core

KINDS = ("float32", "float16", "int8")


def effect(models: dict[str, slicellm.Model], length: int, prompts: int) -> dict[str, Any]:
    """Differences of logits, over all tokens of the prompts."""
    found: dict[str, dict[str, list[float]]] = {
        kind: {"largest": [], "mean": [], "same_top": []} for kind in KINDS[1:]
    }
    for seed in range(prompts):
        vocab = models["float32"].spec["vocab"]
        ids = np.random.default_rng(seed).integers(0, vocab, length).tolist()
        exact = models["float32"].forward(ids, 512)
        for kind, lists in found.items():
            logits = models[kind].forward(ids, 512)
            apart = np.abs(logits - exact) / exact.std()
            lists["largest"].append(float(apart.max()))
            lists["mean"].append(float(apart.mean()))
            lists["same_top"].append(float((logits.argmax(1) == exact.argmax(1)).mean()))
    return {
        kind: {
            "largest_difference": round(max(lists["largest"]), 5),
            "mean_difference": round(statistics.mean(lists["mean"]), 6),
            "same_most_likely_token": round(statistics.mean(lists["same_top"]), 4),
        }
        for kind, lists in found.items()
    }


def decode(model: slicellm.Model, context: int, tokens: int) -> float:
    """Tokens per second of one row with so much context."""
    blocks = -(-(context + tokens) // 16) + 1
    engine = _core.Engine(
        model.core,
        "orca:max_batch=1",
        _core.LatencyModel.from_decode_table([1.0]),
        kv_cache_bytes=blocks * model.core.kv_block_bytes,
        host_kv_bytes=0,
        max_rows=1,
        max_step_tokens=512,
    )
    try:
        ids = np.random.default_rng(0).integers(0, 1000, context).tolist()
        spec = _core.TaskSpec(ids, max_tokens=tokens, ignore_eos=True)
        times = engine.submit(spec).wait()["token_times"]
    finally:
        engine.close()
    return 1 / statistics.median(np.diff(times).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024], help="of prompts")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 2048, 8192])
    parser.add_argument("--tokens", type=int, default=48, help="decoded (default 48)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    models = {
        kind: slicellm.load(args.model, threads=args.threads, kv_cache_dtype=kind) for kind in KINDS
    }
    speeds = []
    for context in args.contexts:
        runs: dict[str, list[float]] = {kind: [] for kind in KINDS[1:]}
        for _ in range(args.rounds):
            for kind, found in runs.items():
                found.append(round(decode(models[kind], context, args.tokens), 2))
        half, int8 = (statistics.median(found) for found in runs.values())
        speeds.append({"context": context, **runs, "int8_to_float16": round(int8 / half, 3)})
    result = {
        **study.origin(),
        "device": models["int8"].device,
        "model": args.model.name,
        "kv_bytes_per_token": {kind: models[kind].kv_bytes_per_token for kind in KINDS},
        "logits": [
            {"length": n, "prompts": args.prompts, **effect(models, n, args.prompts)}
            for n in args.lengths
        ],
        "decoded_tokens_per_s": speeds,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
