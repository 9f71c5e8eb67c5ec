"""Rows of an embedding table: exactly the values that the weight stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops_module import weight

DTYPES = ["float32", "float16", "bfloat16", "int8", "int4", "int4g32"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [1, 33, 64, 300])
def test_embedding(device: Any, dtype: str, cols: int) -> None:
    rng = np.random.default_rng(cols)
    table, values = weight(rng.standard_normal((11, cols)).astype(np.float32), dtype)
    ids = [10, 0, 3, 3, 7]
    got = device.embed(ids, device.embedding(table))
    assert np.array_equal(got, values[ids].astype(np.float32))
