"""From a command line to the tasks of a run: source of tasks, offered work, rate, arrivals."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from slicellm.bench import checks, taskfile
from slicellm.bench.arrivals import (
    MAX_RATE,
    Arrivals,
    AtOnce,
    Gamma,
    Intervals,
    Ramp,
    Recorded,
    Uniform,
    parse_arrivals,
)
from slicellm.bench.lengths import parse_lengths_text, read_trace
from slicellm.bench.saturation import SAMPLE, Latency, OfferedWork, offered_work
from slicellm.bench.tasks import Counts, TaskColumns, WorkloadTask
from slicellm.bench.workload import (
    LengthField,
    Workload,
    check_utilities,
    class_workload,
    generator,
    load_workload,
    parse_slo_class,
    trace_workload,
)

DEFAULT_TASKS = 60
Encode = Callable[[str], Sequence[int]]


class Source(Protocol):
    """Where tasks come from."""

    @property
    def name(self) -> str: ...
    @property
    def default_tasks(self) -> int: ...
    @property
    def default_slo_scale(self) -> float | None: ...  # None = auto

    def lengths(self) -> tuple[Counts, Counts]:
        """Prompt and output lengths that stand for the source."""

    def own_rate(self) -> float | None:
        """The rate in tasks/s that the source itself names."""

    def arrivals(self, rate: float | None, saturation: float) -> Arrivals:
        """The source's own arrivals. `rate` in tasks/s if one was asked for; else the source may
        fall back on `saturation`."""

    def columns(self, n: int, seed: int, arrivals: Arrivals, slo_scale: float) -> TaskColumns:
        """n tasks, by arrival."""


@dataclass(frozen=True)
class GeneratedTasks:
    """A workload of random tasks or of a trace's lengths."""

    workload: Workload
    default_tasks: int = DEFAULT_TASKS
    default_slo_scale: float | None = None

    @property
    def name(self) -> str:
        return self.workload.name

    def lengths(self) -> tuple[Counts, Counts]:
        _, prompts, outputs = self.workload.lengths(SAMPLE, seed=0)
        return prompts, outputs

    def own_rate(self) -> float | None:
        rate = self.workload.arrivals.get("rate")
        return (
            None
            if rate is None
            else checks.number("workload: arrivals.rate", rate, 0, MAX_RATE, above=True)
        )

    def arrivals(self, rate: float | None, saturation: float) -> Arrivals:
        trace = self.workload.trace
        if trace is not None and trace.arrived_at is not None:
            return Recorded(tuple(trace.arrived_at), rate)
        own = self.workload.arrivals
        arrivals = parse_arrivals(own, rate or self.own_rate() or saturation)
        if rate is not None and not isinstance(arrivals, (Gamma, Uniform)):
            expected = "poisson, gamma or uniform beside a rate or load"
            raise checks.invalid("workload: arrivals.process", own["process"], expected)
        return arrivals

    def columns(self, n: int, seed: int, arrivals: Arrivals, slo_scale: float) -> TaskColumns:
        return self.workload.columns(n, seed, arrivals, slo_scale)


@dataclass(frozen=True)
class FileTasks:
    """Tasks of a file, in its order; `recorded` if they carry their arrivals. Where the file does
    not say how long an answer is, its cap stands for it when work is estimated."""

    name: str
    given: tuple[WorkloadTask, ...]
    recorded: bool
    default_slo_scale: float | None = 1.0

    @property
    def default_tasks(self) -> int:
        return len(self.given)

    def lengths(self) -> tuple[Counts, Counts]:
        return (
            np.array([t.prompt_tokens for t in self.given]),
            np.array([t.output_tokens or t.max_tokens for t in self.given]),
        )

    def own_rate(self) -> float | None:
        return None

    def arrivals(self, rate: float | None, saturation: float) -> Arrivals:
        if self.recorded:
            return Recorded(tuple(t.arrival_s for t in self.given), rate)
        return AtOnce() if rate is None else Gamma(rate)

    def columns(self, n: int, seed: int, arrivals: Arrivals, slo_scale: float) -> TaskColumns:
        times = arrivals.times(n, generator(seed, "arrivals"))
        given = taskfile.repeated(list(self.given), n)
        return TaskColumns.of(
            [
                replace(task, arrival_s=float(t), slo=task.slo.scaled(slo_scale))
                for t, task in zip(times, given)
            ]
        )


def read_source(args: argparse.Namespace) -> Source:
    """The source that the flags name. Reads files, needs no model; prompts are not encoded yet."""
    if args.file or args.tasks or args.test_mode:
        if args.test_mode:
            given, recorded, name = taskfile.demonstration_tasks(), True, "demonstration"
        else:
            name = args.file or args.tasks
            given, recorded = taskfile.read_tasks(name, json_lines=True if args.tasks else None)
        if args.limit:
            given = taskfile.capped(given, args.limit)
        check_utilities(args.utility, dict.fromkeys(t.class_name for t in given))
        given = [replace(t, utility=args.utility.get(t.class_name, t.utility)) for t in given]
        return FileTasks(name, tuple(given), recorded)
    workload = _read_workload(args).with_utility(args.utility)
    # Targets that the command line spells out are meant as they are.
    return GeneratedTasks(
        workload.capped(args.limit) if args.limit else workload,
        default_slo_scale=1.0 if args.slo_class else None,
    )


