"""Two thousand tasks on device "cuda" under a policy that cuts, pauses, swaps and drops at random,
with little memory, some cancelled and some with deadlines, each step planned while the one before
runs: nothing is lost, nothing leaks, and who comes to the end has the tokens that it has under
another policy with enough memory and a plain loop."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import Emulator
from ops_module import ops
from random_policy import RandomPolicy
from reference import models, tiny

from slicellm import _core

if ops.cuda != "simt":
    pytest.skip("many tiny steps: for the emulator", allow_module_level=True)

TASKS, WAVE = 2000, 50
LATENCY = _core.LatencyModel.from_decode_table([1.0])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {
        **models.FAMILIES["llama"],
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return tiny.write_directory(tmp_path_factory.mktemp("model"), config, tiny.weights(config))


def specs() -> list[_core.TaskSpec]:
    """Every 7th with a deadline that it cannot meet; a third drawn at random."""
    rng = np.random.default_rng(1)
    return [
        _core.TaskSpec(
            prompt=rng.integers(3, tiny.VOCAB, rng.integers(1, 20)).tolist(),
            max_tokens=int(rng.integers(1, 6)),
            temperature=0.9 if i % 3 == 0 else 0.0,
            seed=i,
            ignore_eos=True,
            deadline_ms=1e-3 if i % 7 == 3 else None,
            stop_at_deadline=i % 7 == 3,
        )
        for i in range(TASKS)
    ]


def run(
    model: _core.Model, policy: str | _core.Policy, cancelled: set[int], **options: Any
) -> list[dict[str, Any]]:
    """In waves, as this policy looks at every live task at every step."""
    engine = _core.Engine(model, policy, LATENCY, **options)
    tasks = specs()
    results: list[dict[str, Any]] = []
    for first in range(0, TASKS, WAVE):
        handles = engine.submit_all(tasks[first : first + WAVE])
        for index, handle in enumerate(handles, first):
            if index in cancelled:
                engine.cancel(handle.id)
        results += [handle.wait(600) for handle in handles]
    engine.check_integrity()
    stats = engine.stats()
    assert stats["finished"] == TASKS and stats["live"] == 0
    assert stats["free_blocks"] == stats["total_blocks"]
    assert stats["free_host_blocks"] == stats["total_host_blocks"]
    engine.close()
    return results


def test_soak(path: Path) -> None:
    emulator = Emulator()
    gc.collect()
    before = emulator.held()
    model = _core.Model.load(str(path), device="cuda", dtype="float16", threads=1)
    expected = run(model, "orca", set(), kv_cache_bytes=160 * model.kv_block_bytes)
    policy = RandomPolicy(7)
    cancelled = set(range(5, TASKS, 11))
    few = {
        "kv_cache_bytes": 12 * model.kv_block_bytes,
        "host_kv_bytes": 8 * model.kv_block_bytes,
    }
    results = run(model, policy, cancelled, max_rows=6, loop="overlap", **few)
    assert min(policy.moves[move] for move in ("swap_out", "swap_in", "drop")) > 10, policy.moves
    for i, (result, reference) in enumerate(zip(results, expected)):
        late = i % 7 == 3
        assert reference["reason"] == ("deadline" if late else "length")
        if i in cancelled:
            assert result["reason"] in ("cancelled", reference["reason"])
        else:
            assert result["reason"] == reference["reason"]
        if result["reason"] == "length":
            assert result["token_ids"] == reference["token_ids"]
        else:
            n = len(result["token_ids"])
            assert result["token_ids"] == reference["token_ids"][:n] or late
    assert sum(r["reason"] == "cancelled" for r in results) > 20
    del model
    gc.collect()
    assert emulator.held() == before
