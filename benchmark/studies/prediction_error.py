#!/usr/bin/env python3
"""How far the latency model is off, step by step, while an engine serves.

    python benchmark/studies/prediction_error.py -p demo/demo.flm --output error.json

After a calibration a workload runs at saturation, and each step's prediction, made before the step
ran, is held against its duration: |predicted - duration| / duration. Beside it, what is the model's
fault and what the machine's:

* without noise: the median of duration / predicted over 15 decode steps in a row of equally many
  rows, less 1; what the model is off when single steps' disturbances are taken out;
* hindsight: the same model fitted to all steps of the run, after it;
* repeats: the same step again and again (1 and 8 decode rows, a prompt of 64 tokens) against the
  median of the 15 steps around it; no model can do better.

Then the machine changes while 8 rows decode and prompts come in: processes that compute without end
take its cores away, and later give them back. The prediction is back at the first step from which
on the median of duration / predicted over 16 steps is within a tenth of 1.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import study
from numpy.lib.stride_tricks import sliding_window_view
from shared_machine import busy

from slicellm import _core
from slicellm.bench.arrivals import Gamma
from slicellm.bench.lengths import Uniform
from slicellm.bench.runner import Runner
from slicellm.bench.saturation import SAMPLE, offered_work
from slicellm.bench.workload import Workload, load_workload, prompt_ids
from slicellm.cli.profiles import predicted_seconds
from slicellm.model import Model

Steps = dict[str, npt.NDArray[Any]]
Errors = npt.NDArray[np.float64]

MAX_ROWS = 64
AROUND = 15  # steps whose median a repeated step is held against
IN_A_ROW = 16  # steps whose median says that the prediction is back
RUNS = (("edge", "pace"), ("edge", "orca"), ("mixed", "sarathi:token_budget=128"))


def workload_of(name: str) -> Workload:
    """`edge`, or `mixed`: edge with prompts of 32 to 512 tokens, which a budget of tokens a step
    cuts, so that most steps hold prompts and decode rows."""
    edge = load_workload("edge")
    if name == "edge":
        return edge
    return edge.with_lengths("prompt_tokens", Uniform(32, 512))


def spread(errors: Errors) -> dict[str, float]:
    """Percentiles of relative errors, and of how many steps."""
    if len(errors) == 0:
        return {"steps": 0}
    p50, p95, p99 = np.percentile(errors, [50, 95, 99]).round(4).tolist()
    return {"steps": len(errors), "p50": p50, "p95": p95, "p99": p99}


def by_kind(predicted: npt.NDArray[np.float64], steps: Steps) -> dict[str, Any]:
    """Errors of all steps and by what they hold."""
    errors = np.abs(predicted - steps["duration"]) / steps["duration"]
    prompts = steps["prefill_tokens"] > 0
    kinds = {"all": errors, "decode only": errors[~prompts], "with prefill": errors[prompts]}
    return {kind: spread(found) for kind, found in kinds.items()}


def hindsight(steps: Steps) -> npt.NDArray[np.float64]:
    """What a model fitted to these very steps says of them."""
    columns = ("tokens", "rows", "context", "chunk_work", "swap_bytes", "prefill_tokens")
    rows = zip(*(steps[c].tolist() for c in columns), (1000 * steps["duration"]).tolist())
    return predicted_seconds(_core.LatencyModel.fit(list(rows)), steps)


def without_noise(steps: Steps) -> dict[str, float]:
    """How far the median of AROUND decode steps in a row of equally many rows is off."""
    decodes = steps["prefill_tokens"] == 0
    ratios, rows = (steps["duration"] / steps["predicted"])[decodes], steps["rows"][decodes]
    levels = [
        np.median(sliding_window_view(ratios[rows == n], AROUND), axis=1)
        for n in np.unique(rows)
        if (rows == n).sum() >= AROUND
    ]
    return spread(np.abs(np.concatenate([*levels, np.array([])]) - 1))


def serve(
    model: Model, belief: str, name: str, policy: str, args: argparse.Namespace
) -> dict[str, Any]:
    """A workload at saturation: errors online and in hindsight."""
    workload = workload_of(name)
    _, prompts, outputs = workload.lengths(SAMPLE, args.seed)
    work = offered_work(prompts, outputs, _core.LatencyModel.from_json(belief), MAX_ROWS)
    columns = workload.columns(args.tasks, args.seed, Gamma(work.saturation), work.slo_scale)
    vocabulary, ends = model.spec["vocab"], model.spec["eos_ids"]
    ids = [
        prompt_ids(i, n, args.seed, vocabulary, ends)
        for i, n in enumerate(columns.prompt_tokens.tolist())
    ]
    runner = Runner(model.core, belief, max_rows=MAX_ROWS, loop=args.loop)
    runner.warm_up(ids[0])
    steps = runner.run(policy, columns.tasks(), ids).steps
    return {
        "workload": name,
        "policy": policy,
        "online": by_kind(steps["predicted"], steps),
        "without_noise": without_noise(steps),
        "hindsight": by_kind(hindsight(steps), steps),
    }


def make_engine(model: Model, belief: str, loop: str, rows: int) -> _core.Engine:
    latency = _core.LatencyModel.from_json(belief)
    return _core.Engine(model.core, f"orca:max_batch={rows}", latency, loop=loop, max_rows=rows)


def repeats(model: Model, belief: str, args: argparse.Namespace) -> dict[str, Any]:
    """How far equal steps are from each other."""
    found = {}
    for name, tasks, tokens, prompt in (
        ("1 decode row", 1, args.repeats, 16),
        ("8 decode rows", 8, args.repeats, 16),
        ("prompt of 64 tokens", args.repeats // 4, 1, 64),
    ):
        engine = make_engine(model, belief, "plain", min(tasks, 8) if tokens > 1 else 1)
        ids = list(range(3, 3 + prompt))
        task = _core.TaskSpec(ids, max_tokens=tokens, ignore_eos=True)
        for handle in engine.submit_all([task] * tasks):
            handle.wait()
        engine.wait_idle()
        steps = engine.drain_steps()
        engine.close()
        times = steps["duration"][(steps["prefill_tokens"] > 0) == (tokens == 1)]
        windows = sliding_window_view(times, AROUND)
        middle = windows[:, AROUND // 2]
        found[name] = spread(np.abs(np.median(windows, axis=1) - middle) / middle)
    return found


def steps_until_back(ratios: npt.NDArray[np.float64]) -> int | None:
    """The first step from which on the median over IN_A_ROW is within a tenth of 1."""
    if len(ratios) < IN_A_ROW:
        return None
    level = np.median(sliding_window_view(ratios, IN_A_ROW), axis=1)
    back = np.flatnonzero((level < 1.1) & (level > 1 / 1.1))
    return int(back[0]) if len(back) else None


def change(model: Model, belief: str, args: argparse.Namespace) -> dict[str, Any]:
    """Steps before, while and after other processes take the cores."""
    engine = make_engine(model, belief, args.loop, 8)
    rng = np.random.default_rng(args.seed)
    vocab = model.spec["vocab"]

    def task() -> _core.TaskSpec:
        prompt = rng.integers(3, vocab, rng.integers(16, 65)).tolist()
        return _core.TaskSpec(prompt, max_tokens=int(rng.integers(16, 65)), ignore_eos=True)

    handles = [engine.submit(task()) for _ in range(16)]

    def run(seconds: float) -> float:
        """Keeps 16 tasks in flight for so long; the engine's time at the end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for i, handle in enumerate(handles):
                if handle.done:
                    handles[i] = engine.submit(task())
            engine.wait_updates(0.05)
        return engine.now()

    taken = run(args.phase)
    with busy(args.busy):
        given_back = run(args.phase)
    run(args.phase)
    for handle in handles:
        engine.cancel(handle.id)
    engine.wait_idle()
    steps = engine.drain_steps()
    engine.close()
    ratios = steps["duration"] / steps["predicted"]
    marks = np.searchsorted(steps["start"], [0.0, taken, given_back, np.inf])
    phases = {}
    for name, first, last in zip(("alone", "cores taken", "given back"), marks, marks[1:]):
        own = ratios[first:last]
        phases[name] = {
            "level_of_first_steps": float(np.median(own[:8])) if len(own) else None,
            "steps_until_back": steps_until_back(own),
            "after_50_steps": spread(np.abs(1 / own[50:] - 1)),
        }
    return {"busy_processes": args.busy, "phases": phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-p", "--path", required=True, help="the model")
    parser.add_argument("-t", "--threads", type=int, help="default: every usable core")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--loop", default="plain", choices=("plain", "overlap"))
    parser.add_argument("--seconds", type=float, default=10.0, help="of calibration (default 10)")
    parser.add_argument("--tasks", type=int, default=60, help="of each workload (default 60)")
    parser.add_argument("--repeats", type=int, default=400, help="of an equal step (default 400)")
    parser.add_argument(
        "--busy", type=int, default=os.cpu_count(), help="processes (default: cores)"
    )
    parser.add_argument(
        "--phase", type=float, default=8.0, help="seconds of each phase (default 8)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="result file")
    args = parser.parse_args()
    model = Model(args.path, device=args.device, threads=args.threads)
    belief = _core.calibrate(model.core, args.seconds).to_json()
    result = {
        **study.origin(),
        "device": model.core.device,
        "seed": args.seed,
        "calibration_s": args.seconds,
        "loop": args.loop,
        "repeats": repeats(model, belief, args),
        "runs": [serve(model, belief, *run, args) for run in RUNS],
        "change": change(model, belief, args),
    }
    print(json.dumps(result, indent=1))
    study.write(args.output, result)


if __name__ == "__main__":
    main()
