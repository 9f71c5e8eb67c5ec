"""Tasks from files: one prompt a line, or JSON lines with a task each."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

from slicellm.bench import checks
from slicellm.bench.lengths import read_text
from slicellm.bench.tasks import Slo, WorkloadTask

KEYS = (
    "prompt",
    "prompt_tokens",
    "output_tokens",
    "class",
    "utility",
    "tpot_ms",
    "ttft_ms",
    "deadline_ms",
    "arrival_s",
    "max_tokens",
)
DEFAULT_MAX_TOKENS = 256


def _parse_task(where: str, line: str) -> tuple[WorkloadTask, bool]:
    """A task and whether it says when it arrives."""
    try:
        spec = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise checks.invalid(where, str(error), "one JSON object a line") from None
    body = checks.mapping(where, spec)
    checks.known_keys(where, body, KEYS)
    if ("prompt" in body) == ("prompt_tokens" in body):
        raise checks.invalid(f"{where}: keys", ", ".join(body), "either prompt or prompt_tokens")
    prompt = checks.text(f"{where}: prompt", body["prompt"]) if "prompt" in body else None
    length = 0
    if prompt is None:
        length = checks.integer(
            f"{where}: prompt_tokens", body["prompt_tokens"], 1, checks.MAX_TOKENS
        )
    max_tokens = checks.integer(
        f"{where}: max_tokens", body.get("max_tokens", DEFAULT_MAX_TOKENS), 1, checks.MAX_TOKENS
    )
    output = checks.integer(
        f"{where}: output_tokens", body.get("output_tokens", 0), 0, checks.MAX_TOKENS
    )
    arrival = body.get("arrival_s")
    task = WorkloadTask(
        arrival_s=0.0 if arrival is None else checks.number(f"{where}: arrival_s", arrival, 0, 1e9),
        prompt_tokens=length,
        output_tokens=min(output, max_tokens),
        max_tokens=max_tokens,
        class_name=checks.text(f"{where}: class", body.get("class", "default")),
        utility=checks.number(f"{where}: utility", body.get("utility", 1), 0, 1e12),
        slo=Slo(
            *(
                checks.target(f"{where}: {key}", body.get(key))
                for key in ("ttft_ms", "tpot_ms", "deadline_ms")
            )
        ),
        prompt=prompt,
    )
    return task, arrival is not None


def parse_tasks(what: str, content: str, json_lines: bool) -> tuple[list[WorkloadTask], bool]:
    """The tasks of a file's text, and whether they carry their arrivals (all must, or none)."""
    tasks: list[WorkloadTask] = []
    timed: list[bool] = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{what}, line {number}"
        if json_lines:
            task, has_arrival = _parse_task(where, line)
        else:
            task = WorkloadTask(0.0, 0, 0, DEFAULT_MAX_TOKENS, prompt=line.rstrip("\r"))
            has_arrival = False
        tasks.append(task)
        timed.append(has_arrival)
        if len(tasks) > checks.MAX_TASKS:
            raise checks.invalid(what, f"more than {checks.MAX_TASKS} tasks", "fewer")
    if any(timed) and not all(timed):
        missing = timed.index(False) + 1
        raise checks.invalid(
            f"{what}: arrival_s", f"none for task {missing}", "one for every task, or for none"
        )
    if all(timed):
        tasks.sort(key=lambda task: task.arrival_s)
    return tasks, all(timed)


def read_tasks(path: str, json_lines: bool | None = None) -> tuple[list[WorkloadTask], bool]:
    """Tasks of `path`. Without `json_lines` a file whose first line opens a JSON object is read as
    JSON lines, any other as one prompt a line."""
    content = read_text(path, "-f")
    if json_lines is None:
        json_lines = content.lstrip().startswith("{")
    return parse_tasks(path, content, json_lines)


def demonstration_tasks() -> list[WorkloadTask]:
    """The twelve tasks of `--test-mode`, with their arrivals."""
    file = resources.files("slicellm.bench") / "workloads" / "demonstration.jsonl"
    return parse_tasks("demonstration", file.read_text(encoding="utf-8"), json_lines=True)[0]


def repeated(tasks: list[WorkloadTask], n: int) -> list[WorkloadTask]:
    """The first n of `tasks`, starting again where they are fewer."""
    return [tasks[i % len(tasks)] for i in range(n)]


def capped(tasks: list[WorkloadTask], limit: int) -> list[WorkloadTask]:
    """The same tasks with at most `limit` output tokens each."""
    return [
        replace(t, max_tokens=min(t.max_tokens, limit), output_tokens=min(t.output_tokens, limit))
        for t in tasks
    ]
