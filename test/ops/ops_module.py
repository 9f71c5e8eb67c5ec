"""The module _ops, without which the tests of ops are skipped, and what the tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from slicellm import _core  # before _ops: it knows Weight and the exceptions

ops: Any = pytest.importorskip(
    "_ops",
    reason="no module _ops: build with -DSLICELLM_TESTS=ON -DSLICELLM_SIMT=ON and put it and that "
    "build's _core on the path, as tools/test does",
)

Array = npt.NDArray[Any]


def weight(array: Array, dtype: str | None = None) -> tuple[_core.Weight, Array]:
    """A weight of `dtype` (none: the array's), and the float64 values that it stands for."""
    w = _core.Weight.from_numpy("w", array)
    if dtype is not None:
        w = w.convert(dtype)
    return w, np.asarray(w.decode(), np.float64)


def assert_close(got: Array, expected: Array, bound: float) -> None:
    """Each row's |got - expected| is at most `bound` of |expected| (Euclidean norms), and no
    element is off by more than `bound` of the row's largest."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    error = np.abs(got - expected)
    size = np.linalg.norm(expected, axis=-1)
    assert (np.linalg.norm(error, axis=-1) <= bound * size).all()
    assert (error.max(-1) <= bound * np.abs(expected).max(-1)).all()


def assert_same_bits(got: Array, expected: Array) -> None:
    assert got.dtype == expected.dtype == np.float32 and got.shape == expected.shape
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))
