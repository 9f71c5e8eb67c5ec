"""Number formats: 16-bit floats against numpy, quantisation error against its bound in float64."""

from __future__ import annotations

import numpy as np
import pytest
from flm_bytes import Array
from hypothesis import given, settings
from hypothesis import strategies as st

from slicellm import FormatError, InvalidArgument, Unsupported, _core

RNG = np.random.default_rng


def weight(array: Array) -> _core.Weight:
    return _core.Weight.from_numpy("w", array)


def float32_samples() -> Array:
    """Every float16 bit pattern's neighbourhood, and float32 bit patterns at random."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    bits = halves.view(np.uint32)
    near = np.concatenate([bits, bits + 1, bits - 1, bits + 0x1000, bits + 0xFFF, bits + 0x1001])
    near = np.concatenate([near, RNG(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)])
    values = near.view(np.float32)
    return values[np.isfinite(values)]


def test_half_to_float_is_exact_for_every_pattern() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(
        weight(halves).decode().view(np.uint32), halves.astype(np.float32).view(np.uint32)
    )


def test_float_to_half_rounds_to_nearest_even() -> None:
    values = float32_samples()
    values = values[np.abs(values) < 65520]
    ours = weight(values).convert("float16").decode()
    np.testing.assert_array_equal(ours, values.astype(np.float16).astype(np.float32))


def test_float_to_bfloat16_rounds_to_nearest_even() -> None:
    values = float32_samples()
    values = values[np.abs(values) < 3.3e38]
    ours = weight(values).convert("bfloat16").decode().astype(np.float64)
    # The two bfloat16 around each value, and which of them is nearer (or even, when between).
    below = (values.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    above = ((values.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32).astype(np.float64)
    to_below, to_above = np.abs(values - below), np.abs(values - above)
    odd = (values.view(np.uint32) >> 16) & 1
    expected = np.where((to_above < to_below) | ((to_above == to_below) & (odd == 1)), above, below)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("dtype, least", [("float16", 65520.0), ("bfloat16", 255.5 * 2.0**120)])
def test_values_beyond_a_float_type_are_refused(dtype: str, least: float) -> None:
    largest = np.nextafter(np.float32(least), np.float32(0))
    assert np.isfinite(weight(np.float32([1, -largest])).convert(dtype).decode()).all()
    for value in (least, -least):
        with pytest.raises(Unsupported, match=f"w: got a value.*{dtype}"):
            weight(np.float32([1, value])).convert(dtype)


# ---- int8 and int4 -------------------------------------------------------------------------------
def groups_of(array: Array, group: int) -> list[Array]:
    return [array[:, i : i + group] for i in range(0, array.shape[1], group)]


def check_quantised(values: Array, dtype: str) -> None:
    """The documented grid and its error bound, in float64."""
    quantised = weight(values).convert(dtype)
    name, group = _core.parse_dtype(dtype)
    group = group or values.shape[1]
    levels = 255 if name == "int8" else 15
    assert quantised.dtype == name and quantised.group_size == group
    scale = quantised.scale.reshape(values.shape[0], -1).astype(np.float64)
    minimum = quantised.minimum.reshape(scale.shape).astype(np.float64)
    assert np.array_equal(scale, scale.astype(np.float16).astype(np.float64)) and (scale > 0).all()
    zero = -minimum / scale
    assert np.array_equal(zero, np.round(zero)) and (zero >= 0).all() and (zero <= levels).all()

    error = np.abs(quantised.decode().astype(np.float64) - values)
    for i, (piece, off) in enumerate(zip(groups_of(values, group), groups_of(error, group))):
        step = scale[:, i : i + 1]
        assert (off <= 0.5 * step * (1 + 1e-5)).all()
        # The scale is the range's, 0 in it, rounded up to a float16 (a 2^-11th, or 2^-24).
        low = np.minimum(piece.min(axis=1, keepdims=True), 0).astype(np.float64)
        high = np.maximum(piece.max(axis=1, keepdims=True), 0).astype(np.float64)
        constant = piece.min(axis=1, keepdims=True) == piece.max(axis=1, keepdims=True)
        least = (high - low) / levels
        assert (constant | (step >= least * (1 - 1e-7))).all()
        assert (constant | (step <= least * (1 + 2**-10) + 2**-24)).all()
        rows = constant[:, 0]
        ours = groups_of(quantised.decode(), group)[i][rows]
        assert np.array_equal(ours, piece[rows].astype(np.float16).astype(np.float32))


DTYPES = ["int8", "int4", "int4g32", "int4g128", "int4g5"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 256), (7, 33), (3, 1), (1, 4097), (300, 129)])
def test_error_bound(dtype: str, shape: tuple[int, int]) -> None:
    check_quantised(RNG(1).standard_normal(shape).astype(np.float32), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [5.0, -5.0])
def test_one_sided_rows(dtype: str, offset: float) -> None:
    values = RNG(2).uniform(-1, 1, (8, 64)).astype(np.float32) + np.float32(offset)
    check_quantised(values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_small_constant(dtype: str) -> None:
    """Around all subnormal float16s, where neighbours are far apart."""
    halves = np.arange(0, 3 * 1024, 3, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = np.concatenate([halves, halves + np.float32(2**-25), -halves * np.float32(1.0001)])
    check_quantised(np.repeat(values[:, None], 3, axis=1), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_rows(dtype: str) -> None:
    values = np.zeros((9, 64), np.float32)
    values[:, :] = np.float32([0, 1, -1, 3e-5, 0.1, -0.1, 65504, 1e-9, -1.49e-7])[:, None]
    check_quantised(values, dtype)
    # No larger than the scales of ordinary rows of that size (very small ones cannot be divided).
    normal = (values[:, 0] == 0) | (np.abs(values[:, 0]) > 1e-2)
    scale = weight(values).convert(dtype).scale.reshape(9, -1)[normal, 0]
    least = np.abs(values[normal, 0]) / (127 if dtype == "int8" else 7)
    assert (scale <= np.maximum(least, 2**-24)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_and_large_rows(dtype: str) -> None:
    for factor in (1e-9, 1e-6, 1e-4, 1e4, 4e5):
        check_quantised(
            RNG(3).uniform(-1, 1, (4, 64)).astype(np.float32) * np.float32(factor), dtype
        )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40),
    st.integers(1, 3),
    st.sampled_from(DTYPES),
)
def test_any_values(row: list[float], rows: int, dtype: str) -> None:
    check_quantised(np.float32([np.roll(row, i) for i in range(rows)]), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4", "int4g5"])
def test_threads_change_nothing(dtype: str) -> None:
    """Large and odd-sized, so that pieces of work end inside groups, rows and bytes."""
    values = weight(RNG(4).standard_normal((1201, 777)).astype(np.float32))
    one, four = values.convert(dtype), values.convert(dtype, threads=4)
    np.testing.assert_array_equal(one.decode(), four.decode())
    np.testing.assert_array_equal(one.scale, four.scale)


def test_a_tensor_that_has_the_type_is_returned_as_it_is() -> None:
    quantised = weight(RNG(5).standard_normal((4, 64)).astype(np.float32)).convert("int4g32")
    again = quantised.convert("int4g32")
    np.testing.assert_array_equal(again.scale, quantised.scale)
    np.testing.assert_array_equal(again.decode(), quantised.decode())


def test_quantised_to_another_type_goes_through_its_values() -> None:
    quantised = weight(RNG(6).standard_normal((4, 64)).astype(np.float32)).convert("int4g32")
    np.testing.assert_array_equal(quantised.convert("float32").decode(), quantised.decode())
    assert quantised.convert("int4").group_size == 64


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4", "int4g3"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 7, 8, 16])
def test_nan_and_infinity_are_refused_by_name(dtype: str, bad: float, column: int) -> None:
    values = np.ones((3, 17), np.float32)
    values[2, column] = bad
    with pytest.raises(FormatError, match="w: got NaN or infinity, expected finite weights"):
        weight(values).convert(dtype)


def test_ranges_beyond_float16_scales_are_refused() -> None:
    with pytest.raises(Unsupported, match="w: got a value"):
        weight(np.float32([[0, 3e6]])).convert("int4")
    with pytest.raises(Unsupported, match="w: got a value"):
        weight(np.float32([[-3.4e38, 3.4e38]])).convert("int8")


def test_vectors_are_not_quantised() -> None:
    with pytest.raises(Unsupported, match="w: got 1 dimensions for int8, expected a matrix"):
        weight(np.float32([1, 2])).convert("int8")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("float32", ("float32", 0)),
        ("fp32", ("float32", 0)),
        ("half", ("float16", 0)),
        ("fp16", ("float16", 0)),
        ("bf16", ("bfloat16", 0)),
        ("int8", ("int8", 0)),
        ("int4", ("int4", 0)),
        ("int4g", ("int4", 128)),
        ("int4g32", ("int4", 32)),
        ("int4g1048576", ("int4", 1 << 20)),
    ],
)
def test_parse_dtype(text: str, expected: tuple[str, int]) -> None:
    assert _core.parse_dtype(text) == expected


@pytest.mark.parametrize(
    "text", ["", "int", "INT4", "int4g0", "int4g-1", "int4g1048577", "int4g1e2", "int4g 8", "int44",
             "int4g99999999999999999999", "float16 ", "\x00"]
)  # fmt: skip
def test_bad_dtypes(text: str) -> None:
    with pytest.raises(InvalidArgument, match="dtype: got .* expected one of float32") as caught:
        _core.parse_dtype(text)
    assert caught.value.field == "dtype"


@pytest.mark.parametrize("text", ["fp8", "fp8_e4m3", "int2g128", "ggml_q4_k"])
def test_foreign_dtypes(text: str) -> None:
    with pytest.raises(Unsupported, match="dtype"):
        _core.parse_dtype(text)


@pytest.mark.parametrize("dtype", ["int8", "int4g32"])
@pytest.mark.parametrize("peak", [1e-45, 1e-44, 1e-43, 1e-40])
def test_the_smallest_numbers_become_zero(dtype: str, peak: float) -> None:
    """Divided by the number of codes they underflow; float16 scales know nothing so small."""
    values = np.zeros((2, 64), np.float32)
    values[0, 3] = peak
    values[1, 5] = -peak
    decoded = weight(values).convert(dtype).decode()
    assert np.isfinite(decoded).all() and np.abs(decoded).max() < 1e-7
