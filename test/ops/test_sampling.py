"""Tokens drawn from logits, beside the rules of src/engine/sampling.h written down in float64."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from ops_module import Array, ops

# row of the logits, temperature, top_k, top_p, min_p, seed, position
Draw = tuple[int, float, int, float, float, int, int]

MASK = (1 << 64) - 1


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def uniform(seed: int, position: int) -> float:
    golden = 0x9E3779B97F4A7C15
    bits = mix((mix(seed + golden & MASK) + golden * (position + 1)) & MASK)
    return (bits >> 11) * 2.0**-53


def reference(logits: Array, draw: Draw) -> int:
    row, temperature, top_k, top_p, min_p, seed, position = draw
    x = logits[row].astype(np.float64)
    if np.isnan(x).any() or (x == np.inf).any() or (x == -np.inf).all():
        return -1
    if temperature == 0:
        return int(x.argmax())
    weights = np.exp((x - x.max()) / temperature)
    order = np.arange(len(x))
    if 0 < top_k < len(x) or top_p < 1 or min_p > 0:
        order = np.lexsort((order, -x))
        if 0 < top_k < len(x):
            order = order[:top_k]
        before = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
        keep = (before < top_p * weights[order].sum()) if top_p < 1 else before >= 0
        keep &= weights[order] >= min_p
        keep[0] = True
        order = order[: int(np.argmin(keep)) if not keep.all() else len(order)]
    cumulative = np.cumsum(weights[order])
    return int(
        order[np.searchsorted(cumulative, uniform(seed, position) * cumulative[-1], "right")]
    )


def check(device: Any, logits: Array, draws: Iterable[Draw]) -> None:
    draws = list(draws)
    expected = [reference(logits, draw) for draw in draws]
    got = ops.draw(device.name, logits, draws)
    assert got == expected, [d for d, a, b in zip(draws, got, expected) if a != b]


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> Array:
    return (3 * rng.standard_normal((rows, vocab))).astype(np.float32)


@pytest.mark.parametrize("vocab", [1, 31, 1000, 4096, 9001])
def test_greedy(device: Any, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = random_logits(rng, 5, vocab)
    logits[1] = np.round(logits[1])  # many equal ones: the first of the best
    logits[2] = -np.inf
    logits[2, vocab // 2] = -1e30
    logits[3] = 7
    logits[4] = np.where(rng.random(vocab) < 0.5, np.float32(-0.0), np.float32(0.0))
    check(device, logits, [(row, 0, 0, 1, 0, 0, 0) for row in (4, 1, 0, 2, 3, 1)])


def test_invalid_logits_give_no_token(device: Any) -> None:
    logits = np.zeros((6, 5000), np.float32)
    for row, value in enumerate([np.nan, -np.nan, np.inf]):
        logits[row, 4999 - row] = value
    logits[3] = -np.inf
    logits[4, 0] = logits[4, 4500] = np.finfo(np.float32).max
    logits[5, 1:] = -np.inf
    draws: list[Draw] = [(row, 0, 0, 1, 0, 0, 0) for row in range(6)]
    draws += [(row, 1, 0, 1, 0, 1, 2) for row in range(6)]
    draws += [(row, 1, 3, 0.5, 0, 1, 2) for row in range(6)]
    check(device, logits, draws)
    assert ops.draw(device.name, logits, draws)[:4] == [-1] * 4


@pytest.mark.parametrize("vocab", [1, 2, 1023, 4096, 9001])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_draws_from_all_tokens(device: Any, vocab: int, temperature: float) -> None:
    rng = np.random.default_rng(vocab)
    logits = random_logits(rng, 3, vocab)
    logits[1] = 0
    logits[2, ::2] = -np.inf
    logits[2, vocab // 2] = 1
    check(device, logits, [(k % 3, temperature, 0, 1, 0, k, 3 * k) for k in range(9)])


CUTS = [
    # temperature, top_k, top_p, min_p
    (1.0, 1, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (3.0, 40, 1.0, 0.0),
    (1.0, 0, 0.0, 0.0),
    (1.0, 0, 0.5, 0.0),
    (2.0, 0, 0.95, 0.0),
    (20.0, 0, 0.999, 0.0),
    (1.0, 0, 1.0, 0.1),
    (8.0, 0, 1.0, 0.7),
    (1.0, 0, 1.0, 1.0),
    (0.7, 20, 0.8, 0.0),
    (1.5, 50, 0.9, 0.02),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), CUTS)
@pytest.mark.parametrize("vocab", [7, 5003])
def test_draws_from_the_best(
    device: Any, vocab: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Random logits, logits of few values (ties at the cuts), and a narrow range far from 0."""
    rng = np.random.default_rng(top_k)
    logits = random_logits(rng, 3, vocab)
    logits[1] = np.round(logits[1])
    logits[2] = 1000 + logits[2] / 512
    check(
        device,
        logits,
        [(k % 3, temperature, top_k, top_p, min_p, 7 + k, k * k) for k in range(6)],
    )


@pytest.mark.parametrize("top_k", [2, 2999, 3000, 3001])
def test_cuts_at_the_ends(device: Any, top_k: int) -> None:
    """Half of the tokens without weight, all others equal; top_k about the whole vocabulary."""
    logits = np.full((1, 3000), -np.inf, np.float32)
    logits[0, 1::2] = -2.5
    check(device, logits, [(0, 1.0, top_k, top_p, 0, 3, 4) for top_p in (1.0, 0.5, 1e-9)])


def test_greedy_and_drawn_rows_together(device: Any) -> None:
    rng = np.random.default_rng(0)
    logits = random_logits(rng, 4, 777)
    check(
        device,
        logits,
        [
            (2, 0, 0, 1, 0, 0, 0),
            (0, 1, 9, 0.9, 0, 1, 1),
            (3, 0.5, 0, 1, 0, 2, 2),
            (2, 2, 0, 1, 0.1, 3, 3),
        ],
    )
