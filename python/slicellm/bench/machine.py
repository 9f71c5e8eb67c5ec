"""What runs the tasks of a benchmark: a model on this machine, or a simulated machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from slicellm._core import LatencyModel
from slicellm.bench import checks, metrics
from slicellm.bench.bound import Bound, upper_bound
from slicellm.bench.eventlog import EventLog
from slicellm.bench.profiles import Profile
from slicellm.bench.runner import STEP_TOKENS, Progress, Runner
from slicellm.bench.tasks import Slo, TaskColumns
from slicellm.bench.workload import prompt_ids
from slicellm.model import Model
from slicellm.simulation import Simulation, simulate

MAX_LOGGED = 100_000  # tasks of a simulation with an event log, which takes some 10 kB a task


@dataclass(frozen=True)
class Wanted:
    """What a run is to give."""

    percentiles: Sequence[float] = metrics.PERCENTILES
    goodput: Slo | None = None
    event_log: bool = False  # also for a large simulation
    outputs: bool = False


@dataclass(frozen=True)
class Outcome:
    """One run under one policy."""

    metrics: dict[str, Any]
    log: EventLog | None
    outputs: Sequence[Mapping[str, Any]]  # of each task: text, output_tokens, reason, error


class Machine(Protocol):
    """Runs tasks under a policy. `latency` is what offered work is computed from."""

    @property
    def about(self) -> str: ...
    @property
    def latency(self) -> LatencyModel: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def config(self) -> dict[str, Any]: ...  # for the result file

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt."""

    def check(self, tasks: TaskColumns) -> None:
        """Refuses a run in which a task can never fit, before it starts."""

    def run(
        self,
        policy: str,
        tasks: TaskColumns,
        seed: int,
        in_flight: int,
        wanted: Wanted,
        progress: Progress | None,
    ) -> Outcome:
        """Runs `tasks` to their end; with `in_flight` in a closed loop."""

    def bound(self, tasks: TaskColumns, in_flight: int) -> Bound:
        """What no policy can exceed on these tasks."""


@dataclass
class ModelMachine:
    """A model on this machine; every policy starts from the same latency model."""

    model: Model
    latency: LatencyModel
    max_rows: int = 64
    kv_cache_bytes: int = 0
    loop: str = "plain"
    _texts: dict[str, list[int]] = field(default_factory=dict)
    _warm: bool = False

    def __post_init__(self) -> None:
        self._runner = Runner(
            self.model.core,
            self.latency.to_json(),
            self.model.token_bytes,
            self.max_rows,
            self.kv_cache_bytes,
            self.loop,
        )

    @property
    def about(self) -> str:
        return f"{self.model.path} on {self.model.device}"

    @property
    def config(self) -> dict[str, Any]:
        model = self.model
        return {
            "model": model.path,
            "family": model.spec["family"],
            "weight_bytes": model.weight_bytes,
            "device": model.device,
            "threads": model.threads,
        }

    def encode(self, text: str) -> list[int]:
        """A prompt as a user's chat message, in the model's own chat format."""
        if text not in self._texts:
            self._texts[text] = self.model.encode([{"role": "user", "content": text}])
        return self._texts[text]

    def check(self, tasks: TaskColumns) -> None:
        check_lengths(tasks, self.model.spec["max_positions"], "the model's context")

    def run(
        self,
        policy: str,
        tasks: TaskColumns,
        seed: int,
        in_flight: int,
        wanted: Wanted,
        progress: Progress | None,
    ) -> Outcome:
        vocabulary, ends = self.model.spec["vocab"], self.model.spec["eos_ids"]
        texts = tasks.prompts or (None,) * len(tasks)
        prompts = [
            prompt_ids(i, length, seed, vocabulary, ends) if text is None else self.encode(text)
            for i, (length, text) in enumerate(zip(tasks.prompt_tokens.tolist(), texts))
        ]
        if not self._warm:
            self._runner.warm_up(prompts[0])
            self._warm = True
        run = self._runner.run(policy, tasks.tasks(), prompts, in_flight, progress)
        found = metrics.compute(run.log, run.steps, wanted.percentiles, wanted.goodput)
        outputs = [{**o, "output_tokens": len(o["token_ids"])} for o in run.outputs]
        return Outcome(found, run.log, outputs)

    def bound(self, tasks: TaskColumns, in_flight: int) -> Bound:
        return upper_bound(
            tasks,
            self.latency,
            max_rows=self.max_rows,
            max_step_tokens=max(STEP_TOKENS, self.max_rows),
            closed_loop=in_flight > 0,
            caveat="the steps of a real machine vary about their calibrated medians",
        )


