"""Weights arrive on the GPU as they were packed, whatever the pieces they travel in and the place
where they are packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops_module import ops, weight

if ops.cuda != "simt":
    pytest.skip("the emulator copies as late as CUDA allows", allow_module_level=True)

WHOLE = 1 << 24  # bytes of a piece
LAYERS = [  # rows of the matrices, columns, dtype, with biases, gated
    ([100], 96, "float16", False, False),
    ([33, 16, 16], 200, "bfloat16", True, False),
    ([72, 72], 130, "int8", False, True),
    ([250], 256, "int4g32", True, False),
    ([40, 40], 96, "int4g32", True, True),
]


@pytest.mark.parametrize(("rows", "cols", "dtype", "biases", "gated"), LAYERS)
def test_layers(rows: list[int], cols: int, dtype: str, biases: bool, gated: bool) -> None:
    rng = np.random.default_rng(cols)
    matrices = [weight(rng.normal(size=(n, cols)).astype(np.float32), dtype)[0] for n in rows]
    bias = [rng.normal(size=n).tolist() if biases else [] for n in rows]

    def upload(piece_bytes: int, in_place: bool = False) -> Any:
        return ops.upload_linear(matrices, bias, gated, piece_bytes, in_place)

    whole = upload(WHOLE)
    assert len(whole) > sum(rows) * cols // 2
    for piece_bytes in (1, 20_000, 70_000):
        assert upload(piece_bytes) == whole, piece_bytes
        assert upload(piece_bytes, in_place=True) == whole, piece_bytes


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_001])
def test_arrays(size: int, in_place: bool) -> None:
    array = np.random.default_rng(size).bytes(size)
    for piece_bytes in (WHOLE, 1_000_000, 999):
        if size < 1000 * piece_bytes:
            assert ops.upload_array(array, piece_bytes, in_place) == 2 * array
