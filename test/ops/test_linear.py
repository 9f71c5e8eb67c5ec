"""Linear layers against float64 products of the very values that the weights stand for.

Inputs have 8 significant bits, so that they reach the weights unrounded on every device. What is
left is bounded for each element, in parts of the sum of the products' sizes: a GPU decodes int
weights to float16 (2^-11), and packs float32 ones as float16; sums are in float32 (1e-5, with room
for how a GPU's matrix unit adds).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops_module import Array, assert_same_bits, ops, weight

from slicellm import _core

BATCHES = [1, 2, 7, 8, 9, 17, 33, 65]  # one or more for each kernel of the GPU, and its tails
DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int4",
    "int4g32",
    "int4g64",
    "int4g128",
    "int4g48",  # no group size of the GPU's own
]
SUMS = 1e-5
ROUNDING = 2.0**-11


def inputs(rng: np.random.Generator, rows: int, cols: int) -> Array:
    return (rng.integers(-255, 256, (rows, cols)) / 64).astype(np.float32)


def rounding(device: Any, dtype: str) -> float:
    return 0 if device.name == "cpu" or dtype in ("float16", "bfloat16") else ROUNDING


def assert_products(
    device: Any, got: Array, x: Array, values: Array, dtype: str, extra: Array | None = None
) -> None:
    """`got` is x @ values.T (+ extra) within the bound above."""
    expected = x.astype(np.float64) @ values.T
    size = np.abs(x).astype(np.float64) @ np.abs(values).T
    bound = (SUMS + rounding(device, dtype)) * size + 1e-30
    if extra is not None:
        expected = expected + extra
        bound = bound + 1e-6 * np.abs(extra)
    assert np.isfinite(got).all()
    assert (np.abs(got - expected) <= bound).all()


def plain(device: Any, x: Array, linear: Any) -> Array:
    zeros = np.zeros((len(x), linear.out_features), np.float32)
    return np.asarray(device.linear_add(x, linear, 0, zeros))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "out, width", [(1, 1), (16, 64), (100, 203), (37, 1100), (530, 130), (20, 5000)]
)
def test_products(device: Any, dtype: str, out: int, width: int) -> None:
    rng = np.random.default_rng(out)
    w, values = weight((0.1 * rng.standard_normal((out, width))).astype(np.float32), dtype)
    linear = device.pack([w])
    assert (linear.in_features, linear.out_features) == (width, out)
    x = inputs(rng, BATCHES[-1], width)
    together = plain(device, x, linear)
    assert_products(device, together, x, values, dtype)
    for n in BATCHES[:-1]:  # a row's bits do not depend on the others
        assert_same_bits(plain(device, x[-n:], linear), together[-n:])
    assert plain(device, x[:0], linear).shape == (0, out)


@pytest.mark.parametrize("dtype", ["int4g32", "int8", "float16", "bfloat16"])
@pytest.mark.parametrize("out", [100, 300])
def test_prefill(device: Any, dtype: str, out: int) -> None:
    rng = np.random.default_rng(out)
    w, values = weight((0.1 * rng.standard_normal((out, 710))).astype(np.float32), dtype)
    linear = device.pack([w])
    x = inputs(rng, 150, 710)
    together = plain(device, x, linear)
    assert_products(device, together, x, values, dtype)
    for n in (1, 40):
        assert_same_bits(plain(device, x[-n:], linear), together[-n:])


@pytest.mark.parametrize("dtype", ["int4g32", "int8", "float16", "bfloat16"])
def test_stacked_with_biases_and_residual(device: Any, dtype: str) -> None:
    rng = np.random.default_rng(1)
    parts = [weight(rng.standard_normal((rows, 96)).astype(np.float32), dtype) for rows in (5, 30)]
    biases = [[], rng.standard_normal(30).astype(np.float32)]
    linear = device.pack([part[0] for part in parts], biases)
    values = np.concatenate([part[1] for part in parts])
    bias = np.concatenate([np.zeros(5), biases[1]])
    x = inputs(rng, 65, 96)
    residual = rng.standard_normal((65, 35)).astype(np.float32)
    together = device.linear_add(x, linear, 0.5, residual)
    assert_products(device, together, x, values, dtype, bias + 0.5 * residual.astype(np.float64))
    for n in BATCHES[:-1]:
        assert_same_bits(device.linear_add(x[:n], linear, 0.5, residual[:n]), together[:n])


def act_reference(x: Array, values: Array, bias: Array, act: str) -> Array:
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    y = normed @ values.T + bias
    if act == "gelu_tanh":
        return np.asarray(0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))))
    gate, up = np.split(y, 2, axis=-1)
    return np.asarray(gate / (1 + np.exp(-gate)) * up)


@pytest.mark.parametrize("act", ["silu_gate", "gelu_tanh"])
@pytest.mark.parametrize("dtype", ["int4g64", "int8", "float16"])
@pytest.mark.parametrize("inner", [7, 203])
def test_activations(device: Any, act: str, dtype: str, inner: int) -> None:
    rng = np.random.default_rng(inner)
    halves = 2 if act == "silu_gate" else 1
    parts = [
        weight((0.1 * rng.standard_normal((inner, 192))).astype(np.float32), dtype)
        for _ in range(halves)
    ]
    biases = [rng.standard_normal(inner).astype(np.float32) for _ in range(halves)]
    linear = device.pack([part[0] for part in parts], biases, gated=act == "silu_gate")
    norm = device.norm(np.ones(192, np.float32))
    x = inputs(rng, 65, 192)
    together, _ = device.norm_linear_act(x, norm, linear, act)
    values = np.concatenate([part[1] for part in parts])
    expected = act_reference(x, values, np.concatenate(biases), act)
    error = together - expected  # of the matrix: sums that cancel have rows to themselves
    assert np.linalg.norm(error) <= 5e-4 * np.linalg.norm(expected)
    assert np.abs(error).max() <= 1e-3 * np.abs(expected).max()
    for n in BATCHES[:-1]:
        assert_same_bits(device.norm_linear_act(x[:n], norm, linear, act)[0], together[:n])


@pytest.mark.parametrize("dtype, group_size", [("int4", 32), ("int4", 300), ("int8", 128)])
def test_any_minimum(device: Any, dtype: str, group_size: int) -> None:
    """Minimums that are no multiple of their scale, of either sign, and constant groups."""
    rng = np.random.default_rng(group_size)
    rows, cols, top = 40, 300, 15 if dtype == "int4" else 255
    groups = -(-cols // group_size)
    codes = rng.integers(0, top + 1, (rows, cols)).astype(np.uint8)
    scale = rng.uniform(0.5, 2, (rows, groups)).astype(np.float32) / top
    minimum = rng.uniform(-1.5, 0.5, (rows, groups)).astype(np.float32)
    scale[3], minimum[3] = 0, -0.75
    scale[4], minimum[4] = 0, 0
    w = ops.quantized(codes, scale, minimum, dtype, group_size)
    at = np.arange(cols) // group_size
    values = minimum.astype(np.float64)[:, at] + scale.astype(np.float64)[:, at] * codes
    assert np.allclose(values, w.decode(), rtol=1e-6, atol=1e-6)
    x = inputs(rng, 33, cols)
    linear = device.pack([w])
    got = plain(device, x, linear)
    expected = x.astype(np.float64) @ values.T
    # A GPU rounds scale, offset and their sum; each is below |minimum| + scale * top.
    most = np.abs(minimum).astype(np.float64) + scale * top
    size = np.abs(x).astype(np.float64) @ most[:, at].T
    bound = SUMS if device.name == "cpu" else ROUNDING + SUMS
    assert (np.abs(got - expected) <= bound * size).all()
    for n in (1, 9):
        assert_same_bits(plain(device, x[:n], linear), got[:n])


@pytest.mark.parametrize("dtype", ["float32", "int4g32", "int8"])
def test_tiny_weights(device: Any, dtype: str) -> None:
    """Scales below float16's normal range are as exact as the quantiser made them."""
    rng = np.random.default_rng(3)
    w, values = weight((1e-5 * rng.standard_normal((24, 160))).astype(np.float32), dtype)
    x = inputs(rng, 9, 160)
    got = plain(device, x, device.pack([w]))
    # Multiples of 2^-24, and sums of them.
    absolute = 0 if device.name == "cpu" else 2.0**-25
    size = np.abs(x).astype(np.float64) @ (np.abs(values) * (SUMS + ROUNDING) + absolute).T
    assert (np.abs(got - x.astype(np.float64) @ values.T) <= size).all()


