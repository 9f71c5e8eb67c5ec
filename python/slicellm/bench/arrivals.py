"""Arrival processes: when each task of a run arrives, in seconds from the start of the run.

A process knows nothing of lengths or classes; any process goes with any workload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from slicellm.bench import checks
from slicellm.bench.tasks import Times

MAX_RATE = 1e6  # tasks/s


class Arrivals(Protocol):
    """n arrival times in seconds, ascending."""

    def times(self, n: int, rng: np.random.Generator) -> Times: ...


@dataclass(frozen=True)
class Gamma:
    """Gaps drawn from a gamma distribution with mean 1/rate; burstiness 1 is a Poisson process,
    below 1 is burstier, above 1 more even. As in vLLM's benchmark the gaps are cumulated and then
    rescaled so that the last task arrives at n/rate."""

    rate: float  # tasks/s
    burstiness: float = 1.0

    def times(self, n: int, rng: np.random.Generator) -> Times:
        gaps = rng.gamma(self.burstiness, 1.0 / (self.rate * self.burstiness), n)
        times = np.cumsum(gaps)
        if n and times[-1] > 0:
            times *= n / self.rate / times[-1]
        return times


@dataclass(frozen=True)
class Uniform:
    """Equal gaps of 1/rate; the last task arrives at n/rate."""

    rate: float

    def times(self, n: int, rng: np.random.Generator) -> Times:
        return np.arange(1, n + 1, dtype=np.float64) / self.rate


@dataclass(frozen=True)
class Ramp:
    """A rate that goes linearly from `first` to `last` tasks/s while n tasks arrive: gaps of a
    gamma process (see Gamma) on the clock of the expected number of arrivals. The last task arrives
    at n / rate."""

    first: float
    last: float
    burstiness: float = 1.0

    @property
    def rate(self) -> float:
        """Tasks/s over the whole run."""
        return (self.first + self.last) / 2

    def times(self, n: int, rng: np.random.Generator) -> Times:
        # `expected` tasks have arrived by t where first * t + slope * t^2 / 2 = expected.
        expected = Gamma(1.0, self.burstiness).times(n, rng)
        slope = (self.last - self.first) * self.rate / max(n, 1)
        root = np.sqrt(np.maximum(self.first**2 + 2 * slope * expected, 0.0))
        return 2 * expected / np.maximum(self.first + root, 1e-300)


@dataclass(frozen=True)
class Intervals:
    """Given gaps in seconds after each task, repeated; the first task arrives at 0."""

    gaps: tuple[float, ...]

    def times(self, n: int, rng: np.random.Generator) -> Times:
        gaps = np.resize(np.asarray(self.gaps, dtype=np.float64), max(n - 1, 0))
        return np.concatenate([[0.0], np.cumsum(gaps)])[:n]


@dataclass(frozen=True)
class Recorded:
    """The arrival column of a trace, from its first row on; with `rate`, stretched so that the last
    task arrives at n/rate. A trace shorter than n starts again, one mean gap after its last row."""

    column: tuple[float, ...]
    rate: float | None = None

    def times(self, n: int, rng: np.random.Generator) -> Times:
        once = np.asarray(self.column, dtype=np.float64)
        once = once - once[0]
        rounds, place = np.divmod(np.arange(n), len(once))
        period = once[-1] * len(once) / max(len(once) - 1, 1)
        times: Times = once[place] + rounds * period
        if self.rate is not None and n and times[-1] > 0:
            times = times * (n / self.rate / times[-1])
        return times


@dataclass(frozen=True)
class AtOnce:
    """Every task arrives at 0."""

    def times(self, n: int, rng: np.random.Generator) -> Times:
        return np.zeros(n)


# What a workload file may say of each process beside its name.
PROCESSES: Mapping[str, tuple[str, ...]] = {
    "poisson": ("rate", "burstiness"),
    "gamma": ("rate", "burstiness"),
    "uniform": ("rate",),
    "ramp": ("rates",),
    "intervals": ("gaps_s",),
    "at_once": (),
}


def parse_ramp(field: str, value: object) -> tuple[float, float]:
    """Two rates in tasks/s, not both 0."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise checks.invalid(field, value, "two rates [first, last] in tasks/s")
    first, last = (checks.number(field, rate, 0, MAX_RATE) for rate in value)
    if first == last == 0:
        raise checks.invalid(field, value, "a rate above 0 among them")
    return first, last


def parse_arrivals(spec: Mapping[str, Any], rate: float) -> Arrivals:
    """The process that a workload file names; `rate` in tasks/s is what the run decided on."""
    field = "workload: arrivals"
    process = spec.get("process", "poisson")
    if not isinstance(process, str) or process not in PROCESSES:
        raise checks.invalid(f"{field}.process", process, f"one of {', '.join(PROCESSES)}")
    checks.known_keys(f"{field} ({process})", spec, ("process", *PROCESSES[process]))
    if process in ("poisson", "gamma"):
        default = 1.0 if process == "poisson" else None
        shape = checks.number(
            f"{field}.burstiness", spec.get("burstiness", default), 0, 1e6, above=True
        )
        return Gamma(rate, shape)
    if process == "uniform":
        return Uniform(rate)
    if process == "ramp":
        return Ramp(*parse_ramp(f"{field}.rates", spec.get("rates")))
    if process == "at_once":
        return AtOnce()
    gaps = spec.get("gaps_s")
    if not isinstance(gaps, list) or not gaps:
        raise checks.invalid(f"{field}.gaps_s", gaps, "a list of seconds")
    return Intervals(tuple(checks.number(f"{field}.gaps_s", g, 0, 1e9) for g in gaps))
