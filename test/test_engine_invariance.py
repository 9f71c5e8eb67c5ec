"""A task's tokens and log-probabilities are the same bits however it is scheduled."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_policy import RandomPolicy
from reference import models, tiny

from slicellm import _core

LATENCY = _core.LatencyModel.from_decode_table([1.0])
FAMILIES = ["llama", "qwen2", "chatglm1", "chatglm2"]
BLOCK_TOKENS = 16

Models = Callable[[str, str, int, str], _core.Model]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, device_name: str) -> Models:
    """model(family, dtype, threads, type of keys and values), each loaded once."""
    directory = tmp_path_factory.mktemp("models")
    loaded: dict[tuple[str, str, int, str], _core.Model] = {}

    def get(family: str, dtype: str, threads: int, kv: str) -> _core.Model:
        key = family, dtype, threads, kv
        if key not in loaded:
            path = directory / family
            if not path.exists():
                config = models.FAMILIES[family]
                tiny.write_directory(path, config, tiny.weights(config))
            loaded[key] = _core.Model.load(
                str(path), device=device_name, dtype=dtype, threads=threads, kv_cache_dtype=kv
            )
        return loaded[key]

    return get


def random_task(rng: random.Random, model: _core.Model) -> dict[str, Any]:
    """Arguments of a task that fits the model; greedy or sampled."""
    longest = model.spec["max_positions"]
    prompt = rng.randint(1, min(24, longest - 2))
    ids = [rng.randrange(model.spec["vocab"]) for _ in range(prompt)]
    if rng.random() < 0.5:  # a beginning that other tasks have too, longer than a KV block
        common = [(7 * i + 3) % model.spec["vocab"] for i in range(BLOCK_TOKENS + 3)]
        ids[: len(common)] = common[:prompt]
    return {
        "prompt": ids,
        "max_tokens": rng.randint(1, min(12, longest - prompt)),
        "temperature": rng.choice([0.0, 0.7, 1.5]),
        "top_k": rng.choice([0, 5]),
        "top_p": rng.choice([1.0, 0.8]),
        "repetition_penalty": rng.choice([1.0, 1.3]),
        "seed": rng.randrange(2**64),
        "logprobs": 4,
        "ignore_eos": rng.random() < 0.7,
    }


def output(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["token_ids"], result["logprobs"], result["top_logprobs"]


def run_alone(model: _core.Model, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each task on an engine that holds nothing else, its prompt in one step."""
    engine = _core.Engine(model, "orca", LATENCY, kv_cache_bytes=64 * model.kv_block_bytes)
    results = []
    for task in tasks:
        results.append(engine.submit(_core.TaskSpec(**task)).wait(60))
        engine.wait_idle()
    engine.close()
    return results


def check_a_schedule(
    load: Models,
    family: str,
    dtype: str,
    threads: int,
    kv: str,
    seed: int,
    count: int,
    blocks: int,
    host_blocks: int,
) -> None:
    """Random tasks under a random policy, alone and together."""
    rng = random.Random(seed)
    model = load(family, dtype, threads, kv)
    tasks = [random_task(rng, model) for _ in range(count)]
    alone = run_alone(load(family, dtype, 1, kv), tasks)

    engine = _core.Engine(
        model,
        RandomPolicy(seed),
        LATENCY,
        kv_cache_bytes=blocks * model.kv_block_bytes,
        host_kv_bytes=host_blocks * model.kv_block_bytes,
        max_rows=rng.randint(1, 8),
        max_step_tokens=rng.randint(36, 64),  # room for an indivisible prompt and its answer
        prefix_cache=rng.random() < 0.5,
        **rng.choice([{"loop": "overlap"}, *({"prompt_lookup": k} for k in (0, 1, 4, 15))]),
    )
    arrivals = [rng.choice([0.0, rng.random() * 0.01]) for _ in tasks]
    handles = engine.submit_all(
        [_core.TaskSpec(**task, arrival_s=at) for task, at in zip(tasks, arrivals)]
    )
    cancelled = {h.id for h in handles if rng.random() < 0.15 and engine.cancel(h.id)}
    for handle, expected in zip(handles, alone):
        got = handle.wait(60)
        if handle.id in cancelled and got["reason"] == "cancelled":
            n = len(got["token_ids"])
            assert output(got) == tuple(part[:n] for part in output(expected))
        else:
            assert (got["reason"], got["error"]) == (expected["reason"], "")
            assert output(got) == output(expected)
    engine.check_integrity()
    stats = engine.stats()
    assert stats["free_blocks"] == blocks and stats["free_host_blocks"] == host_blocks
    engine.close()


@pytest.mark.cpu_only  # an example takes a second in emulation: the next test has a few
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    family=st.sampled_from(FAMILIES),
    dtype=st.sampled_from(["float16", "int4g32"]),
    threads=st.integers(1, 4),
    kv=st.sampled_from(["float16", "int8"]),
    seed=st.integers(0, 2**32),
    count=st.integers(1, 10),
    blocks=st.integers(4, 24),
    host_blocks=st.integers(0, 16),
)
def test_any_schedule_gives_the_same_bits(load: Models, **case: Any) -> None:
    check_a_schedule(load, **case)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kv", ["float16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_some_schedules_on_every_device(load: Models, family: str, kv: str, seed: int) -> None:
    dtype = ["float16", "int4g32"][seed]
    check_a_schedule(load, family, dtype, 1, kv, seed, count=4, blocks=6, host_blocks=4)


@pytest.mark.cpu_only  # 1,200 tasks: test/ops/test_soak.py does so on device cuda
@pytest.mark.parametrize(
    "kv, options",
    [
        ("float16", {}),
        ("float16", {"prompt_lookup": 6}),
        ("int8", {"prompt_lookup": 6}),
        ("int8", {"loop": "overlap"}),
    ],
    ids=str,
)
def test_random_schedules_do_what_they_are_for(
    load: Models, kv: str, options: dict[str, Any]
) -> None:
    """300 tasks on a real model: swaps, drops, cut prompts, padding, right and wrong drafts all
    happen; nothing leaks."""
    model = load("llama", "float16", 2, kv)
    policy = RandomPolicy(7, padding=0.7)
    engine = _core.Engine(
        model,
        policy,
        LATENCY,
        kv_cache_bytes=24 * model.kv_block_bytes,
        host_kv_bytes=10 * model.kv_block_bytes,
        max_rows=6,
        prefix_cache=True,
        **options,
    )
    rng = random.Random(7)
    tasks = [random_task(rng, model) for _ in range(300)]
    handles = engine.submit_all([_core.TaskSpec(**task) for task in tasks])
    engine.wait_idle()
    engine.check_integrity()
    stats = engine.stats()
    assert stats["reused_tokens"] > 1000
    if "prompt_lookup" in options:
        assert stats["accepted_tokens"] > 20, str(stats)
        assert stats["drafted_tokens"] - stats["accepted_tokens"] > 20, str(stats)
    assert min(policy.moves.values()) > 50, str(policy.moves)
    events = engine.drain_events()
    kinds = {kind for _, _, kind, _ in events}
    assert {"swap_out", "swap_in", "preempt", "resume", "prefill", "token"} <= kinds
    for handle, expected in zip(handles, run_alone(load("llama", "float16", 1, kv), tasks)):
        assert output(handle.wait(0)) == output(expected)
    engine.close()