@dataclass(frozen=True)
class SimulatedMachine:
    """A profile in virtual time. It has no text: a prompt counts as a token every four bytes, an
    answer is empty."""

    profile: Profile
    max_rows: int
    kv_cache_bytes: int = 0
    instances: int = 1
    dispatch: str = "round_robin"
    loop: str = "plain"

    @property
    def latency(self) -> LatencyModel:
        return self.profile.truth()

    @property
    def about(self) -> str:
        many = f"{self.instances} x " if self.instances > 1 else ""
        return f"{many}{self.profile.name}, simulated: {self.profile.about}"

    @property
    def config(self) -> dict[str, Any]:
        return {
            "profile": self.profile.name,
            "profile_provenance": dict(self.profile.provenance),
            "jitter": self.profile.jitter,
            "residuals": list(self.profile.residuals),
        }

    def encode(self, text: str) -> list[int]:
        return [0] * -(-len(text.encode()) // 4)

    def check(self, tasks: TaskColumns) -> None:
        check_lengths(tasks, self._blocks * self.profile.block_tokens, "all KV of the machine")

    @property
    def _blocks(self) -> int:
        profile = self.profile
        if not self.kv_cache_bytes:
            return profile.blocks
        return self.kv_cache_bytes // (profile.block_tokens * profile.bytes_per_token)

    def run(
        self,
        policy: str,
        tasks: TaskColumns,
        seed: int,
        in_flight: int,
        wanted: Wanted,
        progress: Progress | None,
    ) -> Outcome:
        if wanted.event_log and len(tasks) > MAX_LOGGED:
            expected = f"at most {MAX_LOGGED} with --event-log, --plot or --test-mode"
            raise checks.invalid("--total-tasks", len(tasks), expected)
        run = simulate(
            tasks,
            policy,
            self.profile,
            seed=seed,
            max_concurrency=in_flight,
            max_rows=self.max_rows,
            blocks=self._blocks,
            instances=self.instances,
            dispatch=self.dispatch,
            loop=self.loop,
            event_log=True if wanted.event_log else None,
            percentiles=wanted.percentiles,
            goodput=wanted.goodput,
            progress=progress,
        )
        return Outcome(run.metrics, run.log, _outputs(run) if wanted.outputs else ())

    def bound(self, tasks: TaskColumns, in_flight: int) -> Bound:
        lengths = np.where(tasks.output_tokens > 0, tasks.output_tokens, tasks.max_tokens)
        varies = self.profile.jitter > 0 or len(self.profile.residuals) > 0
        return upper_bound(
            replace(tasks, output_tokens=lengths),
            self.latency,
            max_rows=self.max_rows,
            max_step_tokens=self.profile.max_step_tokens,
            closed_loop=in_flight > 0,
            caveat="steps vary about their medians" if varies else "",
        )


def _outputs(run: Simulation) -> list[dict[str, Any]]:
    tasks = run.task_metrics()
    return [
        {"text": "", "output_tokens": tokens, "reason": reason, "error": ""}
        for tokens, reason in zip(tasks.tokens.tolist(), tasks.reason.tolist())
    ]


def check_lengths(tasks: TaskColumns, most: int, what: str) -> None:
    """Refuses tasks without a prompt, or longer than `most` tokens in all, which `what` holds."""
    if (tasks.prompt_tokens < 1).any():
        empty = int(np.argmax(tasks.prompt_tokens < 1))
        raise checks.invalid(f"task {empty}", "a prompt of no tokens", "at least one")
    over = tasks.prompt_tokens + tasks.max_tokens > most
    if over.any():
        i = int(np.argmax(over))
        raise checks.invalid(
            f"task {i}",
            f"a prompt of {tasks.prompt_tokens[i]} and {tasks.max_tokens[i]} new tokens",
            f"at most {most} together, {what} (-l caps new tokens)",
        )
