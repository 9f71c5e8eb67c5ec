"""What ops do to rows around a matrix product: norms, rounding to the product's input, gathering.

The matrix is the identity, so that the product shows its input: sums with zeros are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops_module import Array, assert_close, assert_same_bits, weight

from slicellm import _core

WIDTHS = [1, 3, 64, 100, 301, 1028]


def normed(x: Array, w: Array, bias: Array | None, eps: float) -> Array:
    x = x.astype(np.float64)
    if bias is None:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w + bias


def rounded(device: Any, x: Array, dtype: str) -> Array:
    """What meets the weights: float32 on the CPU, 16 bits on a GPU, where finite values beyond
    float16's range become its largest."""
    if device.name == "cpu":
        return x
    if dtype == "bfloat16":
        return np.asarray(_core.Weight.from_numpy("x", x).convert("bfloat16").decode(), np.float32)
    with np.errstate(over="ignore"):
        return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layer", [False, True])
def test_norm(device: Any, width: int, dtype: str, layer: bool) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal((5, width)).astype(np.float32) + 2
    x[1] *= 1e4
    x[2] *= 1e-3
    x[3] = 0
    w = rng.uniform(0.5, 2, width).astype(np.float32)
    bias = rng.standard_normal(width).astype(np.float32) if layer else None
    norm = device.norm(w, bias, 1e-5)
    identity = device.pack([weight(np.eye(width, dtype=np.float32), dtype)[0]])
    out, left = device.norm_linear(x, norm, identity, normed_into_x=True)
    assert_close(left, normed(x, w, bias, 1e-5), 2e-6 if width > 1 or not layer else 1e-5)
    assert np.array_equal(out, rounded(device, left, dtype))
    for row in range(5):  # alone as among others
        alone, _ = device.norm_linear(x[row : row + 1], norm, identity)
        assert_same_bits(alone, out[row : row + 1])
    untouched = device.norm_linear(x, norm, identity)[1]
    assert_same_bits(untouched, x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("width", [1, 65, 300])
def test_rounding_of_inputs(device: Any, dtype: str, width: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal((6, width)).astype(np.float32)
    x[1] *= 1e-5  # float16's subnormal numbers
    x[2] *= 1e-9
    x[3] = 65503.9 + rng.uniform(0, 32, width)  # about float16's largest
    x[4] = 1e6 * np.sign(x[4])
    x[5] = -0.0
    identity = device.pack([weight(np.eye(width, dtype=np.float32), dtype)[0]])
    got = device.linear_add(x, identity, 0.0, np.ones_like(x))
    assert np.array_equal(got, rounded(device, x, dtype))


def test_not_a_number_stays(device: Any) -> None:
    x = np.ones((2, 40), np.float32)
    x[1, 3] = np.nan
    identity = device.pack([weight(np.eye(40, dtype=np.float32), "float16")[0]])
    got = device.linear_add(x, identity, 0.0, np.zeros_like(x))
    assert np.isfinite(got[0]).all() and np.isnan(got[1]).any()


@pytest.mark.parametrize("rows", [[0], [4, 4, 0], [1, 2, 3, 4, 0], [3] * 11])
def test_logits_of_chosen_rows(device: Any, rows: list[int]) -> None:
    rng = np.random.default_rng(len(rows))
    x = rng.standard_normal((5, 100)).astype(np.float32)
    w = rng.uniform(0.5, 2, 100).astype(np.float32)
    head = device.pack([weight(np.eye(100, dtype=np.float32), "float16")[0]])
    norm = device.norm(w)
    everything, _ = device.norm_linear(x, norm, head)
    assert_same_bits(device.logits(x, rows, norm, head), everything[rows])
