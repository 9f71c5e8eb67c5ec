"""From a command line to the tasks of a run: source of tasks, offered work, rate, arrivals."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from slicellm.bench import checks, taskfile
from slicellm.bench.arrivals import Arrivals, AtOnce, Gamma, Intervals, Recorded, parse_arrivals
from slicellm.bench.lengths import read_trace
from slicellm.bench.saturation import SAMPLE, Latency, OfferedWork, offered_work
from slicellm.bench.tasks import Counts, TaskColumns, WorkloadTask
from slicellm.bench.workload import (
    Workload,
    generator,
    load_workload,
    parse_slo_class,
    prompt_ids,
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

    def arrivals(self, rate: float | None, random: bool, saturation: float) -> Arrivals:
        """The source's own arrivals. `rate` in tasks/s if one was asked for; `random` if the
        command line asks for a random process; else the source may fall back on `saturation`."""

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

    def arrivals(self, rate: float | None, random: bool, saturation: float) -> Arrivals:
        trace = self.workload.trace
        if trace is not None and trace.arrived_at is not None and not random:
            return Recorded(tuple(trace.arrived_at), rate)
        if rate is None and self.workload.arrivals.get("rate") is not None:
            rate = checks.number(
                "workload: arrivals.rate", self.workload.arrivals["rate"], 0, 1e6, above=True
            )
        if random:
            return Gamma(rate or saturation)
        return parse_arrivals(self.workload.arrivals, rate or saturation)

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

    def arrivals(self, rate: float | None, random: bool, saturation: float) -> Arrivals:
        if self.recorded and not random:
            return Recorded(tuple(t.arrival_s for t in self.given), rate)
        if random or rate is not None:
            return Gamma(rate or saturation)
        return AtOnce()

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
        return FileTasks(name, tuple(given), recorded)
    trace = read_trace(args.dataset_path) if args.dataset_path else None
    if args.workload is None and trace is not None:
        workload = trace_workload(trace, [parse_slo_class(text) for text in args.slo_class])
    else:
        workload = load_workload(args.workload or "edge", trace)
    return GeneratedTasks(workload.capped(args.limit) if args.limit else workload)


def encoded(source: Source, encode: Encode) -> tuple[Source, dict[str, list[int]]]:
    """The source with the lengths of its texts filled in, and the token ids of each text."""
    if not isinstance(source, FileTasks):
        return source, {}
    ids = {t.prompt: list(encode(t.prompt)) for t in source.given if t.prompt is not None}
    given = tuple(
        t if t.prompt is None else replace(t, prompt_tokens=len(ids[t.prompt]))
        for t in source.given
    )
    return replace(source, given=given), ids


@dataclass(frozen=True)
class Scenario:
    """What every policy of a comparison is given."""

    source: Source
    texts: dict[str, list[int]]
    count: int
    arrivals: Arrivals
    rate: float | None  # tasks/s offered; None where arrivals are not a matter of rate
    in_flight: int  # closed loop with so many tasks in flight; 0 = open loop
    slo_scale: float
    work: OfferedWork

    def columns(self, seed: int) -> TaskColumns:
        return self.source.columns(self.count, seed, self.arrivals, self.slo_scale)

    def tasks(self, seed: int) -> list[WorkloadTask]:
        return self.columns(seed).tasks()

    def prompts(
        self, tasks: Sequence[WorkloadTask], seed: int, vocabulary: int, avoid: Sequence[int]
    ) -> list[list[int]]:
        """Token ids of each task's prompt."""
        return [
            self.texts[task.prompt]
            if task.prompt is not None
            else prompt_ids(i, task.prompt_tokens, seed, vocabulary, avoid)
            for i, task in enumerate(tasks)
        ]

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
    args: argparse.Namespace, source: Source, encode: Encode, latency: Latency
) -> Scenario:
    """Decides on rate, arrivals and targets from the flags and the machine's latency model."""
    source, texts = encoded(source, encode)
    work = offered_work(*source.lengths(), latency, args.batch)
    scale = source.default_slo_scale if args.slo_scale is None else args.slo_scale
    slo_scale = work.slo_scale if scale is None or scale == "auto" else float(scale)
    count = args.total_tasks or args.concurrent or source.default_tasks
    rate = args.rate if args.load is None else args.load * work.saturation
    in_flight = args.max_concurrency or 0
    arrivals: Arrivals
    if args.intervals is not None:
        arrivals = Intervals(tuple(args.intervals))
    elif args.concurrent or args.max_concurrency:
        arrivals = AtOnce()
        if args.concurrent and count > args.concurrent:
            in_flight = args.concurrent
    else:
        # The demonstration set's own arrivals are a Poisson draw: only a rate replaces them.
        random = args.burstiness is not None or (
            args.poisson and not (args.test_mode and rate is None)
        )
        arrivals = source.arrivals(rate, random, work.saturation)
        if isinstance(arrivals, Gamma) and args.burstiness is not None:
            arrivals = replace(arrivals, burstiness=args.burstiness)
    offered = getattr(arrivals, "rate", None)
    return Scenario(source, texts, count, arrivals, offered, in_flight, slo_scale, work)


def check_lengths(tasks: Sequence[WorkloadTask], max_context: int) -> None:
    """Refuses a run in which a task can never fit, before it starts."""
    for i, task in enumerate(tasks):
        if task.prompt_tokens < 1:
            raise checks.invalid(f"task {i}", "a prompt of no tokens", "at least one")
        if task.prompt_tokens + task.max_tokens > max_context:
            raise checks.invalid(
                f"task {i}",
                f"a prompt of {task.prompt_tokens} and {task.max_tokens} new tokens",
                f"at most {max_context} together, the model's context (-l caps new tokens)",
            )
