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
    config = {**models.FAMILIES["llama"], "max_position_embeddings": 512}
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


def serve(
    model: _core.Model,
    tasks: list[_core.TaskSpec],
    policy: str | _core.Policy = "orca",
    blocks: int = 64,
    host_blocks: int = 16,
    **options: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The tasks' results and the engine's counts."""
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
    stats = engine.stats()
    engine.close()
    assert [(r["reason"], r["error"]) for r in results] == [("length", "")] * len(results)
    return results, stats


def run(model: _core.Model, tasks: list[_core.TaskSpec], *args: Any, **options: Any) -> Any:
    """The tasks' tokens."""
    return [result["token_ids"] for result in serve(model, tasks, *args, **options)[0]]


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


@pytest.mark.parametrize("loop", ["plain", "overlap"])
def test_steps_that_are_started_as_graphs(model: _core.Model, loop: str) -> None:
    """A step of as many rows as two steps before it is a graph, whatever it computes."""
    tasks = [
        _core.TaskSpec(
            prompt=[5 + i, 9, 2], max_tokens=201, ignore_eos=True, seed=i, temperature=float(i)
        )
        for i in range(2)
    ]
    engine = _core.Engine(
        model, "orca", LATENCY, kv_cache_bytes=64 * model.kv_block_bytes, loop=loop
    )
    for round in range(2):
        first = engine.stats()
        for handle in engine.submit_all(tasks):
            assert handle.wait(120)["reason"] == "length"
        stats = engine.stats()
        decode, graphs = (stats[key] - first[key] for key in ("decode_steps", "graph_steps"))
        assert decode >= 200
        assert graphs == decode - (2 if round == 0 else 0)
    engine.close()


def test_graphs_give_the_logits_of_prompts(model: _core.Model) -> None:
    """Every decode step, most of them graphs, against a step that computes the same token as the
    end of a prompt, which never is one: logits equal bit for bit."""
    prompts = [[3, 1, 4, 1, 5], list(range(20, 60)), [7]]

    def tasks(prompts: list[list[int]], length: int) -> list[_core.TaskSpec]:
        return [
            _core.TaskSpec(prompt=p, max_tokens=length, ignore_eos=True, logprobs=3)
            for p in prompts
        ]

    results, stats = serve(model, tasks(prompts, 9))
    assert stats["graph_steps"] >= 6
    longer = [p + r["token_ids"][:k] for p, r in zip(prompts, results) for k in range(9)]
    single, stats = serve(model, tasks(longer, 1))
    assert stats["graph_steps"] == stats["decode_steps"] == 0
    for i, result in enumerate(results):
        for key in ("token_ids", "logprobs", "top_logprobs"):
            assert [r[key][0] for r in single[9 * i : 9 * i + 9]] == result[key]


def test_graphs_of_changing_loads(model: _core.Model) -> None:
    """Rows that come and go, contexts that are split (attention's partial results), buffers that
    grow: tokens are those that each task has alone."""
    rng = np.random.default_rng(7)
    tasks = [
        _core.TaskSpec(
            prompt=rng.integers(3, model.spec["vocab"], length).tolist(),
            max_tokens=4 + 5 * (i % 4),
            ignore_eos=True,
            seed=i,
            temperature=float(i % 2),
        )
        for i, length in enumerate([250, 3, 260, 90, 17, 40, 251, 8, 5, 30])
    ]
    together, stats = serve(model, tasks, RandomPolicy(11), blocks=120)
    assert 0 < stats["graph_steps"] < stats["decode_steps"]
    alone = [run(model, [task], blocks=120)[0] for task in tasks]
    assert [result["token_ids"] for result in together] == alone


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
