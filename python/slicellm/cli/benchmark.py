"""`benchmark`: a workload under one or more scheduling policies, and who kept how many promises."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .._core import make_policy
from ..bench import checks, eventlog, metrics, plot, report
from ..bench.runner import Run, Runner
from ..bench.scenario import Scenario, check_lengths, make_scenario, read_source
from ..bench.tasks import WorkloadTask
from ..calibration import latency_model
from ..model import Model
from . import benchmark_flags as flags
from .common import load_model, run_command

Tasks = Mapping[int, Sequence[WorkloadTask]]  # by seed
Runs = dict[tuple[str, int], Run]  # by policy and seed


def main(arguments: Sequence[str] | None = None, prog: str = "benchmark") -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong input."""
    args = flags.build_parser(prog).parse_args(arguments)
    return run_command(prog, lambda: _benchmark(args))


def _benchmark(args: argparse.Namespace) -> None:
    # Everything that can be wrong without a model is found before one is loaded.
    flags.check(args)
    flags.note_ineffective(args)
    policies, seeds = flags.policy_names(args), flags.seeds(args)
    for policy in policies:
        make_policy(policy)
    goodput = flags.parse_goodput(args.goodput) if args.goodput else None
    _check_outputs(args)
    source = read_source(args)

    console = report.make_console()
    model = load_model(args)
    latency = latency_model(model)
    scenario = make_scenario(args, source, lambda text: _encode(model, text), latency)
    tasks = {seed: scenario.tasks(seed) for seed in seeds}
    for planned in tasks.values():
        check_lengths(planned, model.spec["max_positions"])
    console.print(f"{model.path} on {model.device}\n{scenario.describe()}", soft_wrap=True)
    runner = Runner(
        model.core, latency.to_json(), model.token_bytes, args.batch, args.kv_cache_limit
    )
    runs = _run_all(args, console, model, runner, scenario, policies, tasks)

    computed = [
        {
            policy: metrics.compute(run.log, run.steps, args.metric_percentiles, goodput)
            for policy in policies
            for run in [runs[policy, seed]]
        }
        for seed in seeds
    ]
    if args.test_mode:
        for (policy, _), run in runs.items():
            report.print_tokens(console, policy, run.log, [o["text"] for o in run.outputs])
    title, results, spread = f"{source.name}, seed {seeds[0]}", computed[0], None
    if len(seeds) > 1:
        title = f"{source.name}, mean ± standard deviation of {len(seeds)} seeds"
        results, spread = report.mean(computed), report.spread(computed)
    report.print_results(results, title, spread, console)
    if args.save_result:
        config = _config(args, model, scenario, policies)
        report.write_result(args.save_result, report.result_object(config, seeds, computed))
    if args.output:
        _write_outputs(args.output, tasks, runs)
    if args.plot:
        logs = {policy: runs[policy, seeds[0]].log for policy in policies}
        plot.save(args.plot, results, logs, f"{scenario.headline()}, {title.partition(', ')[2]}")


def _check_outputs(args: argparse.Namespace) -> None:
    """Output files can be written, before anything takes time."""
    for flag in ("save_result", "event_log", "plot", "output"):
        if getattr(args, flag) is not None:
            report.check_writable(getattr(args, flag), f"--{flag.replace('_', '-')}")
    problem = plot.missing() if args.plot else None
    if problem is not None:
        raise checks.invalid("--plot", args.plot, problem)


def _encode(model: Model, text: str) -> list[int]:
    """A prompt as a user's chat message, in the model's own chat format."""
    return model.encode([{"role": "user", "content": text}])


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


def _run_all(
    args: argparse.Namespace,
    console: Console,
    model: Model,
    runner: Runner,
    scenario: Scenario,
    policies: Sequence[str],
    tasks: Tasks,
) -> Runs:
    """Every policy on every seed's tasks, with progress; the event log grows with each run."""
    runs: Runs = {}
    with ExitStack() as stack:
        log = None
        if args.event_log:
            log = stack.enter_context(open(args.event_log, "w", encoding="utf-8"))
        shown = stack.enter_context(_progress(console))
        for seed, planned in tasks.items():
            prompts = scenario.prompts(planned, seed, model.spec["vocab"], model.spec["eos_ids"])
            if not runs:
                runner.warm_up(prompts[0])
            for policy in policies:
                bar = shown.add_task(f"{policy}, seed {seed}", total=len(planned))

                def update(ended: int, bar: Any = bar) -> None:
                    shown.update(bar, completed=ended)

                run = runner.run(policy, planned, prompts, scenario.in_flight, update)
                shown.remove_task(bar)
                runs[policy, seed] = run
                if log is not None:
                    eventlog.write(log, run.log, policy, seed)
    return runs


def _config(
    args: argparse.Namespace, model: Model, scenario: Scenario, policies: Sequence[str]
) -> dict[str, Any]:
    """Every flag as resolved, and what else the numbers depend on."""
    work = scenario.work
    resolved = ("model", "path", "seed", "seeds", "slice", "ratios")
    return {
        **{flag: value for flag, value in vars(args).items() if flag not in resolved},
        "policy": list(policies),
        "model": model.path,
        "family": model.spec["family"],
        "weight_bytes": model.weight_bytes,
        "device": model.device,
        "threads": model.threads,
        "workload": scenario.source.name,
        "total_tasks": scenario.count,
        "rate": scenario.rate,
        "in_flight": scenario.in_flight,
        "slo_scale": scenario.slo_scale,
        "saturation": work.saturation,
        "load": None if scenario.rate is None else scenario.rate / work.saturation,
        "prefill_ms": work.prefill_ms,
        "decode_ms": work.decode_ms,
        "decode_1_ms": work.decode_1_ms,
        "mean_context": work.mean_context,
        "commit": report.commit(),
        "machine": report.machine(),
    }


def _write_outputs(path: str, tasks: Tasks, runs: Runs) -> None:
    """Prompt and answer of each task, one JSON object a line."""
    with open(path, "w", encoding="utf-8") as file:
        for (policy, seed), run in runs.items():
            for number, (task, output) in enumerate(zip(tasks[seed], run.outputs)):
                line = {
                    "policy": policy,
                    "seed": seed,
                    "task": number,
                    "class": task.class_name,
                    "prompt": task.prompt,
                    "prompt_tokens": output["prompt_tokens"],
                    "output": output["text"],
                    "output_tokens": len(output["token_ids"]),
                    "reason": output["reason"],
                    "error": output["error"],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
