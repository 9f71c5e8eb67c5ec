"""Sampling against a float64 numpy reference: exact draws, exact masks, distributions, logprobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from slicellm import _core

Array = npt.NDArray[np.float64]
LATENCY = _core.LatencyModel.from_decode_table([1.0])
PROMPT = [1, 17, 200, 31, 17]
MASK = 2**64 - 1


@pytest.fixture(scope="module")
def model(tiny_llama: Path, device_name: str) -> _core.Model:
    return _core.Model.load(str(tiny_llama), device=device_name, threads=1)


@pytest.fixture(scope="module")
def engine(model: _core.Model) -> Any:
    engine = _core.Engine(model, "orca", LATENCY, kv_cache_bytes=200 * model.kv_block_bytes)
    yield engine
    engine.close()


def run(engine: _core.Engine, **arguments: Any) -> dict[str, Any]:
    task = _core.TaskSpec(PROMPT, **{"max_tokens": 1, "ignore_eos": True, **arguments})
    return engine.submit(task).wait(30)


def mix(x: int) -> int:
    """The finaliser of splitmix64."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed: int, position: int) -> float:
    golden = 0x9E3779B97F4A7C15
    return (mix((mix((seed + golden) & MASK) + golden * (position + 1)) & MASK) >> 11) * 2.0**-53


def penalise(logits: Array, seen: set[int], penalty: float) -> Array:
    out = logits.copy()
    for i in seen:
        out[i] = out[i] / penalty if out[i] > 0 else out[i] * penalty
    return out


def kept_tokens(
    logits: Array, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[npt.NDArray[np.int64], Array]:
    """Tokens that may be drawn and their probabilities, best first."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    if top_k:
        order = order[:top_k]
    weights = np.exp((logits[order] - logits[order[0]]) / temperature)
    p = weights / weights.sum()
    keep = np.ones(len(p), bool)
    if top_p < 1:
        keep &= np.concatenate([[True], np.cumsum(p)[:-1] < top_p])
    keep &= weights >= min_p
    keep[0] = True
    return order[keep], p[keep] / p[keep].sum()


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 3.0, "top_k": 7},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 2.0, "top_k": 399},
    {"temperature": 2.0, "top_k": 100000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 5.0, "top_p": 0.99},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.5, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 1.0},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.7, "min_p": 0.02},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_are_those_of_the_reference(
    engine: _core.Engine, model: _core.Model, setting: dict[str, Any]
) -> None:
    logits = model.forward(PROMPT)[-1].astype(np.float64)
    tokens, p = kept_tokens(logits, **setting)
    if len(tokens) == len(logits) and "top_p" not in setting:  # nothing cut: in the order of ids
        order = np.argsort(tokens)
        tokens, p = tokens[order], p[order]
    cumulated = np.cumsum(p)
    seeds = [*range(100), 2**64 - 1, 2**63]
    handles = engine.submit_all(
        [
            _core.TaskSpec(PROMPT, max_tokens=1, ignore_eos=True, seed=seed, **setting)
            for seed in seeds
        ]
    )
    compared = 0
    for seed, handle in zip(seeds, handles):
        u = uniform(seed, 0)
        if np.abs(cumulated - u).min() < 1e-9 and len(p) > 1:
            continue  # rounding decides
        expected = tokens[int(np.searchsorted(cumulated, u, side="right").clip(max=len(p) - 1))]
        assert handle.wait(30)["token_ids"] == [expected]
        compared += 1
    assert compared > 95


def test_the_uniform_numbers_are_uniform() -> None:
    draws = np.array([uniform(s, i) for s in range(100) for i in range(100)])
    counts = np.histogram(draws, 50, (0, 1))[0]
    statistic = ((counts - 200) ** 2 / 200).sum()
    assert statistic < 49 + 5 * np.sqrt(2 * 49)
    by_seed = draws.reshape(100, 100)
    assert abs(np.corrcoef(by_seed[:-1].ravel(), by_seed[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(by_seed[:, :-1].ravel(), by_seed[:, 1:].ravel())[0, 1]) < 0.03


@pytest.mark.cpu_only  # minutes in emulation; each draw above is compared on any device
def test_the_distribution_of_many_draws(engine: _core.Engine, model: _core.Model) -> None:
    """Chi-square over 4,000 tasks with seeds 0 .. 3999."""
    setting = {"temperature": 1.3, "top_k": 25, "top_p": 0.95}
    logits = model.forward(PROMPT)[-1].astype(np.float64)
    tokens, p = kept_tokens(logits, **setting)
    n = 4000
    handles = engine.submit_all(
        [
            _core.TaskSpec(PROMPT, max_tokens=1, ignore_eos=True, seed=seed, **setting)
            for seed in range(n)
        ]
    )
    drawn = [h.wait(60)["token_ids"][0] for h in handles]
    counts = np.array([drawn.count(t) for t in tokens])
    assert counts.sum() == n  # nothing outside the mask
    expected = n * p
    assert (expected > 5).all()
    statistic = ((counts - expected) ** 2 / expected).sum()
    df = len(p) - 1
    assert statistic < df + 4 * np.sqrt(2 * df)


def test_seeds_decide_and_positions_differ(engine: _core.Engine) -> None:
    setting = {"temperature": 2.0, "max_tokens": 12}
    one, again = run(engine, seed=5, **setting), run(engine, seed=5, **setting)
    other = run(engine, seed=6, **setting)
    assert one["token_ids"] == again["token_ids"] != other["token_ids"]


@pytest.mark.parametrize("penalty", [1.0, 1.8, 0.5])
def test_repetition_penalty_and_greedy_choice(
    engine: _core.Engine, model: _core.Model, penalty: float
) -> None:
    ids, expected = list(PROMPT), []
    for _ in range(10):
        logits = penalise(model.forward(ids)[-1].astype(np.float64), set(ids), penalty)
        expected.append(int(np.argmax(logits)))
        ids.append(expected[-1])
    assert run(engine, max_tokens=10, repetition_penalty=penalty)["token_ids"] == expected


@pytest.mark.parametrize("setting", [{}, {"temperature": 3.0, "repetition_penalty": 1.5}], ids=str)
def test_logprobs_are_of_the_model_itself(
    engine: _core.Engine, model: _core.Model, setting: dict[str, Any]
) -> None:
    result = run(engine, max_tokens=6, logprobs=5, **setting)
    ids = PROMPT + result["token_ids"]
    logits = model.forward(ids)[len(PROMPT) - 1 : -1].astype(np.float64)
    best = logits.max(1, keepdims=True)
    logprobs = logits - best - np.log(np.exp(logits - best).sum(1, keepdims=True))
    for i, token in enumerate(result["token_ids"]):
        assert result["logprobs"][i] == pytest.approx(logprobs[i, token], abs=1e-5)
        order = np.lexsort((np.arange(logits.shape[1]), -logits[i]))[:5]
        assert [t for t, _ in result["top_logprobs"][i]] == order.tolist()
        assert [v for _, v in result["top_logprobs"][i]] == pytest.approx(
            logprobs[i, order].tolist(), abs=1e-5
        )
    assert run(engine, logprobs=0)["top_logprobs"] == [[]]
    assert len(run(engine, logprobs=100)["top_logprobs"][0]) == 100
