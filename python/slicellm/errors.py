"""Errors say what was wrong in one sentence: "<field>: got <value>, expected <expected>"."""

from __future__ import annotations

from typing import Any, TypeVar

from ._core import (
    Error,
    FormatError,
    InvalidArgument,
    IoError,
    ResourceError,
    StateError,
    Unsupported,
)

__all__ = [
    "Error",
    "FormatError",
    "InvalidArgument",
    "IoError",
    "ResourceError",
    "StateError",
    "Unsupported",
    "make_error",
    "show",
]

AnyError = TypeVar("AnyError", bound=Error)


def make_error(kind: type[AnyError], field: str, value: str, expected: str) -> AnyError:
    """An error of class `kind` with the three parts and their sentence, as the core makes them.

    >>> str(make_error(InvalidArgument, "tpot_ms", "-3", "a number above 0"))
    'tpot_ms: got -3, expected a number above 0'
    """
    error = kind(f"{field}: got {value}, expected {expected}")
    error.field, error.value, error.expected = field, value, expected
    return error


def show(value: Any, limit: int = 60) -> str:
    """`value` for an error's sentence: its repr on one line, cut to `limit` characters."""
    if isinstance(value, (str, bytes)):
        value = value[: limit + 1]
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
