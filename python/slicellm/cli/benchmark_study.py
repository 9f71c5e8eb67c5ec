"""What the ways to use `benchmark` share: a machine, a source of tasks, policies and seeds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..bench import report
from ..bench.bound import Bound
from ..bench.machine import Machine, Outcome, Wanted
from ..bench.scenario import Scenario, Source, make_scenario
from ..bench.tasks import TaskColumns


@dataclass(frozen=True)
class Study:
    """A command line, resolved but for the rate."""

    args: argparse.Namespace
    machine: Machine
    source: Source
    policies: Sequence[str]
    seeds: Sequence[int]
    wanted: Wanted
    console: Console

    def scenario(self, **changed: float | None) -> Scenario:
        """What every policy is given; `changed` replaces flags (rate, load)."""
        args = argparse.Namespace(**{**vars(self.args), **changed})
        return make_scenario(args, self.source, self.machine.latency, self.machine.max_rows)

    def tasks(self, scenario: Scenario) -> dict[int, TaskColumns]:
        """The tasks by seed, checked."""
        tasks = {seed: scenario.columns(seed) for seed in self.seeds}
        for columns in tasks.values():
            self.machine.check(columns)
        return tasks

    def run(
        self,
        scenario: Scenario,
        tasks: Mapping[int, TaskColumns],
        policies: Sequence[str] | None = None,
        title: str = "",
    ) -> Iterator[tuple[tuple[str, int], Outcome]]:
        """Every policy on every seed's tasks, with progress: ((policy, seed), outcome)."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as shown:
            for seed, planned in tasks.items():
                limit = self._bound(planned, seed, scenario) if self.args.bound else None
                for policy in policies or self.policies:
                    bar = shown.add_task(f"{title}{policy}, seed {seed}", total=len(planned))

                    def update(ended: int, bar: Any = bar) -> None:
                        shown.update(bar, completed=ended)

                    outcome = self.machine.run(
                        policy, planned, seed, scenario.in_flight, self.wanted, update
                    )
                    shown.remove_task(bar)
                    if limit is not None:
                        outcome.metrics.update(limit.compare(outcome.metrics))
                    yield (policy, seed), outcome

    def _bound(self, tasks: TaskColumns, seed: int, scenario: Scenario) -> Bound:
        """The upper bound on what any policy can do with these tasks, shown as one line."""
        limit = self.machine.bound(tasks, scenario.in_flight)
        self.console.print(f"seed {seed}: {limit.describe()}", soft_wrap=True)
        return limit

    def config(self, scenario: Scenario) -> dict[str, Any]:
        """Every flag as resolved, and what else the numbers depend on."""
        work = scenario.work
        resolved = ("model", "path", "seed", "seeds", "slice", "ratios")
        return {
            **{flag: value for flag, value in vars(self.args).items() if flag not in resolved},
            "ramp": None if self.args.ramp is None else [vars(r) for r in self.args.ramp],
            "policy": list(self.policies),
            **self.machine.config,
            "batch": self.machine.max_rows,
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
