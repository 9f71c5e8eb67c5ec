"""The best schedule of a tiny instance, by search: what the upper bound is compared with.

Steps run one after another, never cut short; each has any choice of ready decode rows and any
choice of whole prompts of arrived tasks, and between steps the machine may wait for an arrival.
Prompts are not cut and nothing is computed twice: where that would help, the optimum is larger than
what is found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from slicellm.bench.saturation import Latency
from slicellm.bench.tasks import Slo, WorkloadTask

_ROUNDING = 1e-9  # seconds
State = tuple[int, ...]  # tokens produced by each task; 0 = its prompt is to be prefilled


def best_utility(tasks: Sequence[WorkloadTask], latency: Latency) -> float:
    """The most utility that can be met; exponential in the number of tasks and their tokens. Rows
    that serve no task are not tried, so the latency model should not get faster by more rows."""
    numbers = range(len(tasks))
    subsets = [c for size in range(1, len(tasks) + 1) for c in combinations(numbers, size)]
    subsets.sort(key=lambda c: -sum(tasks[i].utility for i in c))
    for subset in subsets:
        if _Search([tasks[i] for i in subset], latency).possible():
            return sum(tasks[i].utility for i in subset)
    return 0.0


class _Search:
    """Whether all of `tasks` can be met together."""

    def __init__(self, tasks: Sequence[WorkloadTask], latency: Latency) -> None:
        self.tasks = tasks
        self.latency = latency
        self.seen: dict[State, list[tuple[float, tuple[float, ...]]]] = {}
        self.least = min(self._time(d, 0, 0) for d in range(1, len(tasks) + 1))

    def possible(self) -> bool:
        due = tuple(
            t.arrival_s + (np.inf if t.slo.deadline_ms is None else t.slo.deadline_ms / 1e3)
            for t in self.tasks
        )
        return self._reach(0.0, (0,) * len(self.tasks), due)

    def _time(
        self, rows: int, prompt: int, context: int, work: float = 0.0, ended: int = 0
    ) -> float:
        return (
            self.latency.predict_ms(rows + prompt, rows + ended, float(context), work, 0.0, prompt)[
                0
            ]
            / 1e3
        )

    def _reach(
        self, now: float, state: State, due: tuple[float, ...], waited: bool = False
    ) -> bool:
        """Whether all can be met from here; `due` is when each task's last token must be there."""
        unfinished = [i for i, t in enumerate(self.tasks) if state[i] < t.output_tokens]
        if not unfinished:
            return True
        for i in unfinished:
            left = self.tasks[i].output_tokens - max(state[i], 1)
            if max(now, self.tasks[i].arrival_s) + left * self.least > due[i] + _ROUNDING:
                return False
        # Earlier and with later dues is at least as good.
        known = self.seen.setdefault(state, [])
        if not waited and any(t <= now and all(a >= b for a, b in zip(d, due)) for t, d in known):
            return False
        known.append((now, due))
        arrived = [i for i in unfinished if self.tasks[i].arrival_s <= now + _ROUNDING]
        for size in range(len(arrived), 0, -1):
            for members in combinations(arrived, size):
                if self._step(now, state, due, members):
                    return True
        later = [self.tasks[i].arrival_s for i in unfinished if i not in arrived]
        return bool(later) and self._reach(min(later), state, due, waited=True)

    def _step(
        self, now: float, state: State, due: tuple[float, ...], members: tuple[int, ...]
    ) -> bool:
        tasks = self.tasks
        fresh = [i for i in members if state[i] == 0]
        decode = [i for i in members if state[i] > 0]
        end = now + self._time(
            len(decode),
            sum(tasks[i].prompt_tokens for i in fresh),
            sum(tasks[i].prompt_tokens + state[i] - 1 for i in decode),
            sum(tasks[i].prompt_tokens ** 2 / 2 for i in fresh),
            len(fresh),
        )
        new_state, new_due = list(state), list(due)
        for i in fresh:
            slo = tasks[i].slo
            if slo.ttft_ms is not None and end > tasks[i].arrival_s + slo.ttft_ms / 1e3 + _ROUNDING:
                return False
            if slo.tpot_ms is not None:
                paced = end + (tasks[i].output_tokens - 1) * slo.tpot_ms / 1e3
                new_due[i] = min(new_due[i], paced)
        for i in members:
            new_state[i] += 1
            if new_state[i] == tasks[i].output_tokens and end > new_due[i] + _ROUNDING:
                return False
        return self._reach(end, tuple(new_state), tuple(new_due))


def tiny_instance(seed: int) -> list[WorkloadTask]:
    """A random instance of 3 to 5 short tasks that compete on the published 4060 Ti table."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    count = int(rng.integers(3, 6))
    arrivals = np.sort(rng.uniform(0.0, 0.1, count))
    tasks = []
    for t in arrivals:
        output = int(rng.integers(1, 6))
        prompt = int(rng.integers(10, 80))
        utility = float(rng.choice([1.0, 2.0, 5.0]))
        if rng.random() < 0.5:
            slo = Slo(deadline_ms=float(rng.uniform(60.0, 250.0)))
        else:
            slo = Slo(
                ttft_ms=float(rng.uniform(40.0, 120.0)), tpot_ms=float(rng.uniform(15.0, 50.0))
            )
        tasks.append(WorkloadTask(float(t), prompt, output, output, utility=utility, slo=slo))
    return tasks
