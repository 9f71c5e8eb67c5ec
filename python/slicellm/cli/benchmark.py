"""`benchmark`: a workload under one or more scheduling policies, and who kept how many promises."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from .._core import make_policy
from ..bench import bound, checks, eventlog, plot, report
from ..bench.machine import Machine, ModelMachine, Outcome, SimulatedMachine, Wanted
from ..bench.profiles import load_profile
from ..bench.scenario import encoded, read_source
from ..bench.tasks import TaskColumns
from ..calibration import latency_model
from ..simulation import DEFAULT_PROFILE
from . import benchmark_flags as flags
from . import benchmark_sweeps as sweeps
from .benchmark_study import Study
from .common import load_model, run_command

Runs = dict[tuple[str, int], Outcome]  # by policy and seed


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
    machine = _machine(args)
    wanted = Wanted(
        args.metric_percentiles,
        goodput,
        event_log=bool(args.event_log or args.plot or args.test_mode),
        outputs=bool(args.output),
    )
    source = encoded(source, machine.encode)
    study = Study(args, machine, source, policies, seeds, wanted, report.make_console())
    if args.capacity is not None:
        sweeps.capacity(study)
    elif args.rates is not None or args.loads is not None:
        sweeps.sweep(study)
    else:
        _compare(args, study)


def _machine(args: argparse.Namespace) -> Machine:
    if args.executor == "sim":
        profile = load_profile(args.latency_profile or DEFAULT_PROFILE)
        if args.jitter is not None:
            profile = replace(profile, jitter=args.jitter, residuals=())
        rows = args.batch or profile.max_rows
        return SimulatedMachine(
            profile,
            rows,
            args.kv_cache_limit,
            args.instances or 1,
            args.dispatch or "round_robin",
            args.loop,
        )
    model = load_model(args)
    return ModelMachine(
        model, latency_model(model), args.batch or 64, args.kv_cache_limit, args.loop
    )


def _compare(args: argparse.Namespace, study: Study) -> None:
    """Every policy on the same tasks, at one rate."""
    console, policies, seeds = study.console, study.policies, study.seeds
    scenario = study.scenario()
    tasks = study.tasks(scenario)
    console.print(f"{study.machine.about}\n{scenario.describe()}", soft_wrap=True)
    runs: Runs = {}
    with ExitStack() as stack:
        log = None
        if args.event_log:
            log = stack.enter_context(open(args.event_log, "w", encoding="utf-8"))
        for (policy, seed), outcome in study.run(scenario, tasks):
            runs[policy, seed] = outcome
            if log is not None and outcome.log is not None:
                eventlog.write(log, outcome.log, policy, seed)
    computed = [{policy: runs[policy, seed].metrics for policy in policies} for seed in seeds]
    if args.test_mode:
        for (policy, _), run in runs.items():
            texts = [o["text"] for o in run.outputs] if args.executor != "sim" else None
            if run.log is not None:
                report.print_tokens(console, policy, run.log, texts)
    title, results, spread = f"{scenario.source.name}, seed {seeds[0]}", computed[0], None
    if len(seeds) > 1:
        title = f"{scenario.source.name}, mean ± standard deviation of {len(seeds)} seeds"
        results, spread = report.mean(computed), report.spread(computed)
    report.print_results(results, title, spread, console)
    if args.executor == "sim":
        virtual = sum(run.metrics["makespan_s"] for run in runs.values())
        wall = sum(run.metrics["wall_s"] for run in runs.values())
        console.print(f"{virtual:.0f} s of virtual time in {wall:.2f} s")
    if args.save_result:
        result = report.result_object(study.config(scenario), seeds, computed)
        report.write_result(args.save_result, result)
    if args.output:
        _write_outputs(args.output, tasks, runs)
    if args.plot:
        logs = {p: found for p in policies if (found := runs[p, seeds[0]].log) is not None}
        plot.save(args.plot, results, logs, f"{scenario.headline()}, {title.partition(', ')[2]}")


def _check_outputs(args: argparse.Namespace) -> None:
    """Output files can be written, before anything takes time."""
    for flag in ("save_result", "event_log", "plot", "output"):
        if getattr(args, flag) is not None:
            report.check_writable(getattr(args, flag), f"--{flag.replace('_', '-')}")
    problem = bound.missing() if args.bound else None
    if problem is not None:
        raise checks.invalid("--bound", "the flag", problem)
    problem = plot.missing() if args.plot else None
    if problem is not None:
        raise checks.invalid("--plot", args.plot, problem)


def _write_outputs(path: str, tasks: Mapping[int, TaskColumns], runs: Runs) -> None:
    """One JSON line a task: what was asked and what was answered (nothing in a simulation)."""
    with open(path, "w", encoding="utf-8") as file:
        for (policy, seed), run in runs.items():
            for number, (task, output) in enumerate(zip(tasks[seed].tasks(), run.outputs)):
                line = {
                    "policy": policy,
                    "seed": seed,
                    "task": number,
                    "class": task.class_name,
                    "prompt": task.prompt,
                    "prompt_tokens": task.prompt_tokens,
                    "output": output["text"],
                    "output_tokens": output["output_tokens"],
                    "reason": output["reason"],
                    "error": output["error"],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
