"""Runs the tasks of a scenario on an engine under one policy, and hands back what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from slicellm._core import Engine, LatencyModel, Model, TaskHandle, TaskSpec
from slicellm.bench.eventlog import Declared, EventLog, from_engine
from slicellm.bench.tasks import WorkloadTask

STEP_TOKENS = 2048  # most tokens of a step, but never fewer than its rows

Progress = Callable[[int], None]  # tasks ended so far


@dataclass(frozen=True)
class Run:
    """One run under one policy."""

    log: EventLog
    steps: dict[str, npt.NDArray[Any]]  # columns of the engine's step records
    outputs: list[dict[str, Any]]  # the engine's result of each task
    latency_json: str  # the engine's latency model, as the run corrected it


@dataclass(frozen=True)
class Runner:
    """A loaded model with the latency model that each engine starts from, so that no policy profits
    from what another has learned."""

    model: Model
    latency_json: str
    token_bytes: Sequence[bytes] = ()
    max_rows: int = 64
    kv_cache_bytes: int = 0
    loop: str = "plain"

    def _engine(self, policy: str) -> Engine:
        return Engine(
            self.model,
            policy,
            LatencyModel.from_json(self.latency_json),
            kv_cache_bytes=self.kv_cache_bytes,
            max_rows=self.max_rows,
            max_step_tokens=max(STEP_TOKENS, self.max_rows),
            loop=self.loop,
            token_bytes=self.token_bytes,
        )

    def warm_up(self, prompt: Sequence[int]) -> None:
        """Runs a few steps outside the measurement, so that the first policy is not the one that
        pays for cold caches."""
        task = WorkloadTask(0.0, len(prompt), 8, 8)
        self.run("orca", [task], [prompt])

    def run(
        self,
        policy: str,
        tasks: Sequence[WorkloadTask],
        prompts: Sequence[Sequence[int]],
        in_flight: int = 0,
        progress: Progress | None = None,
    ) -> Run:
        """Runs `tasks` to their end: at their arrivals, or with `in_flight` in a closed loop, where
        a task's arrival is the moment at which it was submitted."""
        engine = self._engine(policy)
        try:
            specs = [_spec(task, ids, in_flight == 0) for task, ids in zip(tasks, prompts)]
            handles = _drive(engine, specs, in_flight, progress)
            outputs = [handle.wait(60.0) for handle in handles]
            engine.wait_idle()
            engine.check_integrity()
            log = _event_log(tasks, outputs, engine.drain_events(), in_flight > 0)
            return Run(log, engine.drain_steps(), outputs, engine.latency_json())
        finally:
            engine.close()


def _spec(task: WorkloadTask, prompt: Sequence[int], scheduled: bool) -> TaskSpec:
    return TaskSpec(
        prompt,
        max_tokens=task.max_tokens,
        utility=task.utility,
        ttft_ms=task.slo.ttft_ms,
        tpot_ms=task.slo.tpot_ms,
        deadline_ms=task.slo.deadline_ms,
        class_name=task.class_name,
        # A task with a true length ends there, whatever the model's noise says.
        ignore_eos=task.output_tokens > 0,
        true_output_tokens=task.output_tokens,
        arrival_s=task.arrival_s if scheduled else None,
    )


def _drive(
    engine: Engine, specs: list[TaskSpec], in_flight: int, progress: Progress | None
) -> list[TaskHandle]:
    """Submits everything and waits for all ends; handles are in the order of `specs`."""
    first = specs[:in_flight] if in_flight else specs
    handles = engine.submit_all(first)
    by_id = {handle.id: handle for handle in handles}
    live = set(by_id)
    while live:
        news = engine.wait_updates(0.5) or list(live)
        ended = {i for i in news if i in live and by_id[i].done}
        live -= ended
        for _ in ended:
            if len(handles) < len(specs):
                handle = engine.submit(specs[len(handles)])
                handles.append(handle)
                by_id[handle.id] = handle
                live.add(handle.id)
        if ended and progress is not None:
            progress(len(by_id) - len(live))
    return handles


def _event_log(
    tasks: Sequence[WorkloadTask],
    outputs: Sequence[dict[str, Any]],
    events: Sequence[tuple[float, int, str, int]],
    closed_loop: bool,
) -> EventLog:
    """The engine's events on the run's own clock, tasks by their number in the run."""
    if closed_loop:
        start = min(output["arrival"] for output in outputs)
        arrivals = [output["arrival"] - start for output in outputs]
    else:
        start = outputs[0]["arrival"] - tasks[0].arrival_s
        arrivals = [task.arrival_s for task in tasks]
    number = {output["id"]: i for i, output in enumerate(outputs)}
    declared = [
        Declared(
            arrival,
            task.class_name,
            task.utility,
            task.slo,
            output["prompt_tokens"],
            task.max_tokens,
        )
        for arrival, task, output in zip(arrivals, tasks, outputs)
    ]
    return from_engine(declared, events, number.__getitem__, start)
