#!/usr/bin/env python3
"""Measures slicellm beside llama.cpp and other engines on this machine: the whole tables.

Same random weights, threads and KV type for all engines; each lives in a process of its own and
they run in turns (A B C A B C ...). A cell is one batch of decode steps, or a prefill, of one shape
and weight type; its figures are medians over rounds of the median step, its ratios medians of the
rounds' own ratios (slicellm's tokens/s over the other's). What the machine can do at most
(benchmark/roofline) is measured before slicellm's turn in each round, as a host's other guests
change it within a cell; slicellm's shares of it are medians of the rounds' own as well.

    python benchmark/peers/llama_cpp.py --models DIR                         # everything
    python benchmark/peers/llama_cpp.py --models DIR --only qwen2.5-0.5b:int4g32 --seconds 200
    python benchmark/peers/llama_cpp.py --table                              # Markdown again

Cells that are recorded are not run again (--again does). Weight types that face each other: int4g32
and Q4_0 (4-bit codes with scales per 32 columns), int8 (a scale per row) and Q8_0 (scales per 32
columns), float16 and F16. llama.cpp is driven by llama-cpp-python's low-level calls, without
sampling; slicellm by its engine, sampling included. Batch 64 is slicellm's alone.
With --genai-python and --ctranslate2-python, ONNX Runtime GenAI's int4 and CTranslate2's int8 run
beside them. Needs no network. The interpreter that runs this needs numpy and gguf.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from parts import models, table
from parts.pipe import Worker
from parts.provenance import commit, machine

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).resolve().parent / "parts"
GGUF_TYPES = {"int4g32": "Q4_0", "int8": "Q8_0", "float16": "F16"}
BATCHES = [1, 2, 4, 8, 16, 32, 64]
LARGEST_SHARED_BATCH = 32
LARGEST_GENAI_BATCH = 16
SEED = 0  # of weights and prompts


class Grid:
    """The cells of one shape and weight type, and the engines that run them."""

    def __init__(self, args: argparse.Namespace, shape: str, dtype: str) -> None:
        self.args, self.shape, self.dtype = args, shape, dtype
        self.config = models.SHAPES[shape]
        self.rng = np.random.default_rng(SEED)
        self.workers: list[Worker] = []
        name = "-".join(filter(None, (shape, dtype, args.isa)))
        self.path: Path = args.results / f"{name}.json"
        self.record: dict[str, Any] = {"cells": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())

    def todo(self) -> list[str]:
        """Cells that are not recorded."""
        cells = [f"decode {batch}" for batch in self.args.batches if batch]
        if 0 in self.args.batches:
            cells.append(f"prefill {self.args.prefill}")
        return [c for c in cells if self.args.again or c not in self.record["cells"]]

    def start(self) -> None:
        """Makes the models that are missing and starts the engines."""
        args, threads = self.args, str(self.args.threads)
        source = args.models / self.shape
        if not (source / "config.json").exists():
            print(f"writing {source.name}", flush=True)
            models.write_safetensors(source, self.config, SEED)
            models.write_tokenizer(source, self.config["vocab_size"])
        kind = GGUF_TYPES[self.dtype]
        gguf = args.models / f"{self.shape}-{kind}.gguf"
        if not gguf.exists():
            print(f"writing {gguf.name}", flush=True)
            models.write_gguf(gguf, self.config, SEED, kind)
        self._add("slicellm", args.slicellm_python, source, self.dtype, threads, args.isa)
        self._add("llama.cpp", args.llama_python, gguf, threads)
        if self.dtype == "int4g32" and args.genai_python:
            target = args.models / f"{self.shape}-genai"
            if not target.exists():
                models.convert_genai(args.genai_python, source, target, args.converter_packages)
            self._add("genai", args.genai_python, target, threads)
        if self.dtype == "int8" and args.ctranslate2_python:
            target = args.models / f"{self.shape}-ctranslate2"
            if not target.exists():
                python, site = args.ctranslate2_python, args.converter_packages
                models.convert_ctranslate2(python, source, target, site)
            self._add("ctranslate2", args.ctranslate2_python, target, threads)
        setup = {
            "shape": self.shape,
            "dtype": self.dtype,
            "gguf_type": kind,
            "kv_type": "float16",
            "machine": machine(),
            "engines": {worker.name: worker.ask("info") for worker in self.workers},
        }
        for key in ("threads", "context", "steps", "rounds"):
            setup[key] = getattr(args, key)
        self.record = {**self.record, **setup}
        ids = self.prompt(48)
        ours, theirs = (np.array(w.ask("logits", ids), np.float64) for w in self.workers[:2])
        distance = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        self.record["logits_distance"] = distance
        if self.dtype == "float16" and not distance < 1e-2:
            raise SystemExit("the engines do not compute the same model")

    def _add(self, name: str, python: str, *arguments: Any) -> None:
        script = {"llama.cpp": "llama"}.get(name, name) + "_worker.py"
        command = [python, str(PARTS / script), *map(str, arguments)]
        self.workers.append(Worker(name, command, self.args.verbose))

    def prompt(self, length: int) -> list[int]:
        ids: list[int] = self.rng.integers(3, self.config["vocab_size"], length).tolist()
        return ids

    def run(self, cell: str) -> None:
        """Measures a cell, records and prints it."""
        kind, tokens = cell.split()[0], int(cell.split()[1])
        engines = [w for w in self.workers if takes_part(w.name, kind, tokens)]
        prompts = [self.prompt(self.args.context) for _ in range(tokens)]
        seconds: dict[str, list[float]] = {worker.name: [] for worker in engines}
        rooflines = []
        for i in range(self.args.rounds + 1):
            ids = self.prompt(tokens)
            roofline = self.roofline()
            for worker in engines:
                time.sleep(0.1)  # lets the other engine's threads go to sleep
                if kind == "prefill":
                    step = worker.ask("prefill", ids)
                else:
                    step = statistics.median(worker.ask("decode", prompts, self.args.steps))
                if i > 0:  # the first is to warm up
                    seconds[worker.name].append(step)
            if i > 0:
                rooflines.append(roofline)
        ours = seconds["slicellm"]
        self.record["cells"][cell] = {
            "commit": commit(),
            "tokens_per_s": {n: tokens / statistics.median(s) for n, s in seconds.items()},
            "ratio": {
                n: statistics.median(b / a for a, b in zip(ours, s))
                for n, s in seconds.items()
                if n != "slicellm"
            },
            **limits_and_shares(rooflines, kind, tokens, ours),
            "seconds": seconds,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.record, indent=1) + "\n")
        print(table.cell_line(self.record, cell), flush=True)

    def roofline(self) -> dict[str, Any]:
        """What the machine can do now, and what steps of this shape and type have to do."""
        command = [str(self.args.roofline), "--shape", self.shape, "--dtypes", self.dtype]
        command += ["--threads", str(self.args.threads), "--context", str(self.args.context)]
        if self.args.isa:
            command += ["--isa", self.args.isa]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return dict(json.loads(answer))

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def takes_part(engine: str, kind: str, tokens: int) -> bool:
    """Whether an engine runs a cell."""
    if engine == "ctranslate2":
        return kind == "prefill"
    most = {"llama.cpp": LARGEST_SHARED_BATCH, "genai": LARGEST_GENAI_BATCH}
    return kind == "prefill" or tokens <= most.get(engine, tokens)


def limits_and_shares(
    rooflines: list[dict[str, Any]], kind: str, tokens: int, seconds: list[float]
) -> dict[str, Any]:
    """The limits measured in each round, and what share of them its step reached; medians too."""
    rounds = [roofline["limits"][0] for roofline in rooflines]
    limits = {
        key: statistics.median(found[key] for found in rounds)
        for key in ("read_gb_per_s", "int8_gop_per_s", "float_gop_per_s")
    }
    steps = rooflines[0]["steps"]
    work = next(s for s in steps if (s["step"], s["tokens"]) == (kind, tokens))

    def least(limits: dict[str, float]) -> dict[str, float]:
        int8 = work["int8_operations"] / limits["int8_gop_per_s"]
        floats = work["float_operations"] / limits["float_gop_per_s"]
        memory = work["bytes"] / limits["read_gb_per_s"]
        return {"memory": memory * 1e-9, "arithmetic": (int8 + floats) * 1e-9}

    shares = [
        {name: value / step for name, value in least(found).items()}
        for found, step in zip(rounds, seconds)
    ]
    return {
        "limits": limits,
        "least_ms": {name: value * 1e3 for name, value in least(limits).items()},
        "share": {name: statistics.median(s[name] for s in shares) for name in shares[0]},
        "share_of_rounds": shares,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    everything = [f"{shape}:{dtype}" for shape in models.SHAPES for dtype in GGUF_TYPES]
    add("--only", default=",".join(everything), help="SHAPE:DTYPE,... of " + ", ".join(everything))
    add("--batches", default="1,2,4,8,16,32,64,0", help="of decode steps; 0 is the prefill")
    add("--context", type=int, default=64, help="prompt tokens before the decode steps")
    add("--steps", type=int, default=16, help="decode steps a run")
    add("--prefill", type=int, default=512, help="tokens of the prefill")
    add("--rounds", type=int, default=7, help="runs of each engine that count")
    add("--threads", type=int, default=2)
    add("--isa", default="", help="slicellm's instruction set; empty = the best")
    add("--seconds", type=float, default=1e9, help="begin no cell later than this")
    add("--again", action="store_true", help="run cells that are recorded again")
    add("--table", action="store_true", help="run nothing, write the table")
    add("--models", type=Path, help="folder where models are kept; made where they are missing")
    add("--results", type=Path, default=ROOT / "benchmark/results/peers")
    add("--roofline", type=Path, default=ROOT / "build/roofline", help="the CMake target")
    add("--slicellm-python", default=sys.executable, help="interpreter that has slicellm")
    add("--llama-python", default=sys.executable, help="interpreter that has llama-cpp-python")
    add("--genai-python", help="interpreter that has onnxruntime-genai")
    add("--ctranslate2-python", help="interpreter that has ctranslate2")
    add("--converter-packages", default="", help="folder with torch and transformers, for those")
    add("--verbose", action="store_true", help="show what the engines print")
    args = parser.parse_args()
    args.only = args.only.split(",")
    args.batches = [int(batch) for batch in args.batches.split(",")]
    if unknown := set(args.only) - set(everything):
        parser.error(f"--only: got {', '.join(sorted(unknown))}, expected {', '.join(everything)}")
    if unused := set(args.batches) - {0, *BATCHES}:
        parser.error(f"--batches: got {sorted(unused)}, expected some of 0, {BATCHES}")
    if not args.table and args.models is None:
        parser.error("--models: expected a folder")
    return args


def main() -> int:
    args = parse_arguments()
    end = time.monotonic() + args.seconds
    for name in [] if args.table else args.only:
        grid = Grid(args, *name.split(":"))
        cells = grid.todo()
        if not cells or time.monotonic() > end:
            continue
        grid.start()
        for cell in cells:
            if time.monotonic() <= end:
                grid.run(cell)
        grid.close()
    print(f"written to {table.write(args.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
