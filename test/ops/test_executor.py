"""The engine on device "cuda": who draws a token, whose KV was away and which engines share a model
does not show in the results."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ops_module import ops
from random_policy import RandomPolicy
from reference import models, tiny

from slicellm import _core

LATENCY = _core.LatencyModel.from_decode_table([1.0])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 7},
    {"temperature": 2.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
]


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _core.Model:
    if ops.cuda != "simt" and request.config.getoption("--device") != "cuda":
        pytest.skip("device cuda is neither emulated (SLICELLM_SIMT) nor asked for (--device cuda)")
    config = models.FAMILIES["llama"]
    path = tiny.write_directory(tmp_path_factory.mktemp("model"), config, tiny.weights(config))
    return _core.Model.load(str(path), device="cuda", dtype="float16")


def tasks_of(model: _core.Model, prefix: Sequence[int] = (), **more: Any) -> list[_core.TaskSpec]:
    rng = np.random.default_rng(5)
    return [
        _core.TaskSpec(
            prompt=[*prefix, *rng.integers(0, model.spec["vocab"], 3 + 5 * i).tolist()],
            max_tokens=6,
            ignore_eos=True,
            seed=100 + i,
            **settings,
            **more,
        )
        for i, settings in enumerate(SETTINGS)
    ]


def run(
    model: _core.Model,
    tasks: list[_core.TaskSpec],
    policy: str | _core.Policy = "orca",
    blocks: int = 64,
    host_blocks: int = 16,
    **options: Any,
) -> list[list[int]]:
    engine = _core.Engine(
        model,
        policy,
        LATENCY,
        kv_cache_bytes=blocks * model.kv_block_bytes,
        host_kv_bytes=host_blocks * model.kv_block_bytes,
        **options,
    )
    results = [handle.wait(120) for handle in engine.submit_all(tasks)]
    engine.check_integrity()
    engine.close()
    assert [(r["reason"], r["error"]) for r in results] == [("length", "")] * len(results)
    return [result["token_ids"] for result in results]


@pytest.mark.parametrize("loop", ["plain", "overlap"])
def test_drawn_by_the_gpu_or_by_the_host(model: _core.Model, loop: str) -> None:
    """Asking for log-probabilities moves the drawing to the host, not the tokens. Overlapped, a row
    drawn by the GPU takes its next token there, and one drawn by the host waits for it."""
    on_gpu = run(model, tasks_of(model))
    assert run(model, tasks_of(model), loop=loop) == on_gpu
    assert run(model, tasks_of(model, logprobs=2), loop=loop) == on_gpu
    mixed = [
        (a, b)[i % 2] for i, (a, b) in enumerate(zip(tasks_of(model), tasks_of(model, logprobs=0)))
    ]
    assert run(model, mixed, loop=loop) == on_gpu
    assert len(set(map(tuple, on_gpu))) == len(on_gpu)


@pytest.mark.parametrize("loop", ["plain", "overlap"])
@pytest.mark.parametrize("order", ["late", "early"])  # of streams (test/simt/queue.h)
@pytest.mark.parametrize("prefix", [[], list(range(5, 33))])
def test_kv_that_was_away(
    model: _core.Model, prefix: list[int], order: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a prefix which tasks share."""
    tasks = tasks_of(model, prefix)
    expected = run(model, tasks)
    monkeypatch.setenv("SLICELLM_SIMT_ORDER", order)
    policy = RandomPolicy(3)
    options = {"max_rows": 4, "loop": loop, "prefix_cache": bool(prefix)}
    few = run(model, 3 * tasks, policy, blocks=9, host_blocks=7, **options)
    assert policy.moves["swap_out"] > 3 and policy.moves["swap_in"] > 3
    assert few == 3 * expected


def test_drafts(model: _core.Model) -> None:
    """Rows with drafts, drawn by the GPU and by the host."""
    tasks = [
        _core.TaskSpec(prompt=[3, 1, 4], max_tokens=24, ignore_eos=True, seed=i, **settings)
        for i, settings in enumerate([{}, {"temperature": 0.3}, {"logprobs": 1}])
    ]
    assert run(model, tasks, prompt_lookup=5) == run(model, tasks)


def test_two_engines_on_one_model(model: _core.Model) -> None:
    expected = run(model, tasks_of(model))
    results: dict[int, list[list[int]]] = {}

    def work(index: int) -> None:
        loop = ("plain", "overlap")[index]
        results[index] = run(model, tasks_of(model), RandomPolicy(index), loop=loop)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: expected, 1: expected}


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_p": 0.5}, {"logprobs": 1}])
@pytest.mark.parametrize("loop", ["plain", "overlap"])
def test_logits_that_are_not_numbers(
    model: _core.Model, settings: dict[str, Any], loop: str, tmp_path: Path
) -> None:
    config = models.FAMILIES["llama"]
    tensors = tiny.weights(config)
    tensors["model.norm.weight"][0] = np.inf
    path = tiny.write_directory(tmp_path, config, tensors)
    broken = _core.Model.load(str(path), device="cuda", dtype="float16")
    kv_bytes = 8 * broken.kv_block_bytes
    engine = _core.Engine(broken, "orca", LATENCY, kv_cache_bytes=kv_bytes, loop=loop)
    result = engine.submit(_core.TaskSpec(prompt=[1, 2, 3], max_tokens=4, **settings)).wait(60)
    engine.close()
    assert result["reason"] == "error" and "NaN or infinity" in result["error"]
