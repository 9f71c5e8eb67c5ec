"""Wakes asyncio tasks when their engine task has news: one thread for any number of streams."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from . import _core
from .errors import StateError

_WAIT_SECONDS = 0.5  # how long a closing engine may wait for the thread


@dataclass(frozen=True)
class _Waiter:
    loop: asyncio.AbstractEventLoop
    event: asyncio.Event
    handle: _core.TaskHandle
    only_end: bool

    def wake(self) -> None:
        if self.only_end and not self.handle.done:
            return
        try:
            self.loop.call_soon_threadsafe(self.event.set)
        except RuntimeError:  # that loop is closed: nobody waits there any more
            pass


class UpdateDispatcher:
    """Turns the core's `wait_updates` into asyncio events. Thread-safe."""

    def __init__(self, core: _core.Engine) -> None:
        self._core = core
        # Re-entrant: the garbage collector may drop a stream, and so unregister it, in a thread
        # that holds the lock.
        self._lock = threading.RLock()
        self._waiters: dict[int, _Waiter] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def register(self, handle: _core.TaskHandle, only_end: bool = False) -> asyncio.Event:
        """An event for a task of the running event loop: set when the task has something new, or
        only when it has ended. Set at first: news may have come before it was registered."""
        event = asyncio.Event()
        event.set()
        waiter = _Waiter(asyncio.get_running_loop(), event, handle, only_end)
        with self._lock:
            if not self._closed:
                self._waiters[handle.id] = waiter
                if self._thread is None:
                    name = "slicellm-updates"
                    self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                    self._thread.start()
        return event

    def unregister(self, task_id: int) -> None:
        with self._lock:
            self._waiters.pop(task_id, None)

    def close(self) -> None:
        """Ends the thread; the core engine must be closed already."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while not self._closed:
            try:
                news = self._core.wait_updates(_WAIT_SECONDS)
            except StateError:  # closed
                break
            with self._lock:
                found = [self._waiters.get(i) for i in news]
            for waiter in found:
                if waiter is not None:
                    waiter.wake()
        with self._lock:
            waiters, self._waiters = self._waiters, {}
            self._closed = True
        for waiter in waiters.values():
            waiter.wake()