def _read_workload(args: argparse.Namespace) -> Workload:
    trace = read_trace(args.dataset_path) if args.dataset_path else None
    if args.slo_class:
        workload = class_workload([parse_slo_class(text) for text in args.slo_class], trace)
    elif args.workload is None and trace is not None:
        workload = trace_workload(trace)
    else:
        workload = load_workload(args.workload or "edge", trace)
    fields: tuple[tuple[LengthField, str | None], ...] = (
        ("prompt_tokens", args.prompt_length),
        ("output_tokens", args.output_length),
    )
    for field, text in fields:
        flag = f"--{field.partition('_')[0]}-length"
        if text is not None:
            workload = workload.with_lengths(field, parse_lengths_text(flag, text))
        elif trace is None and any(getattr(c, field) is None for c in workload.classes):
            raise checks.invalid(flag, "none", "lengths for --slo-class, or --dataset-path")
    return workload


def encoded(source: Source, encode: Encode) -> Source:
    """The source with the lengths of its texts filled in."""
    if not isinstance(source, FileTasks):
        return source
    given = tuple(
        t if t.prompt is None else replace(t, prompt_tokens=len(encode(t.prompt)))
        for t in source.given
    )
    return replace(source, given=given)


@dataclass(frozen=True)
class Scenario:
    """What every policy of a comparison is given."""

    source: Source
    count: int
    arrivals: Arrivals
    rate: float | None  # tasks/s offered; None where arrivals are not a matter of rate
    in_flight: int  # closed loop with so many tasks in flight; 0 = open loop
    slo_scale: float
    work: OfferedWork

    def columns(self, seed: int) -> TaskColumns:
        return self.source.columns(self.count, seed, self.arrivals, self.slo_scale)

    def headline(self) -> str:
        """Tasks, rate and targets in one line."""
        line = f"{self.source.name}: {self.count} tasks"
        if self.in_flight:
            line += f", {self.in_flight} in flight"
        elif self.rate is not None:
            line += (
                f" at {self.rate:.3g} tasks/s = {self.rate / self.work.saturation:.2f}x saturation"
            )
        return f"{line}, targets x {self.slo_scale:.3g}"

    def describe(self) -> str:
        """The headline, and what the machine can do."""
        work = self.work
        return (
            f"{self.headline()}\nsaturation {work.saturation:.3g} tasks/s: a task's prefill takes "
            f"{work.prefill_ms:.0f} ms, its decode {work.decode_ms:.0f} ms at best "
            f"({work.best_decode_ms:.2f} ms a token at {work.best_rows} rows; "
            f"l(1) = {work.decode_1_ms:.1f} ms at {work.mean_context:.0f} tokens of context)"
        )


def make_scenario(
    args: argparse.Namespace, source: Source, latency: Latency, max_rows: int
) -> Scenario:
    """Decides on rate, arrivals and targets from the flags and the machine's latency model; the
    source's prompts have lengths."""
    work = offered_work(*source.lengths(), latency, max_rows)
    scale = source.default_slo_scale if args.slo_scale is None else args.slo_scale
    slo_scale = work.slo_scale if scale is None or scale == "auto" else float(scale)
    count = args.total_tasks or args.concurrent or source.default_tasks
    in_flight = args.max_concurrency or 0
    if args.concurrent and count > args.concurrent:
        in_flight = args.concurrent
    arrivals = _arrivals(args, source, work.saturation)
    offered = getattr(arrivals, "rate", None)
    return Scenario(source, count, arrivals, offered, in_flight, slo_scale, work)


def _arrivals(args: argparse.Namespace, source: Source, saturation: float) -> Arrivals:
    if args.intervals is not None:
        return Intervals(tuple(args.intervals))
    if args.concurrent or args.max_concurrency:
        return AtOnce()
    rate = args.rate if args.load is None else args.load * saturation
    if args.ramp is not None:
        first, last = (r.value * (saturation if r.is_load else 1.0) for r in args.ramp)
        return Ramp(first, last, args.burstiness or 1.0)
    if args.uniform:
        return Uniform(rate or source.own_rate() or saturation)
    # The demonstration set's own arrivals are a Poisson draw: only a rate replaces them.
    random = args.poisson and not (args.test_mode and rate is None)
    if random or args.burstiness is not None:
        return Gamma(rate or source.own_rate() or saturation, args.burstiness or 1.0)
    return source.arrivals(rate, saturation)
