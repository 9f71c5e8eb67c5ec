"""`benchmark --rates`, `--loads` and `--capacity`: the same tasks at several rates."""

from __future__ import annotations

from typing import Any

from ..bench import plot, report
from ..bench.capacity import Capacity, find_capacity
from .benchmark_study import Study


def sweep(study: Study) -> None:
    """One line a rate and policy, means over seeds; the result file holds every run."""
    args = study.args
    flag, values = ("rate", args.rates) if args.rates is not None else ("load", args.loads)
    rows: list[tuple[dict[str, Any], report.Results, report.Results | None]] = []
    results = []
    for number, value in enumerate(dict.fromkeys(values)):
        scenario = study.scenario(**{flag: value})
        if number == 0:
            study.console.print(f"{study.machine.about}\n{scenario.describe()}", soft_wrap=True)
        runs = dict(study.run(scenario, study.tasks(scenario), title=f"{flag} {value:g}, "))
        computed = [
            {policy: runs[policy, seed].metrics for policy in study.policies}
            for seed in study.seeds
        ]
        config = study.config(scenario)
        results.append(report.result_object(config, study.seeds, computed))
        many = len(study.seeds) > 1
        rows.append(
            (
                config,
                report.mean(computed) if many else computed[0],
                report.spread(computed) if many else None,
            )
        )
    study.console.print(report.sweep_table(rows, study.source.name))
    if args.save_result:
        report.write_result(args.save_result, {"config": rows[0][0], "sweep": results})
    if args.plot:
        plot.save_sweep(args.plot, rows, f"{study.source.name}, {study.machine.about}")


def capacity(study: Study) -> None:
    """The capacity of each policy, by bisection."""
    target = float(study.args.capacity)
    first = study.scenario(rate=None, load=1.0)
    saturation = first.work.saturation
    study.console.print(f"{study.machine.about}\n{first.describe()}", soft_wrap=True)
    found: dict[str, Capacity] = {}
    for policy in study.policies:

        def attainments(rate: float, policy: str = policy) -> list[float]:
            scenario = study.scenario(rate=rate, load=None)
            runs = study.run(
                scenario, study.tasks(scenario), [policy], f"{rate / saturation:.2f}x, "
            )
            return [outcome.metrics["attainment"] for _, outcome in runs]

        found[policy] = find_capacity(attainments, target, saturation)
    study.console.print(report.capacity_table(found, saturation, first.count))
    if study.args.save_result:
        result = {
            "config": {**study.config(first), "rate": None, "load": None},
            "seeds": list(study.seeds),
            "capacity": report.capacity_object(found, saturation, first.count),
        }
        report.write_result(study.args.save_result, result)
