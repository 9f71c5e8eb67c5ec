"""Workloads: arrival process x length processes x classes with SLOs, and the tasks drawn from them.

Every part draws from its own random stream, derived from the seed and the part's name only, so that
changing one part (the rate, a class's lengths) leaves the others' draws as they were, and every
policy of a comparison gets the very same tasks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slicellm.bench import checks
from slicellm.bench.arrivals import Arrivals
from slicellm.bench.lengths import (
    Lengths,
    Trace,
    parse_lengths,
    parse_trace_name,
    read_text,
)
from slicellm.bench.tasks import Counts, Kind, Slo, TaskColumns

BUILT_IN = ("edge", "tiers")
LengthField = Literal["prompt_tokens", "output_tokens"]
_PARTS = (
    "arrivals",
    "classes",
    "prompt_lengths",
    "output_lengths",
    "trace",
    "tokens",
    "belief",
)  # in this order for ever: a part's place is its stream


def generator(seed: int, part: str, index: int = 0) -> np.random.Generator:
    """The random stream of one part of a workload; `index` tells its classes or tasks apart."""
    key = (_PARTS.index(part), index)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


@dataclass(frozen=True)
class TaskClass:
    """A share of the tasks with its targets; lengths are None where a trace gives them."""

    name: str
    share: float
    utility: float
    slo: Slo
    max_tokens: int
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None


@dataclass(frozen=True)
class Workload:
    """Classes and lengths; `arrivals` is the file's own arrival process, not yet at a rate."""

    name: str
    classes: tuple[TaskClass, ...]
    arrivals: Mapping[str, Any]
    trace: Trace | None = None

    def class_counts(self, n: int) -> Counts:
        """How many of n tasks each class gets: its share of n, rounded by largest remainder, so
        that a short run is as mixed as a long one; only their order is random."""
        shares = np.array([c.share for c in self.classes])
        exact = n * shares / shares.sum()
        counts: Counts = np.floor(exact + 1e-9).astype(
            np.int64
        )  # 0.15 * 60 may come out just below 9
        largest = np.argsort(counts - exact, kind="stable")
        counts[largest[: n - counts.sum()]] += 1
        return counts

    def lengths(self, n: int, seed: int) -> tuple[Counts, Counts, Counts]:
        """Class number, prompt length and output length of n tasks; outputs end at their class's
        max_tokens."""
        chosen = generator(seed, "classes").permutation(
            np.repeat(np.arange(len(self.classes)), self.class_counts(n))
        )
        if self.trace is not None:
            rows = self.trace.rows(n, generator(seed, "trace"))
            prompts, outputs = self.trace.prompt_tokens[rows], self.trace.output_tokens[rows]
        else:
            prompts = np.zeros(n, dtype=np.int64)
            outputs = np.zeros(n, dtype=np.int64)
        for i, c in enumerate(self.classes):
            # Each class draws for all n tasks, so that one class's draws never move another's.
            mine = chosen == i
            if c.prompt_tokens is not None:
                drawn = c.prompt_tokens.sample(n, generator(seed, "prompt_lengths", i))
                prompts = np.where(mine, drawn, prompts)
            if c.output_tokens is not None:
                drawn = c.output_tokens.sample(n, generator(seed, "output_lengths", i))
                outputs = np.where(mine, drawn, outputs)
        caps = np.array([c.max_tokens for c in self.classes], dtype=np.int64)
        return chosen, prompts, np.minimum(outputs, caps[chosen])

    def columns(self, n: int, seed: int, arrivals: Arrivals, slo_scale: float = 1.0) -> TaskColumns:
        """n tasks, by arrival."""
        chosen, prompts, outputs = self.lengths(n, seed)
        caps = np.array([c.max_tokens for c in self.classes], dtype=np.int64)
        return TaskColumns(
            tuple(Kind(c.name, c.utility, c.slo.scaled(slo_scale)) for c in self.classes),
            chosen,
            arrivals.times(n, generator(seed, "arrivals")),
            prompts,
            outputs,
            caps[chosen],
        )

    def capped(self, limit: int) -> Workload:
        """The same workload with at most `limit` output tokens a task."""
        return replace(
            self,
            classes=tuple(replace(c, max_tokens=min(c.max_tokens, limit)) for c in self.classes),
        )

    def with_lengths(self, field: LengthField, lengths: Lengths | None) -> Workload:
        """The same workload with other prompt or output lengths in every class; None = the
        trace's. Outputs still end at their class's max_tokens."""
        if lengths is None and self.trace is None:
            raise checks.invalid(field, "trace", "a trace beside it (--dataset-path)")
        return replace(
            self,
            classes=tuple(
                replace(c, prompt_tokens=lengths)
                if field == "prompt_tokens"
                else replace(c, output_tokens=lengths)
                for c in self.classes
            ),
        )

    def with_utility(self, utilities: Mapping[str, float]) -> Workload:
        """The same workload with the utility of some classes replaced, by name."""
        check_utilities(utilities, [c.name for c in self.classes])
        return replace(
            self,
            classes=tuple(
                replace(c, utility=utilities.get(c.name, c.utility)) for c in self.classes
            ),
        )


def check_utilities(utilities: Mapping[str, float], classes: Collection[str]) -> None:
    """Refuses the utility of a class that no task has."""
    for name in utilities:
        if name not in classes:
            raise checks.invalid("--utility", name, f"one of {', '.join(classes)}")


