"""When each task could run if it is to meet its targets, and the bins into which time is cut.

For a task with n output tokens that arrives at a, the first token comes at its prefill's end:

    first token   from a + the least prefill time   to a + min(TTFT, deadline - (n - 1) least step)
    last token    to min(a + deadline, latest first token + (n - 1) TPOT)

The last line holds because TPOT is judged on the average. Whatever a task has neither a TTFT nor a
deadline for may happen at any time, at the end of the run, and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slicellm.bench.bound_steps import Bools, Floats, Ints, StepTimes
from slicellm.bench.tasks import TaskColumns

_ROUNDING = 1e-9  # seconds by which a window is wider, against rounding in the clock's sums
_NARROW = 1e-6  # seconds; edges as near as this to another one are left out
_COARSE = 16  # bins at least in the longest window


@dataclass(frozen=True)
class Windows:
    """One entry a task. Times in seconds. A task that is not `competing` is met in any case
    (`free`) or in none; the other entries mean nothing for it."""

    utility: Floats
    free: Bools  # it has no target that time could break
    competing: Bools
    prompt: Ints
    decodes: Ints  # tokens after the first that have to be in time
    arrival: Floats
    earliest_first: Floats
    latest_first: Floats
    end: Floats

    @property
    def length(self) -> Floats:
        return self.end - self.arrival


def windows_of(tasks: TaskColumns, steps: StepTimes) -> Windows:
    """The windows of tasks with true output lengths."""

    def target(name: str) -> Floats:
        values = [getattr(kind.slo, name) for kind in tasks.kinds]
        seconds = [np.inf if v is None else v / 1e3 for v in values]
        by_kind: Floats = np.array(seconds, dtype=np.float64)
        return by_kind[tasks.kind]

    arrival, prompt = tasks.arrival_s, tasks.prompt_tokens
    output = np.minimum(tasks.output_tokens, tasks.max_tokens)
    ttft, tpot, deadline = target("ttft_ms"), target("tpot_ms"), target("deadline_ms")

    rest = np.maximum(output - 1, 0)
    least_decode = rest * steps.least
    earliest_first = arrival + steps.prefill_alone(int(prompt.max()))[prompt]
    latest_first = arrival + np.minimum(ttft, deadline - least_decode)
    with np.errstate(invalid="ignore"):
        paced = np.where(rest > 0, rest * tpot, 0.0)
    end = np.minimum(arrival + deadline, latest_first + paced)
    in_time = np.where(np.isfinite(end), rest, 0)
    end = np.where(in_time > 0, end, latest_first)
    latest_first = np.minimum(latest_first, end - in_time * steps.least) + _ROUNDING
    end = end + _ROUNDING
    possible = (rest == 0) | (tpot >= steps.least - _ROUNDING)
    free = ~np.isfinite(latest_first) & possible
    return Windows(
        utility=np.array([kind.utility for kind in tasks.kinds], dtype=np.float64)[tasks.kind],
        free=free,
        competing=~free & possible & (earliest_first <= latest_first),
        prompt=prompt,
        decodes=in_time,
        arrival=arrival - _ROUNDING,
        earliest_first=earliest_first - _ROUNDING,
        latest_first=latest_first,
        end=end,
    )


@dataclass(frozen=True)
class Grid:
    """Bins and, flat over the competing tasks, the bins of their windows: entry e says that task
    `task[e]` (by its place among them) may run in bin `bin[e]`; a task's entries are
    start[i] .. start[i + 1], ascending."""

    edges: Floats  # s, ascending
    start: Ints
    task: Ints
    bin: Ints
    prefill: Bools  # [entries] its prefill may run there
    decode: Bools  # [entries] its decode rows may

    @property
    def width(self) -> Floats:
        return np.diff(self.edges)


def make_grid(windows: Windows, steps: StepTimes, budget: int) -> Grid:
    """Bins with edges where short windows begin and end, so that rounding outward costs them
    nothing, and as many more as `budget` entries allow."""
    chosen = np.flatnonzero(windows.competing)
    begin, end = windows.arrival[chosen], windows.end[chosen]
    order = np.argsort(end - begin, kind="stable")

    def edges(count: int, pitch: float) -> Floats:
        exact = order[:count]
        grid = np.arange(begin.min(), end.max() + pitch, pitch)
        e: Floats = np.unique(np.concatenate([begin[exact], end[exact], grid]))
        wide: Floats = e[np.append(True, np.diff(e) > _NARROW)]
        return wide

    def entries(e: Floats) -> int:
        first, last = np.searchsorted(e, begin, "right"), np.searchsorted(e, end, "left")
        return int((last - first + 1).sum())

    pitch = float((end - begin).max()) / _COARSE
    low, high = 0, len(order)  # the most tasks whose own times are edges
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if entries(edges(middle, pitch)) <= budget else (low, middle - 1)
    if low == len(order):
        while pitch > steps.least and entries(edges(low, pitch / 2)) <= budget:
            pitch /= 2
    e = edges(low, pitch)
    first = np.maximum(np.searchsorted(e, begin, "right") - 1, 0)
    last = np.minimum(np.searchsorted(e, end, "left") - 1, len(e) - 2)
    count = last - first + 1
    start = np.concatenate([[0], np.cumsum(count)])
    task = np.repeat(np.arange(len(chosen)), count)
    bins = np.arange(start[-1]) - start[task] + first[task]
    return Grid(
        edges=e,
        start=start,
        task=task,
        bin=bins,
        prefill=e[bins] < windows.latest_first[chosen][task],
        decode=(e[bins + 1] > windows.earliest_first[chosen][task])
        & (windows.decodes[chosen][task] > 0),
    )
