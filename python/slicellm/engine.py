"""An engine: tasks go in, tokens come out in the order that a policy decides."""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from . import _core
from .calibration import latency_model
from .errors import InvalidArgument, make_error, show
from .model import Model, Progress, Prompt, check_switch
from .task import Piece, Result, Task, make_result
from .updates import UpdateDispatcher


class Engine:
    """Runs tasks on a model under a scheduling policy. Thread-safe; a context manager.

    >>> with Engine("model.flm", policy="slice") as engine:             # doctest: +SKIP
    ...     print(engine.generate("The capital of France is", max_tokens=8).text)
    ...     for piece in engine.stream(Task("Once upon a time", tpot_ms=100)):
    ...         print(piece.text, end="", flush=True)

    Args:
        model: a loaded Model, or the path of one.
        policy: a policy's text ("slice", "slice:ratio=0.9", "orca", "fastserve", ...; see
            `slicellm policies`) or a Policy object, which may be written in Python.
        dtype, device, threads, gpu_mem_ratio, vram_limit: as for Model, where `model` is a path.
        latency: what the policy believes about time; None = this machine's calibration
            (`slicellm.calibration`), measured now if there is none yet.
        kv_cache_bytes: memory for K and V; 0 = from free memory (on a GPU within gpu_mem_ratio and
            vram_limit).
        host_kv_bytes: memory for K and V of paused tasks; -1 = as much again.
        max_rows: most tasks in one step.
        max_step_tokens: most tokens in one step.
        max_context: longest prompt + answer; 0 = what model and memory allow.
        max_queue: most live tasks; more are refused with ResourceError.
        loop: "plain" plans each step from the results of the one before; "overlap" plans it while
            that one runs, which hides the time of planning where the device computes by itself
            (a GPU), and lets an end that only the token tells take effect a step later. The tokens
            are the same.
        prefix_cache: keep K and V of ended tasks while memory allows, and share what prompts have
            in common (whole KV blocks of 16 tokens); off where a prompt attends both ways
            (ChatGLM-6B).
        prompt_lookup: most tokens of a task that one step may guess beyond its next, from what
            followed the same words earlier in its prompt or answer, where the calibration says
            that this is faster; 0 = off. The answers stay the same, sampled ones too.
        warm_up: on a GPU, run the largest steps once before the first task, so that its first token
            takes no longer than later ones'.
        progress: called with (steps done, steps in all) while warming up.
        record_events: keep the event log and step records until they are drained from `core`.

    Attributes:
        model: the model.
        core: the core's engine, for events, step records and integrity checks.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        policy: str | _core.Policy = "slice",
        *,
        dtype: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        gpu_mem_ratio: float | None = None,
        vram_limit: int | str | None = None,
        latency: _core.LatencyModel | None = None,
        kv_cache_bytes: int = 0,
        host_kv_bytes: int = -1,
        max_rows: int = 64,
        max_step_tokens: int = 2048,
        max_context: int = 0,
        max_queue: int = 100_000,
        loop: str = "plain",
        prefix_cache: bool = True,
        prompt_lookup: int = 0,
        warm_up: bool = True,
        progress: Progress | None = None,
        record_events: bool = False,
    ) -> None:
        if isinstance(model, Model):
            options = (dtype, threads, gpu_mem_ratio, vram_limit)
            if device != "cpu" or any(option is not None for option in options):
                fields = "dtype, device, threads, gpu_mem_ratio or vram_limit"
                expected = "none beside a loaded model, which has its own"
                raise make_error(InvalidArgument, fields, "a value", expected)
        else:
            model = Model(
                model, dtype, device, threads, gpu_mem_ratio=gpu_mem_ratio, vram_limit=vram_limit
            )
        if isinstance(policy, str):
            _core.make_policy(policy)  # a misspelt name is told before calibrating
        elif not isinstance(policy, _core.Policy):
            expected = "a policy's name or a Policy"
            raise make_error(InvalidArgument, "policy", show(policy), expected)
        self.model = model
        self.core = _core.Engine(
            model.core,
            policy,
            latency if latency is not None else latency_model(model),
            kv_cache_bytes=kv_cache_bytes,
            host_kv_bytes=host_kv_bytes,
            max_rows=max_rows,
            max_step_tokens=max_step_tokens,
            max_context=max_context,
            max_queue=max_queue,
            loop=loop,
            prefix_cache=prefix_cache,
            prompt_lookup=prompt_lookup,
            token_bytes=model.token_bytes,
            record_events=record_events,
            warm_up=check_switch(warm_up, "warm_up") and model.device_bytes > 0,
            progress=progress,
        )
        self._updates = UpdateDispatcher(self.core)
        # Also at the interpreter's exit, while threads may still be joined.
        self._close = weakref.finalize(self, _close_engine, self.core, self._updates)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what is live and ends the engine's thread. A second call does nothing."""
        self._close()

    # ---- one task --------------------------------------------------------------------------------
    def generate(self, task: Task | Prompt, **settings: Any) -> Result:
        """Runs a task to its end. A prompt may stand for a task, with Task's other arguments as
        keywords."""
        task = _as_task(task, settings)
        return self._wait(task, self._submit(task))

    def stream(self, task: Task | Prompt, **settings: Any) -> Stream:
        """Submits a task and iterates over its pieces as they come. Closing the stream, leaving a
        `with` block or dropping the stream cancels the task."""
        task = _as_task(task, settings)
        return Stream(self, task, self._submit(task))

    async def agenerate(self, task: Task | Prompt, **settings: Any) -> Result:
        """`generate` for asyncio; cancelling the awaiting task cancels this one."""
        task = _as_task(task, settings)
        handle = self._submit(task)
        try:
            event = self._updates.register(handle, only_end=True)
            while not handle.done:
                await event.wait()
                event.clear()
        except BaseException:  # asyncio's cancellation among them
            self.cancel(handle.id)
            raise
        finally:
            self._updates.unregister(handle.id)
        return make_result(task, handle.wait())

    def astream(self, task: Task | Prompt, **settings: Any) -> AsyncStream:
        """`stream` for asyncio; call it where an event loop runs. Cancelling the awaiting asyncio
        task, `aclose` or dropping the stream cancels the task."""
        task = _as_task(task, settings)
        return AsyncStream(self, task, self._submit(task))

    def cancel(self, task_id: int) -> bool:
        """Ends a task; False if it has ended already or never was."""
        return self.core.cancel(task_id)

    # ---- many tasks ------------------------------------------------------------------------------
    def run(
        self, tasks: Sequence[Task | Prompt], arrivals: Sequence[float] | None = None
    ) -> list[Result]:
        """Runs tasks to their ends; results are in the order of `tasks`.

        `arrivals`: seconds from now at which each task arrives; None = all at once. Targets are
        judged from a task's arrival.
        """
        if isinstance(tasks, (str, Task)) or not isinstance(tasks, Sequence):
            raise make_error(InvalidArgument, "tasks", show(tasks), "a list of tasks")
        if arrivals is not None and len(arrivals) != len(tasks):
            value = f"{len(arrivals)} arrivals for {len(tasks)} tasks"
            raise make_error(InvalidArgument, "arrivals", value, "one for each task")
        made = [_as_task(task, {}) for task in tasks]
        if not made:
            return []
        times: Sequence[float | None] = arrivals if arrivals is not None else [None] * len(made)
        specs = [
            task.core_spec(self.model.encode(task.prompt), time) for task, time in zip(made, times)
        ]
        handles = self.core.submit_all(specs)
        try:
            return [self._wait(task, handle) for task, handle in zip(made, handles)]
        except BaseException:
            for handle in handles:
                self.cancel(handle.id)
            raise

    def wait_idle(self) -> None:
        """Blocks until no task is live."""
        self.core.wait_idle()

    def stats(self) -> dict[str, Any]:
        """Counters: steps, tasks submitted, finished and live, KV blocks, busy seconds, bytes held
        of a GPU's memory (device_bytes)."""
        return self.core.stats()

    # ---- inside ----------------------------------------------------------------------------------
    def _submit(self, task: Task) -> _core.TaskHandle:
        return self.core.submit(task.core_spec(self.model.encode(task.prompt)))

    def _wait(self, task: Task, handle: _core.TaskHandle) -> Result:
        try:
            return make_result(task, handle.wait())
        except BaseException:  # Ctrl-C
            self.cancel(handle.id)
            raise


