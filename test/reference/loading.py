"""How the numerics tests run the engine's model and measure it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slicellm import _core

from .layers import Array

ISAS = (
    ("portable", "neon", "dotprod", "i8mm")
    if platform.machine() == "aarch64"
    else ("portable", "avx2", "avx512")
)


def load(path: str | os.PathLike[str], isa: str = "", **options: Any) -> _core.Model:
    """Loads on two threads; skips the test where this CPU lacks the instruction set."""
    try:
        return _core.Model.load(str(Path(path)), isa=isa, **{"threads": 2, **options})
    except _core.InvalidArgument as error:
        if isa in ISAS and error.field == "isa":
            pytest.skip(str(error))
        raise


def decode_steps(prompt: int, total: int) -> list[int]:
    """Step sizes: the prompt at once, then one token a step through the cache."""
    return [prompt] + [1] * (total - prompt)


def relative_error(got: Array, expected: Array) -> float:
    """The worst token's |got - expected| / |expected|, Euclidean norms over the vocabulary."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    return float(
        (np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()
    )
