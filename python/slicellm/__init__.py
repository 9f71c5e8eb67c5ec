"""LLM inference for one edge box that keeps a promise to each request."""

from __future__ import annotations

from .errors import (
    Error,
    FormatError,
    InvalidArgument,
    IoError,
    ResourceError,
    StateError,
    Unsupported,
)

__version__ = "0.1.0"

__all__ = [
    "Error",
    "FormatError",
    "InvalidArgument",
    "IoError",
    "ResourceError",
    "StateError",
    "Unsupported",
    "__version__",
]