class Stream:
    """Iterates over the pieces of one task's answer; see `Engine.stream`. For one consumer.

    Attributes:
        id: the task's number, for `Engine.cancel`.
    """

    def __init__(self, engine: Engine, task: Task, handle: _core.TaskHandle) -> None:
        self._engine = engine
        self._task = task
        self._handle = handle
        self._ended = False
        self.id = handle.id

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while not self._ended:
            piece = self._take(-1.0)
            if piece is not None:
                return piece
        raise StopIteration

    def _take(self, timeout: float) -> Piece | None:
        """What is new, or None if nothing is within `timeout` seconds (-1 = for ever)."""
        part = self._handle.take(timeout)
        self._ended = part["reason"] != "none"
        if not part["text"] and not part["token_ids"]:
            return None
        logprobs = list(part["logprobs"]) if self._task.logprobs is not None else None
        return Piece(part["text"], list(part["token_ids"]), logprobs)

    def result(self) -> Result:
        """The whole answer; waits for its end."""
        return self._engine._wait(self._task, self._handle)

    def close(self) -> None:
        """Cancels the task unless it has ended."""
        if not self._ended:
            self._ended = True
            self._engine.cancel(self.id)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # the engine is gone, and with it the task
            pass


class AsyncStream(Stream):
    """Iterates over the pieces of one task's answer under asyncio; see `Engine.astream`."""

    def __init__(self, engine: Engine, task: Task, handle: _core.TaskHandle) -> None:
        super().__init__(engine, task, handle)
        self._event = engine._updates.register(handle)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        try:
            while not self._ended:
                await self._event.wait()
                self._event.clear()
                piece = self._take(0.0)
                if piece is not None:
                    if self._ended:
                        self._engine._updates.unregister(self.id)
                    return piece
        except BaseException:  # asyncio's cancellation among them
            self.close()
            raise
        self._engine._updates.unregister(self.id)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancels the task unless it has ended."""
        self.close()

    def close(self) -> None:
        self._engine._updates.unregister(self.id)
        super().close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()


def _as_task(task: Task | Prompt, settings: dict[str, Any]) -> Task:
    if not isinstance(task, Task):
        return Task(task, **settings)
    if settings:
        expected = "none beside a Task, which has its own"
        raise make_error(InvalidArgument, "settings", ", ".join(settings), expected)
    return task


def _close_engine(core: _core.Engine, updates: UpdateDispatcher) -> None:
    core.close()
    updates.close()
