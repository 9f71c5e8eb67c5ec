"""Capacity: the highest arrival rate at which a share of the tasks still meets its SLOs.

The same seeds at every rate, so that a rate changes nothing but the gaps between the same tasks.
Attainment need not fall steadily with the rate; bisection finds a rate that meets the target with
one above it, at most TOLERANCE apart, that does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.01  # of the rate
REACH = 64.0  # the search goes from start / REACH to start * REACH
# 97.5th percentiles of Student's t for 1 .. 9 degrees of freedom, then of the normal distribution.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Tried:
    """Runs at one rate."""

    rate: float  # tasks/s
    attainments: tuple[float, ...]  # by seed

    @property
    def attainment(self) -> float:
        return float(np.mean(self.attainments))

    def half_width(self, tasks: int) -> float:
        """Half the 95 % confidence interval of the attainment: by the spread over seeds, or for
        one seed as if its `tasks` were independent."""
        n = len(self.attainments)
        if n == 1:
            p = self.attainment
            return 1.96 * math.sqrt(p * (1 - p) / tasks)
        t = _STUDENT[n - 2] if n - 2 < len(_STUDENT) else 1.96
        return t * float(np.std(self.attainments, ddof=1)) / math.sqrt(n)


@dataclass(frozen=True)
class Capacity:
    """`met`: the highest rate found that meets the target, None if even the lowest does not;
    `missed`: the rate next above that does not, None if even the highest meets it."""

    target: float
    met: Tried | None
    missed: Tried | None
    rates_tried: int


def find_capacity(
    attainments: Callable[[float], Sequence[float]], target: float, start: float
) -> Capacity:
    """Bisection from `start` (tasks/s) on; attainments(rate) runs every seed at a rate."""
    met: Tried | None = None
    missed: Tried | None = None
    rate, tried = start, 0
    while start / REACH <= rate <= start * REACH:
        result = Tried(rate, tuple(attainments(rate)))
        tried += 1
        if result.attainment >= target:
            met = result
        else:
            missed = result
        if met is None:
            rate /= 2
        elif missed is None:
            rate *= 2
        elif missed.rate <= met.rate * (1 + TOLERANCE):
            break
        else:
            rate = math.sqrt(met.rate * missed.rate)
    return Capacity(target, met, missed, tried)
