#!/usr/bin/env python3
"""How far the simulator is from the machine: the same arrivals run for real and simulated.

A cell is a load and a policy: calibrate, run for real, calibrate, run for real again, then simulate
the same tasks on the profile that the second calibration made. Each real run is also replayed: its
recorded plans, step by step, through the profile measured just before it. The two real runs beside
each other say how far this machine is from itself.

    python benchmark/studies/fidelity.py -p demo/demo.flm
    python benchmark/studies/fidelity.py --report
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import study

from slicellm import _core
from slicellm.bench import metrics
from slicellm.bench.arrivals import Gamma
from slicellm.bench.profiles import Profile
from slicellm.bench.runner import Run, Runner
from slicellm.bench.tasks import TaskColumns
from slicellm.bench.workload import load_workload, prompt_ids
from slicellm.cli import benchmark_flags, workload_flags
from slicellm.cli.profiles import measured_profile, predicted_seconds
from slicellm.model import Model
from slicellm.simulation import simulate, work_on

POLICIES = ("slice", "orca", "sarathi", "pace")
LOADS = (1.0, 2.0, 3.0)
KEYS = ("load", "policy")
STEP_BAR, TOTAL_BAR, ATTAINMENT_BAR, SPEED_BAR = 0.05, 0.02, 0.03, 200.0


def replay(profile: Profile, steps: dict[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Predicted against measured step times of a run's recorded plans: the median of the single
    errors, and the error of their sum."""
    predicted = predicted_seconds(profile.truth(), steps)
    measured = steps["duration"]
    places = np.linspace(0, 1, len(profile.residuals))
    mean = float(np.trapezoid(profile.residuals, places))  # of what the simulator draws
    return {
        "step_error_p50": float(np.median(np.abs(predicted - measured) / measured)),
        "total_error": float(mean * predicted.sum() / measured.sum() - 1),
    }


class Cell:
    """Measures one cell after the other on a model."""

    def __init__(self, model: Model, tasks: int, seed: int, seconds: float) -> None:
        self.model, self.tasks, self.seed, self.seconds = model, tasks, seed, seconds
        self.workload = load_workload("edge")

    def calibrate(self) -> tuple[Profile, str]:
        latency = _core.calibrate(self.model.core, self.seconds, None)
        return measured_profile(self.model, latency, "here", self.seconds), latency.to_json()

    def real(self, belief: str, policy: str, tasks: TaskColumns) -> Run:
        vocabulary, ends = self.model.spec["vocab"], self.model.spec["eos_ids"]
        lengths = tasks.prompt_tokens.tolist()
        prompts = [prompt_ids(i, n, self.seed, vocabulary, ends) for i, n in enumerate(lengths)]
        runner = Runner(self.model.core, belief)
        runner.warm_up(prompts[0])
        return runner.run(policy, tasks.tasks(), prompts)

    def __call__(self, load: float, policy: str) -> dict[str, Any]:
        runs: list[dict[str, Any]] = []
        tasks: TaskColumns | None = None
        for _ in range(2):
            profile, belief = self.calibrate()
            if tasks is None:  # the first calibration sets arrivals and targets of the cell
                work = work_on(self.workload, profile)
                rate = load * work.saturation
                tasks = self.workload.columns(self.tasks, self.seed, Gamma(rate), work.slo_scale)
            run = self.real(belief, policy, tasks)
            found = metrics.compute(run.log, run.steps)
            runs.append({**told(found), **replay(profile, run.steps)})
        assert tasks is not None
        learned = _core.LatencyModel.from_json(belief)
        run_s = simulate(tasks, policy, profile, seed=self.seed, belief=learned)
        speed = run_s.metrics["makespan_s"] / run_s.metrics["wall_s"]
        return {"rate": rate, "real": runs, "simulated": {**told(run_s.metrics), "speed": speed}}


def told(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("attainment", "makespan_s")}


