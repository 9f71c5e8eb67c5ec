"""The event log of a run: what was asked for and what happened; every metric comes from it.

JSON lines, one event a line: `t` (s from the start of the run), `task`, `event` and what belongs to
it. The arrive line carries the task's class, utility and targets, and its `t` is the *scheduled*
arrival, so that a log is self-contained. In a file that holds several runs every line also has
`policy` and `seed`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from slicellm.bench import checks
from slicellm.bench.lengths import read_text
from slicellm.bench.tasks import Slo

EVENTS = (
    "arrive",
    "admit",
    "prefill",
    "token",
    "preempt",
    "swap_out",
    "swap_in",
    "resume",
    "relegate",
    "finish",
    "reject",
)
# In the order of the core's FinishReason, from 1 on.
REASONS = ("stop", "length", "cancelled", "deadline", "rejected", "error")
# Why a policy no longer expects a task to keep its targets, in the order of the core's MissCause.
CAUSES = ("not_admitted", "too_late", "starved", "length", "slow_steps")
NORMAL = ("stop", "length")  # a task that ended in one of these ways finished normally
_VALUE_KEY = {
    "prefill": "tokens",
    "token": "id",
    "preempt": "tokens",
    "swap_out": "blocks",
    "swap_in": "blocks",
    "relegate": "cause",
    "finish": "reason",
}
_WORDS = {"finish": REASONS, "relegate": CAUSES}  # values that are one of a few words


@dataclass(frozen=True)
class Declared:
    """What a task declared when it arrived."""

    arrival: float  # scheduled, s from the start of the run
    class_name: str = "default"
    utility: float = 1.0
    slo: Slo = Slo()
    prompt_tokens: int = 0
    max_tokens: int = 0


@dataclass(frozen=True)
class Event:
    """Anything after the arrival. `value`: tokens of a prefill chunk or forgotten by a preemption,
    a token's id, blocks of a swap, the cause of a relegation, the reason of a finish."""

    t: float
    task: int
    event: str
    value: int | str | None = None


@dataclass
class EventLog:
    """One run: tasks are numbered by their place in `tasks`."""

    tasks: list[Declared] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of the log, by time."""
        out: list[dict[str, Any]] = []
        for number, task in enumerate(self.tasks):
            line: dict[str, Any] = {
                "t": task.arrival,
                "task": number,
                "event": "arrive",
                "class": task.class_name,
                "utility": task.utility,
            }
            for key in ("ttft_ms", "tpot_ms", "deadline_ms"):
                if getattr(task.slo, key) is not None:
                    line[key] = getattr(task.slo, key)
            line.update(prompt_tokens=task.prompt_tokens, max_tokens=task.max_tokens)
            out.append(line)
        for event in self.events:
            line = {"t": event.t, "task": event.task, "event": event.event}
            if event.event in _VALUE_KEY and event.value is not None:
                line[_VALUE_KEY[event.event]] = event.value
            out.append(line)
        out.sort(key=lambda line: float(line["t"]))  # stable: equal times keep their order
        return iter(out)


def from_engine(
    declared: list[Declared],
    events: Sequence[tuple[float, int, str, int]],
    number: Callable[[int], int],
    start: float = 0.0,
) -> EventLog:
    """The events of the core (time, task id, event, value) on the run's own clock, which starts at
    `start`; number(id) is a task's place in `declared`."""
    log = EventLog(declared)
    for t, task_id, kind, value in events:
        if kind == "arrive":
            continue  # the declaration stands for it, at the scheduled time
        detail: int | str = value
        if kind in _WORDS:
            detail = _WORDS[kind][value - 1 if kind == "finish" else value]
        log.events.append(Event(t - start, number(task_id), kind, detail))
    return log


Runs = dict[tuple[str, int], EventLog]  # by policy and seed


def write(file: IO[str], log: EventLog, policy: str, seed: int) -> None:
    """Appends one run's lines."""
    for line in log.lines():
        file.write(json.dumps({**line, "policy": policy, "seed": seed}) + "\n")


def _integer(where: str, line: dict[str, Any], key: str, low: int = 0) -> int:
    return checks.integer(f"{where}: {key}", line.get(key, low), low, (1 << 31) - 1)


def _read_line(
    where: str, line: dict[str, Any], tasks: dict[int, Declared], events: list[Event]
) -> None:
    kind = line.get("event")
    if kind not in EVENTS:
        raise checks.invalid(f"{where}: event", kind, f"one of {', '.join(EVENTS)}")
    t = checks.number(f"{where}: t", line.get("t"), -1e12, 1e12)
    task = checks.integer(f"{where}: task", line.get("task"), 0, checks.MAX_TASKS)
    if kind == "arrive":
        if task in tasks:
            raise checks.invalid(f"{where}: task", task, "a task that has not arrived yet")
        tasks[task] = Declared(
            t,
            checks.text(f"{where}: class", line.get("class", "default")),
            checks.number(f"{where}: utility", line.get("utility", 1), 0, 1e12),
            Slo(
                *(
                    checks.target(f"{where}: {key}", line.get(key))
                    for key in ("ttft_ms", "tpot_ms", "deadline_ms")
                )
            ),
            _integer(where, line, "prompt_tokens"),
            _integer(where, line, "max_tokens"),
        )
        return
    value: int | str | None = None
    if kind in _WORDS:
        value = line.get(_VALUE_KEY[kind])
        if value not in _WORDS[kind]:
            expected = f"one of {', '.join(_WORDS[kind])}"
            raise checks.invalid(f"{where}: {_VALUE_KEY[kind]}", value, expected)
    elif kind in _VALUE_KEY:
        value = _integer(where, line, _VALUE_KEY[kind])
    events.append(Event(t, task, kind, value))


def read(path: str | Path) -> Runs:
    """Every run of a log file. Lines without `policy` and `seed` belong to one run ("", 0)."""
    arrived: dict[tuple[str, int], dict[int, Declared]] = {}
    happened: dict[tuple[str, int], list[Event]] = {}
    for number, content in enumerate(read_text(path, "event log").split("\n"), 1):
        if not content.strip():
            continue
        where = f"{path}, line {number}"
        try:
            line = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise checks.invalid(where, str(error), "one JSON object a line") from None
        checks.mapping(where, line)
        run = (
            str(line.get("policy", "")),
            checks.integer(f"{where}: seed", line.get("seed", 0), 0, (1 << 63) - 1),
        )
        _read_line(where, line, arrived.setdefault(run, {}), happened.setdefault(run, []))
    logs: Runs = {}
    for run, tasks in arrived.items():
        place = {task: i for i, task in enumerate(sorted(tasks))}
        for event in happened[run]:
            if event.task not in place:
                raise checks.invalid(f"{path}: task", event.task, "a task with an arrive line")
        logs[run] = EventLog(
            [tasks[task] for task in sorted(tasks)],
            [Event(e.t, place[e.task], e.event, e.value) for e in happened[run]],
        )
    return logs
