"""Length processes: how many tokens prompts and outputs have.

A process knows nothing of arrivals or classes. Lengths of a trace come in pairs (prompt and output
of one request), so a trace is a process for both at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slicellm.bench import checks
from slicellm.bench.tasks import Counts


class Lengths(Protocol):
    """n token counts, each at least 1."""

    def sample(self, n: int, rng: np.random.Generator) -> Counts: ...


@dataclass(frozen=True)
class Fixed:
    """Always the same."""

    tokens: int

    def sample(self, n: int, rng: np.random.Generator) -> Counts:
        return np.full(n, self.tokens, dtype=np.int64)


@dataclass(frozen=True)
class Uniform:
    """Whole numbers from low to high, both included."""

    low: int
    high: int

    def sample(self, n: int, rng: np.random.Generator) -> Counts:
        return np.asarray(rng.integers(self.low, self.high, n, endpoint=True), dtype=np.int64)


@dataclass(frozen=True)
class LogNormal:
    """exp(Normal(mu, sigma)), rounded, clipped to [low, high]."""

    mu: float
    sigma: float
    low: int
    high: int

    def sample(self, n: int, rng: np.random.Generator) -> Counts:
        # Clipped before the exponential: a huge sigma must not overflow.
        exponents = np.minimum(rng.normal(self.mu, self.sigma, n), np.log(float(self.high)) + 1)
        counts: Counts = np.clip(np.rint(np.exp(exponents)), self.low, self.high).astype(np.int64)
        return counts


def _pair(field: str, value: object) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise checks.invalid(field, value, "two whole numbers [low, high]")
    low = checks.integer(f"{field}[0]", value[0], 1, checks.MAX_TOKENS)
    high = checks.integer(f"{field}[1]", value[1], 1, checks.MAX_TOKENS)
    if low > high:
        raise checks.invalid(field, list(value), "low at most high")
    return low, high


def parse_lengths(field: str, spec: object) -> Lengths:
    """{"fixed": n}, {"uniform": [low, high]} or {"lognormal": {"mu", "sigma", "clip": [low, high]}}
    as a process."""
    body = checks.mapping(field, spec)
    if len(body) != 1:
        raise checks.invalid(field, dict(body), "one of fixed, uniform, lognormal")
    ((kind, value),) = body.items()
    field = f"{field}.{kind}"
    if kind == "fixed":
        return Fixed(checks.integer(field, value, 1, checks.MAX_TOKENS))
    if kind == "uniform":
        return Uniform(*_pair(field, value))
    if kind == "lognormal":
        value = checks.mapping(field, value)
        checks.known_keys(field, value, ("mu", "sigma", "clip"))
        return LogNormal(
            checks.number(f"{field}.mu", value.get("mu"), -50, 50),
            checks.number(f"{field}.sigma", value.get("sigma"), 0, 50),
            *_pair(f"{field}.clip", value.get("clip")),
        )
    raise checks.invalid(field, kind, "one of fixed, uniform, lognormal")


_NUMBERS = {"fixed": 1, "uniform": 2, "lognormal": 4}


def parse_lengths_text(flag: str, text: str) -> Lengths | None:
    """`fixed:N`, `uniform:LOW:HIGH`, `lognormal:MU:SIGMA:LOW:HIGH`, or `trace`, which is None."""
    kind, *values = text.split(":")
    if kind == "trace" and not values:
        return None
    if len(values) != _NUMBERS.get(kind):
        expected = "fixed:N, uniform:LOW:HIGH, lognormal:MU:SIGMA:LOW:HIGH or trace"
        raise checks.invalid(flag, text, expected)
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            raise checks.invalid(f"{flag} {kind}", value, "a number") from None
    spec: Any = numbers
    if kind == "fixed":
        spec = numbers[0]
    elif kind == "lognormal":
        spec = {"mu": numbers[0], "sigma": numbers[1], "clip": numbers[2:]}
    return parse_lengths(flag, {kind: spec})


@dataclass(frozen=True)
class Trace:
    """Columns of recorded requests; `arrived_at` is absent in traces of lengths only."""

    name: str
    prompt_tokens: Counts
    output_tokens: Counts
    arrived_at: npt.NDArray[np.float64] | None

    def rows(self, n: int, rng: np.random.Generator) -> Counts:
        """Row numbers for n tasks: in the file's order when it has arrivals, else drawn without
        replacement; a trace shorter than n is used again."""
        total = len(self.prompt_tokens)
        if self.arrived_at is not None:
            return np.arange(n, dtype=np.int64) % total
        rounds = [rng.permutation(total) for _ in range(-(-n // total))]
        return np.concatenate(rounds)[:n].astype(np.int64)


PROMPT, OUTPUT, ARRIVAL = "num_prefill_tokens", "num_decode_tokens", "arrived_at"


def read_text(path: str | Path, what: str) -> str:
    """The UTF-8 text of a file; one sentence when it cannot be read."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise checks.invalid(what, str(path), f"a readable file ({error.strerror})") from None
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise checks.invalid(
            f"{what} {path}, line {line}",
            f"byte 0x{data[error.start]:02x} at offset {error.start}",
            "UTF-8 text",
        ) from None
    if not content.strip():
        raise checks.invalid(what, str(path), "a file that is not empty")
    return content.removeprefix("\ufeff")


