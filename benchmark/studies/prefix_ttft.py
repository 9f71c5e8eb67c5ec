#!/usr/bin/env python3
"""Time to first token of a long prompt whose beginning is in the prefix cache, beside one that is
not.

    python benchmark/studies/prefix_ttft.py -p demo/demo.flm --output FILE.json

A round is one prompt of either kind, in turns, on one engine that holds nothing else: random tokens
throughout (uncached), and the same beginning as all others of its kind with new tokens after it
(cached; whole KV blocks of 16 tokens are found, so of 1,900 tokens 1,888). The figure is the ratio
of the medians.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import study

from slicellm._core import LatencyModel
from slicellm.engine import Engine
from slicellm.model import Model
from slicellm.task import Task


def first_token_ms(engine: Engine, prompt: list[int]) -> tuple[float, int]:
    """TTFT of a prompt, and how many of its tokens were cached."""
    result = engine.generate(Task(prompt, max_tokens=1))
    assert result.ttft_ms is not None  # it has a token
    return result.ttft_ms, result.cached_tokens


def measure(engine: Engine, tokens: int, cached: int, rounds: int, seed: int) -> dict[str, Any]:
    """TTFT in ms of both kinds, round by round; the round before the first one warms up."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> list[int]:
        ids: list[int] = rng.integers(3, engine.model.spec["vocab"], count).tolist()
        return ids

    beginning = draw(cached)
    runs: list[dict[str, Any]] = []
    for _ in range(rounds + 1):
        uncached, none = first_token_ms(engine, draw(tokens))
        known, found = first_token_ms(engine, beginning + draw(tokens - cached))
        runs.append({"uncached_ms": uncached, "cached_ms": known, "cached_tokens": found})
        if none != 0:
            raise SystemExit(f"{none} tokens of a new prompt were cached")
    runs = runs[1:]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {**medians, "ratio": medians["cached_ms"] / medians["uncached_ms"], "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-p", "--path", required=True, help="model")
    parser.add_argument("-t", "--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--tokens", type=int, default=2000, help="of a prompt (default 2000)")
    parser.add_argument("--cached", type=int, default=1900, help="of these known (default 1900)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="result file")
    args = parser.parse_args()
    model = Model(args.path, threads=args.threads)
    latency = LatencyModel.from_decode_table([1.0])  # one task at a time: nothing to predict
    with Engine(model, "orca", latency=latency, max_step_tokens=args.tokens) as engine:
        found = measure(engine, args.tokens, args.cached, args.rounds, args.seed)
    result = {
        **study.origin(),
        "device": model.core.device,
        "model": {key: model.spec[key] for key in ("family", "layers", "hidden", "inner", "vocab")},
        "tokens": args.tokens,
        "cached": args.cached,
        **found,
    }
    print(
        f"uncached {found['uncached_ms']:.0f} ms, {found['cached_tokens']} tokens cached "
        f"{found['cached_ms']:.0f} ms: {found['ratio']:.3f}"
    )
    study.write(args.output, result)


if __name__ == "__main__":
    main()
