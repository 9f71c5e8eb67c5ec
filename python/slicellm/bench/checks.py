"""Checks of what comes from outside: a fault is one sentence with field, value, expectation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slicellm.errors import InvalidArgument, make_error, show

# Token counts and task counts stay far below 2^31, which the core uses for them.
MAX_TOKENS = 1 << 24
MAX_TASKS = 1_000_000


def invalid(field: str, value: object, expected: str) -> InvalidArgument:
    """The error to raise: `<field>: got <value>, expected <expected>`."""
    return make_error(InvalidArgument, field, show(value), expected)


def number(field: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """A finite number in [low, high], or in (low, high] with `above`."""
    words = f"a number {'above' if above else 'of at least'} {low:g}"
    if math.isfinite(high):
        words += f" and at most {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(field, value, words)
    try:
        given = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        given = math.inf
    if not math.isfinite(given) or given < low or given > high or (above and given == low):
        raise invalid(field, value, words)
    return given


def integer(field: str, value: object, low: int, high: int) -> int:
    """A whole number in [low, high]; 30.0 counts as 30, as JSON writers differ."""
    words = f"a whole number from {low} to {high}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(field, value, words)
    return value


def target(field: str, value: object) -> float | None:
    """An optional SLO target in milliseconds."""
    return None if value is None else number(field, value, 0, 1e12, above=True)


def text(field: str, value: object) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise invalid(field, value, "a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        raise invalid(field, value, "valid Unicode text") from None
    return value


def known_keys(field: str, given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Refuses a misspelt key instead of ignoring it."""
    for key in given:
        if key not in allowed:
            raise invalid(f"{field}: key", key, f"one of {', '.join(allowed)}")


def mapping(field: str, value: object) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise invalid(field, value, "a JSON object")
    return value
