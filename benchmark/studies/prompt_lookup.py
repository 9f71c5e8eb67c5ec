#!/usr/bin/env python3
"""Speed of decoding with prompt lookup beside decoding without it, where a text repeats itself and
where it does not.

    python benchmark/studies/prompt_lookup.py -p demo/demo.flm --output FILE.json

Tasks of one batch go on from random prompts: greedily, which makes a model of random weights and a
small trained one say the same over and over, and sampled at temperature 1, which does not. A round
is one run with drafts and one without, in turns; figures are medians, ratios of the rounds' own.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import study

from slicellm import _core
from slicellm.engine import Engine
from slicellm.model import Model
from slicellm.task import Task

TEXTS = {"repeats itself": 0.0, "does not": 1.0}  # temperature


def run(engine: Engine, tasks: list[Task]) -> dict[str, Any]:
    """Tokens a second and a step of the decoding of tasks that run side by side."""
    before = engine.stats()
    results = engine.run(tasks)
    after = engine.stats()
    counts = {
        key: after[key] - before[key]
        for key in ("steps", "busy_seconds", "drafted_tokens", "accepted_tokens")
    }
    tokens = sum(len(result.token_ids) for result in results)
    return {
        "tokens_per_s": tokens / counts["busy_seconds"],
        "tokens_per_step_and_task": tokens / counts["steps"] / len(tasks),
        "drafted": counts["drafted_tokens"],
        "accepted": counts["accepted_tokens"],
        "output": [result.token_ids for result in results],
    }


def measure(
    engines: dict[str, Engine], temperature: float, batch: int, tokens: int, rounds: int
) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    vocab = engines["plain"].model.spec["vocab"]
    tasks = [
        Task(
            rng.integers(3, vocab, 16).tolist(),
            max_tokens=tokens,
            ignore_eos=True,
            temperature=temperature,
            seed=seed,
        )
        for seed in range(batch)
    ]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for _ in range(rounds + 1):
        for name, engine in engines.items():
            runs[name].append(run(engine, tasks))
        if runs["plain"][-1].pop("output") != runs["drafts"][-1].pop("output"):
            raise SystemExit("drafts changed the tokens")
    kept = {name: found[1:] for name, found in runs.items()}  # the first round warms up
    medians = {
        name: {key: statistics.median(r[key] for r in found) for key in found[0]}
        for name, found in kept.items()
    }
    pairs = zip(kept["drafts"], kept["plain"])
    ratio = statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs)
    return {**medians, "speed_ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-p", "--path", required=True, help="model")
    parser.add_argument("-t", "--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--prompt-lookup", type=int, default=7, help="most drafts (default 7)")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer (default 128)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="result file")
    args = parser.parse_args()
    model = Model(args.path, threads=args.threads)
    latency = _core.calibrate(model.core, 10.0)
    cells = []
    with (
        Engine(model, "orca", latency=latency) as plain,
        Engine(model, "orca", latency=latency, prompt_lookup=args.prompt_lookup) as drafts,
    ):
        for text, temperature in TEXTS.items():
            for batch in (1, 4):
                engines = {"plain": plain, "drafts": drafts}
                found = measure(engines, temperature, batch, args.tokens, args.rounds)
                cells.append({"text": text, "batch": batch, **found})
                print(
                    f"text that {text}, batch {batch}: {found['speed_ratio']:.2f} of the speed, "
                    f"{found['drafts']['tokens_per_step_and_task']:.2f} tokens a step and task"
                )
    result = {
        **study.origin(),
        "device": model.core.device,
        "prompt_lookup": args.prompt_lookup,
        "tokens": args.tokens,
        "cells": cells,
    }
    study.write(args.output, result)


if __name__ == "__main__":
    main()
