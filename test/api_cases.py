"""What the tests of the Python API share beside the fixtures of conftest.py."""

from __future__ import annotations

from slicellm import Engine, LatencyModel, Model, Task

PROMPT = "the value of the"
LATENCY = LatencyModel.from_decode_table([1.0, 1.2, 1.4, 1.6])
# Half a minute at the very least: a test that does not cancel it does not pass unnoticed.
LONG = Task(PROMPT, max_tokens=100_000, ignore_eos=True)


def greedy(model: Model, ids: list[int], count: int) -> list[int]:
    """The most likely continuation by whole forward passes: no engine, no KV cache."""
    out = list(ids)
    for _ in range(count):
        out.append(int(model.forward(out)[-1].argmax()))
    return out[len(ids) :]


def finishes(engine: Engine) -> dict[int, int]:
    """Number of finish events of each task in the log."""
    events = [task for _, task, kind, _ in engine.core.drain_events() if kind == "finish"]
    return {task: events.count(task) for task in events}
