"""Every policy with little memory for KV, where what tasks hold is not what they were planned with:
long prefixes that many share, so that evicting one task frees less than it holds, and guesses that
come true, so that a task grows by more than a token a step. Tokens are those of a roomy engine."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from policies_under_test import POLICIES

from slicellm import _core
from slicellm.policies import latency_from_table

LATENCY = latency_from_table([1.0])  # rows cost nothing: every draft pays
BLOCK = 16


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> _core.Model:
    return _core.Model.load(str(tiny_llama), threads=1)


def tasks(seed: int, vocab: int, shared: int) -> list[dict[str, Any]]:
    """Some begin with `shared` blocks of the same tokens; what they go on with repeats itself."""
    rng = random.Random(seed)
    prefix = [rng.randrange(vocab) for _ in range(shared * BLOCK)]
    made = []
    for i in range(8):
        phrase = [rng.randrange(vocab) for _ in range(4)]
        prompt = (phrase * 12)[: rng.randint(3, 44)]
        made.append(
            {
                "prompt": prefix + prompt if rng.random() < 0.7 else prompt,
                "max_tokens": rng.choice([3, 20, 60]),
                "ignore_eos": True,
                "seed": i,
                "utility": rng.choice([1.0, 10.0]),
                "ttft_ms": 400.0,
                "tpot_ms": rng.choice([10.0, 20.0, 100.0, 500.0]),
            }
        )
    return made


def run(
    model: _core.Model, specs: list[dict[str, Any]], policy: str, blocks: int, **options: Any
) -> list[tuple[str, str, list[int]]]:
    size = model.kv_block_bytes
    engine = _core.Engine(
        model, policy, LATENCY, kv_cache_bytes=blocks * size, prefix_cache=True, **options
    )
    handles = engine.submit_all([_core.TaskSpec(**spec) for spec in specs])
    results = [handle.wait(120.0) for handle in handles]
    engine.wait_idle()
    engine.check_integrity()
    engine.close()
    for result in results:
        assert 0 <= result["cached_tokens"] < result["prompt_tokens"]
    return [(r["reason"], r["error"], r["token_ids"]) for r in results]


@pytest.mark.parametrize("guesses", [0, 7])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_task_ends_with_its_tokens(model: _core.Model, policy: str, guesses: int) -> None:
    for seed in range(6):
        shared = 0 if seed % 2 else 6
        specs = tasks(seed, model.spec["vocab"], shared)
        expected = run(model, specs, "orca", 200)
        most = max(len(spec["prompt"]) + spec["max_tokens"] for spec in specs)
        found = run(
            model,
            specs,
            policy,
            most // BLOCK + 2 + seed,
            host_kv_bytes=(4 + 3 * (seed % 3)) * model.kv_block_bytes,
            prompt_lookup=guesses,
            max_rows=6,
        )
        assert found == expected, (policy, seed)


@pytest.mark.parametrize("seed", range(4))
def test_slice_selects_anew_where_guesses_filled_the_pool(model: _core.Model, seed: int) -> None:
    """Selected for a cycle in which it would need four blocks, the second task is soon at their end
    and runs alone in every column that is left."""
    rng = random.Random(seed)
    vocab = model.spec["vocab"]
    phrase = [rng.randrange(vocab) for _ in range(3)]
    slow = {
        "prompt": [rng.randrange(vocab) for _ in range(150)],
        "max_tokens": 75,
        "tpot_ms": 500.0,
    }
    fast = {"prompt": (phrase * 4)[:10], "max_tokens": 200, "tpot_ms": 20.0}
    specs = [{**slow, "ignore_eos": True}, {**fast, "ignore_eos": True}]
    expected = run(model, specs, "orca", 200)
    assert run(model, specs, "slice", 14, prompt_lookup=7) == expected
