#!/usr/bin/env python3
"""Minutes of random load with little memory for K and V: does anything leak, hang or stutter?

    python benchmark/studies/random_load.py -p demo/demo.flm --output load.json

Each policy in turn, three rounds of them, serves tasks that arrive at random, with random prompts,
answers, targets and deadlines, some of them cancelled in the middle, while the KV pool holds only a
few of them, so that tasks are swapped out, dropped and computed again. Then it must be idle. What
is told:

* ends: every task ended, within a minute after the last one came, and the ledger of blocks is whole
  and empty;
* memory: resident memory of the process (on the CPU that is the device's, too) and free memory of
  the device, after each round; in the first one threads and pools take what they keep;
* steps: the time of a decode step that moves no K and V over the median time of such steps with as
  many rows, of numbers of rows that came up at least 50 times: its 99th percentile. Beside it the
  plain percentiles of all decode steps, which hold one row or many.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import study

from slicellm import _core
from slicellm.model import Model

POLICIES = ("pace", "slice", "fastserve")
IN_FLIGHT = 24  # most tasks at once
LONGEST_PROMPT, LONGEST_ANSWER = 160, 96  # tokens
LEAST_STEPS = 50  # of a number of rows, to be judged
ROUNDS = 3
PATIENCE = 60.0  # seconds for the last tasks to end


def resident_bytes() -> int:
    """Of this process, after what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Load:
    """Random tasks on engines of one model; the same seed draws the same tasks, but when each comes
    and is cancelled depends on the clock."""

    def __init__(
        self, model: _core.Model, belief: str, seed: int, loop: str, blocks: int, rate: float
    ) -> None:
        self.model, self.belief, self.loop, self.rate = model, belief, loop, rate
        self.rng = np.random.default_rng([seed, 0])  # of when
        self.task_rng = np.random.default_rng([seed, 1])  # of what
        self.pools = {
            "kv_cache_bytes": blocks * model.kv_block_bytes,
            "host_kv_bytes": blocks // 2 * model.kv_block_bytes,
        }

    def task(self) -> _core.TaskSpec:
        rng = self.task_rng
        deadline = float(rng.uniform(50, 5000)) if rng.random() < 0.3 else None
        return _core.TaskSpec(
            rng.integers(3, self.model.spec["vocab"], rng.integers(1, LONGEST_PROMPT)).tolist(),
            max_tokens=int(rng.integers(1, LONGEST_ANSWER)),
            ignore_eos=True,
            temperature=float(rng.choice([0.0, 0.8])),
            seed=int(rng.integers(2**32)),
            utility=float(rng.choice([1, 10, 100])),
            ttft_ms=float(rng.uniform(100, 4000)),
            tpot_ms=float(rng.uniform(10, 400)),
            deadline_ms=deadline,
            stop_at_deadline=deadline is not None and rng.random() < 0.5,
        )

    def serve(self, policy: str, seconds: float) -> dict[str, Any]:
        """Random load for so long, then its end. Raises an Error for a task that does not end, and
        ends the program if one was lost."""
        engine = _core.Engine(
            self.model,
            policy,
            _core.LatencyModel.from_json(self.belief),
            loop=self.loop,
            **self.pools,
        )
        try:
            handles = self._submit(engine, seconds)
            limit = time.monotonic() + PATIENCE
            reasons = Counter(h.wait(max(0.0, limit - time.monotonic()))["reason"] for h in handles)
            engine.wait_idle()
            engine.check_integrity()
            stats = engine.stats()
            for pool in ("blocks", "host_blocks"):
                if stats[f"free_{pool}"] != stats[f"total_{pool}"]:
                    raise SystemExit(f"{policy}: {pool} that nobody holds are not free: {stats}")
            if reasons["error"]:
                raise SystemExit(f"{policy}: tasks that ended in an error: {reasons}")
            events = Counter(kind for _, _, kind, _ in engine.drain_events())
            return {
                "policy": policy,
                "tasks": len(handles),
                "ends": dict(reasons),
                "moves": {k: events[k] for k in ("preempt", "swap_out", "swap_in", "resume")},
                **step_times(engine.drain_steps()),
            }
        finally:
            engine.close()

    def _submit(self, engine: _core.Engine, seconds: float) -> list[_core.TaskHandle]:
        """Tasks at random moments, of which one in six is cancelled at another."""
        handles: list[_core.TaskHandle] = []
        live: list[_core.TaskHandle] = []
        cancel: list[tuple[float, int]] = []  # when, id
        now = time.monotonic()
        end = now + seconds
        while now < end:
            time.sleep(min(self.rng.exponential(1 / self.rate), end - now))
            now = time.monotonic()
            live = [handle for handle in live if not handle.done]
            if len(live) < IN_FLIGHT:
                live.append(engine.submit(self.task()))
                handles.append(live[-1])
                if self.rng.random() < 1 / 6:
                    cancel.append((now + self.rng.exponential(0.5), handles[-1].id))
            for when, task in cancel:
                if when <= now:
                    engine.cancel(task)
            cancel = [(when, task) for when, task in cancel if when > now]
        return handles


def step_times(steps: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Times of decode steps without copies, as they are and over the median of equal rows."""
    decodes = (steps["prefill_tokens"] == 0) & (steps["swap_bytes"] == 0) & (steps["rows"] > 0)
    rows, times = steps["rows"][decodes], steps["duration"][decodes]
    common = [n for n, count in Counter(rows.tolist()).items() if count >= LEAST_STEPS]
    judged = [times[rows == n] / np.median(times[rows == n]) for n in common]
    ratios = np.concatenate(judged) if judged else np.array([])
    return {
        "steps": len(steps["start"]),
        "steps_with_copies": int((steps["swap_bytes"] > 0).sum()),
        "decode_steps": int(decodes.sum()),
        "decode_ms": percentiles(1000 * times),
        "judged_steps": len(ratios),
        "over_median_of_equal_rows": percentiles(ratios),
    }


def percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    if len(values) == 0:
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99, 100)}


def run(load: Load, policies: Sequence[str], seconds: float) -> dict[str, Any]:
    """Rounds of all policies; memory after each."""

    served, memory = [], []
    for _ in range(ROUNDS):
        served += [load.serve(policy, seconds / ROUNDS / len(policies)) for policy in policies]
        memory.append({"resident": resident_bytes(), "device_free": load.model.free_memory})
    return {"served": served, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-p", "--path", required=True, help="the model")
    parser.add_argument("-t", "--threads", type=int, help="default: every usable core")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--loop", default="plain", choices=("plain", "overlap"))
    parser.add_argument("--policy", nargs="+", default=POLICIES)
    parser.add_argument(
        "--blocks", type=int, default=40, help="KV blocks of 16 tokens (default 40)"
    )
    parser.add_argument("--rate", type=float, default=8.0, help="tasks a second (default 8)")
    parser.add_argument("--seconds", type=float, default=180.0, help="of load (default 180)")
    parser.add_argument("--calibration", type=float, default=8.0, help="seconds of it (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="result file")
    args = parser.parse_args()
    model = Model(args.path, device=args.device, threads=args.threads).core
    belief = _core.calibrate(model, args.calibration).to_json()
    load = Load(model, belief, args.seed, args.loop, args.blocks, args.rate)
    result = {
        **study.origin(),
        "device": model.device,
        "seed": args.seed,
        "loop": args.loop,
        "blocks": args.blocks,
        "tasks_per_s": args.rate,
        "seconds": args.seconds,
        **run(load, args.policy, args.seconds),
    }
    print(json.dumps(result, indent=1))
    study.write(args.output, result)


if __name__ == "__main__":
    main()