def prompt_ids(
    task: int, length: int, seed: int, vocabulary: int, avoid: Sequence[int]
) -> list[int]:
    """Random token ids of a length-only prompt: uniform over the vocabulary without `avoid` (end
    tokens)."""
    rng = generator(seed, "tokens", task)
    allowed = np.setdiff1d(np.arange(vocabulary), np.asarray(avoid, dtype=np.int64))
    return [int(i) for i in rng.choice(allowed, length)]


# ---- workload files -----------------------------------------------------------------------------


def _parse_class(i: int, spec: object, traced: bool) -> TaskClass:
    field = f"workload: classes[{i}]"
    body = checks.mapping(field, spec)
    lengths = () if traced else ("prompt_tokens", "output_tokens")
    checks.known_keys(
        field,
        body,
        ("name", "share", "utility", "ttft_ms", "tpot_ms", "deadline_ms", "max_tokens", *lengths),
    )
    name = checks.text(f"{field}.name", body.get("name"))
    field = f"workload: class {name}"
    slo = Slo(
        *(
            checks.target(f"{field}.{key}", body.get(key))
            for key in ("ttft_ms", "tpot_ms", "deadline_ms")
        )
    )
    if slo.ttft_ms is None and slo.deadline_ms is None:
        raise checks.invalid(
            field,
            "no ttft_ms and no deadline_ms",
            "at least one of them, or its tasks could wait for ever",
        )
    return TaskClass(
        name=name,
        share=checks.number(f"{field}.share", body.get("share"), 0, 1e9, above=True),
        utility=checks.number(f"{field}.utility", body.get("utility", 1), 0, 1e12),
        slo=slo,
        max_tokens=checks.integer(
            f"{field}.max_tokens", body.get("max_tokens"), 1, checks.MAX_TOKENS
        ),
        prompt_tokens=None
        if traced
        else parse_lengths(f"{field}.prompt_tokens", body.get("prompt_tokens")),
        output_tokens=None
        if traced
        else parse_lengths(f"{field}.output_tokens", body.get("output_tokens")),
    )


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise checks.invalid("workload: classes", ", ".join(names), "names that differ")


def parse_workload(text: str, trace: Trace | None = None) -> Workload:
    """A workload from its JSON text. With `lengths.trace` in it, `trace` is that file's content;
    else a trace gives arrivals, where it has them."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise checks.invalid("workload", str(error), "a JSON object") from None
    body = checks.mapping("workload", spec)
    checks.known_keys(
        "workload", body, ("name", "about", "arrivals", "lengths", "classes", "variants")
    )
    name = checks.text("workload: name", body.get("name"))
    traced = "lengths" in body
    if traced:
        wanted = parse_trace_name(checks.mapping("workload: lengths", body["lengths"]))
        if trace is None:
            raise checks.invalid(
                f"workload {name}",
                "no trace",
                f"--dataset-path {wanted}, a CSV "
                "with the columns num_prefill_tokens and num_decode_tokens",
            )
    classes = body.get("classes")
    if not isinstance(classes, list) or not classes:
        raise checks.invalid("workload: classes", classes, "a list of at least one class")
    parsed = tuple(_parse_class(i, c, traced) for i, c in enumerate(classes))
    _check_names([c.name for c in parsed])
    arrivals = checks.mapping("workload: arrivals", body.get("arrivals", {"process": "poisson"}))
    return Workload(name, parsed, arrivals, trace)


def load_workload(name_or_path: str, trace: Trace | None = None) -> Workload:
    """`edge`, `tiers` or the path of a workload file."""
    if name_or_path in BUILT_IN:
        file = resources.files("slicellm.bench") / "workloads" / f"{name_or_path}.json"
        return parse_workload(file.read_text(encoding="utf-8"), trace)
    if not Path(name_or_path).is_file():
        raise checks.invalid(
            "--workload", name_or_path, f"{', '.join(BUILT_IN)} or a workload file"
        )
    return parse_workload(read_text(name_or_path, "--workload"), trace)


def trace_workload(trace: Trace) -> Workload:
    """Tasks with the lengths of a trace and the classes of `tiers`."""
    return class_workload(load_workload("tiers", trace).classes, trace)


_SLO_CLASS = ("ttft_ms", "tpot_ms", "deadline_ms", "utility", "share")


def parse_slo_class(text: str) -> TaskClass:
    """`NAME:TTFT:TPOT:DEADLINE:UTILITY:SHARE` (ms; what is left empty is not declared, or 1), or
    `NAME:share=0.05,utility=10,ttft_ms=2000,tpot_ms=100,max_tokens=1024`."""
    name, _, rest = text.partition(":")
    if "=" in rest:
        pairs = [item.partition("=")[::2] for item in filter(None, rest.split(","))]
    else:
        values = rest.split(":")
        if len(values) > len(_SLO_CLASS):
            raise checks.invalid("--slo-class", text, "NAME:TTFT:TPOT:DEADLINE:UTILITY:SHARE")
        pairs = [(key, value) for key, value in zip(_SLO_CLASS, values) if value]
    spec: dict[str, Any] = {"name": name, "share": 1, "max_tokens": 1024}
    for key, value in pairs:
        try:
            spec[key] = float(value)
        except ValueError:
            raise checks.invalid(f"--slo-class {name}: {key}", value, "a number") from None
    return _parse_class(0, spec, traced=True)


def class_workload(classes: Sequence[TaskClass], trace: Trace | None) -> Workload:
    """A workload of classes from the command line; lengths come from the trace, or are given by
    `with_lengths`."""
    _check_names([c.name for c in classes])
    name = trace.name if trace is not None else ", ".join(c.name for c in classes)
    return Workload(name, tuple(classes), {"process": "poisson"}, trace)
