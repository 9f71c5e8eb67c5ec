"""The decode-mask matrix by hand, packed and spread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicellm.policies import MaskMatrix, cycle_estimate_ms


def test_packed_matrix() -> None:
    matrix = MaskMatrix([5, 3, 1])
    assert matrix.to_numpy().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert [matrix.column(j) for j in range(5)] == [[0, 1, 2], [0, 1], [0, 1], [0], [0]]
    assert (matrix.rows, matrix.columns, matrix.rates) == (3, 5, (5, 3, 1))
    assert str(matrix) == "5  11111\n3  111..\n1  1...."


def test_spread_matrix() -> None:
    # Row of rate v: columns floor(k * 6 / v). v = 4: 0, 1.5, 3, 4.5; v = 2: 0, 3.
    matrix = MaskMatrix([6, 4, 2], "spread")
    assert matrix.to_numpy().tolist() == [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 0, 1, 1, 0],
        [1, 0, 0, 1, 0, 0],
    ]


def longest_gap(row: np.ndarray) -> int:
    """Columns from one token to the next, cycles back to back."""
    ones = np.flatnonzero(np.tile(row, 2))
    return int(np.diff(ones).max())


def test_spread_closes_the_gaps() -> None:
    # v = 4 of 20: packed has its tokens in columns 0..3, then 17 steps to the next.
    packed, spread = MaskMatrix([20, 4]), MaskMatrix([20, 4], "spread")
    assert longest_gap(packed.to_numpy()[1]) == 17
    assert longest_gap(spread.to_numpy()[1]) == 5


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sampled_from(["packed", "spread"]))
def test_matrix_properties(rates: list[int], layout: str) -> None:
    rates.sort(reverse=True)
    matrix = MaskMatrix(rates, layout)
    cells = matrix.to_numpy()
    assert cells.shape == (len(rates), rates[0])
    assert cells.sum(axis=1).tolist() == rates  # every task gets its rate
    assert (cells[:, 0] == 1).all()  # and is in the first column
    assert (cells.sum(axis=0) >= 1).all()  # no column is empty
    for j in range(matrix.columns):
        assert matrix.column(j) == np.flatnonzero(cells[:, j]).tolist()
    if layout == "spread":  # gaps of a row differ by at most one
        for row, rate in zip(cells, rates):
            if rate > 1:
                gaps = np.diff(np.flatnonzero(np.append(row, 1)))
                assert gaps.max() - gaps.min() <= 1


def test_spread_costs_the_same_for_affine_steps() -> None:
    steps = [10.0 + 3 * b for b in range(1, 8)]
    for rates in ([20, 8, 4], [9, 9, 7, 5, 3, 3, 1]):
        cells = MaskMatrix(rates, "spread").to_numpy()
        cost = sum(steps[rows - 1] for rows in cells.sum(axis=0))
        assert cost == pytest.approx(cycle_estimate_ms(rates, steps))


@pytest.mark.parametrize("rates", [[1, 2], [3, 0], [-1]])
def test_bad_rates_are_refused(rates: list[int]) -> None:
    with pytest.raises(ValueError, match="rates of at least 1, sorted from high to low"):
        MaskMatrix(rates)


def test_bad_matrix_arguments() -> None:
    with pytest.raises(ValueError, match='layout: got "diagonal", expected packed or spread'):
        MaskMatrix([1], "diagonal")
    with pytest.raises(ValueError, match="column: got 3, expected 0 to 2"):
        MaskMatrix([3]).column(3)
    with pytest.raises(ValueError, match="one for each number of rows up to 2"):
        cycle_estimate_ms([2, 1], [14])
    with pytest.raises(RuntimeError, match="at most 100000000 cells"):
        MaskMatrix([1_000_000_000]).to_numpy()