def read_trace(path: str | Path) -> Trace:
    """A CSV with num_prefill_tokens, num_decode_tokens and, if it has arrivals, arrived_at (s).
    Rows whose counts are not positive carry no request and are left out."""
    what = "--dataset-path"
    reader = csv.DictReader(io.StringIO(read_text(path, what)))
    try:
        return _parse_trace(reader, path, what)
    except csv.Error as error:
        line = reader.reader.line_num
        raise checks.invalid(f"{what} {path}, line {line}", str(error), "CSV") from None


def _parse_trace(reader: csv.DictReader[str], path: str | Path, what: str) -> Trace:
    columns = reader.fieldnames or []
    for column in (PROMPT, OUTPUT):
        if column not in columns:
            raise checks.invalid(
                f"{what} {path}: columns", ", ".join(columns), f"{column} among them"
            )
    has_arrivals = ARRIVAL in columns
    prompts: list[int] = []
    outputs: list[int] = []
    arrivals: list[float] = []
    for row in reader:
        where = f"{what} {path}, line {reader.line_num}"
        values = {}
        for column in (PROMPT, OUTPUT) + ((ARRIVAL,) if has_arrivals else ()):
            try:
                values[column] = float(row[column])
            except (TypeError, ValueError):
                raise checks.invalid(f"{where}: {column}", row[column], "a number") from None
        prompt = checks.integer(f"{where}: {PROMPT}", values[PROMPT], 0, checks.MAX_TOKENS)
        output = checks.integer(f"{where}: {OUTPUT}", values[OUTPUT], 0, checks.MAX_TOKENS)
        if prompt < 1 or output < 1:
            continue
        prompts.append(prompt)
        outputs.append(output)
        if has_arrivals:
            at = checks.number(f"{where}: {ARRIVAL}", values[ARRIVAL], 0, 1e12)
            if arrivals and at < arrivals[-1]:
                raise checks.invalid(
                    f"{where}: {ARRIVAL}", at, f"at least {arrivals[-1]}, ascending"
                )
            arrivals.append(at)
    if not prompts:
        raise checks.invalid(f"{what} {path}", "no row", "at least one request")
    return Trace(
        Path(path).name,
        np.array(prompts),
        np.array(outputs),
        np.array(arrivals) if has_arrivals else None,
    )


def parse_trace_name(spec: Mapping[str, Any]) -> str:
    """The file name that a workload whose lengths come from a trace asks for."""
    checks.known_keys("workload: lengths", spec, ("trace",))
    return checks.text("workload: lengths.trace", spec.get("trace"))