def judge(cell: study.Cell) -> dict[str, Any]:
    """The differences of a cell."""
    first, second = cell["real"]
    simulated = cell["simulated"]
    centre = (first["attainment"] + second["attainment"]) / 2
    return {
        "step": np.mean([r["step_error_p50"] for r in cell["real"]]),
        "total": max((r["total_error"] for r in cell["real"]), key=abs),
        "apart": abs(first["attainment"] - second["attainment"]),
        "off": abs(simulated["attainment"] - centre),
        "pace": second["makespan_s"] / first["makespan_s"] - 1,
        "speed": simulated["speed"],
    }


def summary(results: Path) -> str:
    setup, cells = study.read_setup(results), study.read_cells(results)
    judged = [judge(cell) for cell in cells]

    def count(met: Sequence[bool]) -> str:
        return f"{sum(met)} of {len(met)} cells"

    rows = [
        (
            f"{cell['load']:g}x",
            cell["policy"],
            f"{100 * j['step']:.1f}",
            f"{100 * j['total']:+.1f}",
            " and ".join(f"{r['attainment']:.3f}" for r in cell["real"]),
            f"{cell['simulated']['attainment']:.3f}",
            f"{j['off']:.3f}",
            f"{100 * j['pace']:+.1f}",
            f"{j['speed']:,.0f}x",
        )
        for cell, j in zip(cells, judged)
    ]
    head = (
        "load", "policy", "step error p50 %", "total error %", "attainment, real",
        "simulated", "apart", "second real run's length %", "faster than real",
    )  # fmt: skip
    step = [bool(j["step"] < STEP_BAR) for j in judged]
    total = [abs(j["total"]) < TOTAL_BAR for j in judged]
    close = [j["off"] <= max(ATTAINMENT_BAR, j["apart"]) for j in judged]
    fast = [j["speed"] >= SPEED_BAR for j in judged]
    lines = [
        "# Fidelity: real runs beside simulated ones",
        "",
        f"{setup['model']} on {setup['device']}, {setup['tasks']} tasks of `edge` a run, seed "
        f"{setup['seed']}, {setup['seconds']:g} s of calibration before each real run; commit "
        f"{setup['commit']}.",
        "",
        *study.table(head, rows),
        "",
        *study.table(
            ("bar", "met in"),
            (
                (f"step error p50 under {STEP_BAR:.0%}", count(step)),
                (f"total error of both replays under {TOTAL_BAR:.0%}", count(total)),
                (
                    f"attainment within {ATTAINMENT_BAR} or the spread of the two real runs",
                    count(close),
                ),
                (f"at least {SPEED_BAR:g} times faster than real", count(fast)),
            ),
        ),
        "",
        study.text_beside(__file__),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-p", "--path", help="the model")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default cpu)")
    parser.add_argument("--tasks", type=int, default=40, help="tasks a run (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a calibration (default 6)")
    parser.add_argument("--loads", type=workload_flags.listed(float), default=list(LOADS))
    parser.add_argument("--policy", type=benchmark_flags.split_policies, default=list(POLICIES))
    parser.add_argument("--results", type=Path, default=study.RESULTS / "fidelity")
    parser.add_argument("--report", action="store_true", help="only the summary, no runs")
    args = parser.parse_args()
    if not args.report:
        if args.path is None:
            parser.error("-p MODEL is needed, except with --report")
        model = Model(args.path, device=args.device, threads=args.threads)
        study.begin(
            args.results,
            {
                "model": Path(model.path).name,
                "device": model.device,
                "tasks": args.tasks,
                "seed": args.seed,
                "seconds": args.seconds,
            },
        )
        cell = Cell(model, args.tasks, args.seed, args.seconds)
        grid = [(load, policy) for load in args.loads for policy in args.policy]
        study.fill(args.results, KEYS, grid, cell)
    (args.results / "summary.md").write_text(summary(args.results), encoding="utf-8")


if __name__ == "__main__":
    main()