def test_bytes(device: Any) -> None:
    """What a use reads: codes and four bytes a group, on a GPU (the CPU's layout is its own)."""
    w, _ = weight(np.ones((32, 256), np.float32), "int4g128")
    if device.name != "cpu":
        assert device.pack([w]).bytes == 32 * 256 // 2 + 32 * 2 * 4


def test_faults(device: Any) -> None:
    def of(shape: tuple[int, int], dtype: str = "float16") -> Any:
        return weight(np.ones(shape, np.float32), dtype)[0]

    for matrices in ([of((4, 64)), of((4, 65))], [of((4, 64)), of((4, 64), "int8")]):
        with pytest.raises(_core.Unsupported, match="stacked with"):
            device.pack(matrices)
    with pytest.raises(_core.Unsupported, match="a bias of 3"):
        device.pack([of((4, 64))], [np.ones(3)])
    with pytest.raises(_core.Unsupported, match="an even number of gate and up rows"):
        device.pack([of((5, 64))], gated=True)
    with pytest.raises(_core.InvalidArgument, match="at least one matrix"):
        device.pack([])
    scale, minimum = np.full((2, 1), 1e5), np.zeros((2, 1))
    wide = ops.quantized(np.ones((2, 64), np.uint8), scale, minimum, "int8", 64)
    huge = _core.Weight.from_numpy("w", np.full((2, 64), 1e6, np.float32))
    for w in (wide, huge):
        if device.name == "cpu":
            device.pack([w])
        else:
            with pytest.raises(_core.Unsupported, match="values that float16 can hold"):
                device.pack([w])
