"""The tasks of a run: what each declares, and a run's tasks as columns.

A run of a million tasks is a handful of arrays; `WorkloadTask` objects are made from them where one
object a task is wanted (prompts for a model, files).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicellm.bench import checks

Counts = npt.NDArray[np.int64]
Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slo:
    """Targets in milliseconds; None is not judged."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    deadline_ms: float | None = None

    def scaled(self, factor: float) -> Slo:
        def times(value: float | None) -> float | None:
            return None if value is None else value * factor

        return Slo(times(self.ttft_ms), times(self.tpot_ms), times(self.deadline_ms))


@dataclass(frozen=True)
class WorkloadTask:
    """One task of a run. Either `prompt` (text) or `prompt_tokens` (random ids of that length).
    `output_tokens` is the true output length, hidden from policies; 0 = the model decides."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    class_name: str = "default"
    utility: float = 1.0
    slo: Slo = Slo()
    prompt: str | None = None


@dataclass(frozen=True)
class Kind:
    """What tasks have in common."""

    class_name: str
    utility: float
    slo: Slo


@dataclass(frozen=True)
class TaskColumns:
    """The tasks of a run by arrival: one entry a task in each column, no object a task. A task's
    number is its place."""

    kinds: tuple[Kind, ...]
    kind: Counts  # place in `kinds`
    arrival_s: Times
    prompt_tokens: Counts
    output_tokens: Counts  # true length; 0 = the model decides (a simulation: max_tokens)
    max_tokens: Counts
    prompts: tuple[str | None, ...] | None = None  # texts, where there are any

    def __len__(self) -> int:
        return len(self.kind)

    def tasks(self) -> list[WorkloadTask]:
        """The same tasks as objects."""
        texts = self.prompts or (None,) * len(self)
        return [
            WorkloadTask(
                arrival, prompt, output, most, kind.class_name, kind.utility, kind.slo, text
            )
            for arrival, prompt, output, most, kind, text in zip(
                self.arrival_s.tolist(),
                self.prompt_tokens.tolist(),
                self.output_tokens.tolist(),
                self.max_tokens.tolist(),
                (self.kinds[k] for k in self.kind.tolist()),
                texts,
            )
        ]

    @staticmethod
    def of(tasks: Sequence[WorkloadTask]) -> TaskColumns:
        """The columns of `tasks`, which must be in order of arrival."""
        kinds: dict[Kind, int] = {}
        kind = [kinds.setdefault(Kind(t.class_name, t.utility, t.slo), len(kinds)) for t in tasks]
        arrival = np.array([t.arrival_s for t in tasks], dtype=np.float64)
        if (np.diff(arrival) < 0).any():
            late = int(np.argmax(np.diff(arrival) < 0)) + 1
            raise checks.invalid(f"task {late}: arrival_s", arrival[late], "tasks by arrival")

        def counts(field: str) -> Counts:
            return np.array([getattr(t, field) for t in tasks], dtype=np.int64)

        texts = tuple(t.prompt for t in tasks)
        return TaskColumns(
            tuple(kinds),
            np.array(kind, dtype=np.int64),
            arrival,
            counts("prompt_tokens"),
            counts("output_tokens"),
            counts("max_tokens"),
            texts if any(text is not None for text in texts) else None,
        )
