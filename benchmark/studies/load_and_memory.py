#!/usr/bin/env python3
"""How long a model takes to load and what it holds in memory, with and without the pack cache.

python benchmark/studies/load_and_memory.py demo/demo.flm

Each start is a process of its own, the model's file in the page cache: `plain` packs the weights,
`written` packs and keeps them beside the model (--pack-cache), `read` is the start after that.
Times are of `slicellm.load`, medians over the rounds, with all runs. Memory is the largest of the
rounds: peak resident size above that of the interpreter with slicellm imported, right after the
load and once more when an engine has filled a KV pool (activations, logits and rotary tables are in
it, too), as ratios to packed weights and to packed weights + KV pool. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import study

# Prints one start as JSON: argv is the model, pack cache or not, threads, bytes of the KV pool.
START = """
import json, sys, time
import numpy as np
import slicellm
from slicellm import _core

def status(*names):
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return [int(fields[name].split()[0]) << 10 for name in names]

path, pack_cache, threads, kv_bytes = sys.argv[1], sys.argv[2] == "1", *map(int, sys.argv[3:])
(bare,) = status("VmRSS")
start = time.perf_counter()
model = slicellm.load(path, threads=threads, pack_cache=pack_cache)
seconds = time.perf_counter() - start
loaded, now = status("VmHWM", "VmRSS")
with open("/proc/self/smaps") as file:
    huge = sum(int(line.split()[1]) << 10 for line in file if line.startswith("AnonHugePages"))
engine = _core.Engine(
    model.core, "orca:max_batch=8", _core.LatencyModel.from_decode_table([1.0]),
    kv_cache_bytes=kv_bytes, host_kv_bytes=0, max_rows=8, max_step_tokens=512,
)
tokens, rows = kv_bytes // model.kv_bytes_per_token, []
while tokens >= 64:  # all tasks at once, so that each block is used
    length = min(tokens // 16 * 16, 512)
    rows.append(np.random.default_rng(len(rows)).integers(0, 1000, length - 16).tolist())
    tokens -= length
engine.submit_all([_core.TaskSpec(row, max_tokens=16, ignore_eos=True) for row in rows])
engine.wait_idle()
(served,) = status("VmHWM")
print(json.dumps({
    "seconds": seconds, "cache": model.pack_cache, "packed_bytes": model.weight_bytes,
    "peak_bytes": loaded - bare, "resident_bytes": now - bare, "huge_page_bytes": huge,
    "peak_served_bytes": served - bare, "device": model.device,
}))
"""


def start(model: Path, pack_cache: bool, args: argparse.Namespace) -> dict[str, Any]:
    """One process that loads and serves."""
    numbers = [str(int(pack_cache)), str(args.threads), str(args.kv_mib << 20)]
    done = subprocess.run(
        [sys.executable, "-c", START, str(model), *numbers],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def summarise(runs: list[dict[str, Any]], kv_bytes: int) -> dict[str, Any]:
    """Medians of times, the largest of memory."""
    most = {key: max(run[key] for run in runs) for key in runs[0] if key.endswith("_bytes")}
    packed = most["packed_bytes"]
    return {
        "seconds": round(statistics.median(run["seconds"] for run in runs), 3),
        "peak_to_packed": round(most["peak_bytes"] / packed, 3),
        "peak_served_to_packed_and_kv": round(most["peak_served_bytes"] / (packed + kv_bytes), 3),
        **most,
        "seconds_runs": [round(run["seconds"], 3) for run in runs],
    }


def measure(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All starts of one model."""
    files = sorted(model.parent.glob(model.name + ".*.pack"))
    if files:
        sys.exit(f"{files[0]} exists: remove it, this study writes its own")
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "written": [], "read": []}
    model.read_bytes()  # into the page cache
    try:
        for _ in range(args.rounds):
            runs["plain"].append(start(model, False, args))
            for file in model.parent.glob(model.name + ".*.pack"):
                file.unlink()
            for state in ("written", "read"):
                run = start(model, True, args)
                if run["cache"] != state:
                    sys.exit(f"the pack cache was {run['cache']}, expected {state}")
                runs[state].append(run)
    finally:
        for file in model.parent.glob(model.name + ".*.pack"):
            file.unlink()
    return {
        "model": model.name,
        "file_bytes": model.stat().st_size,
        "device": runs["plain"][0]["device"],
        "kv_pool_bytes": args.kv_mib << 20,
        **{state: summarise(found, args.kv_mib << 20) for state, found in runs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", type=Path, nargs="+", help=".flm files")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--kv-mib", type=int, default=32, help="the KV pool to fill (default 32)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    result = {
        **study.origin(),
        "results": [measure(model, args) for model in args.models],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
