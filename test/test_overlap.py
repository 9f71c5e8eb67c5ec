"""The overlapped loop on a real model: whatever the policy, tokens, ends and texts are those of the
plain loop."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from policies_under_test import POLICIES
from witness import Witness

from slicellm import _core
from slicellm.policies import Policy, latency_from_table

LATENCY = latency_from_table([2.0, 3.0, 4.0])
BLOCKS = 9  # of 16 tokens; the tasks below want up to 4 each
Output = tuple[str, list[int], str]


@pytest.fixture(scope="module")
def model(tiny_llama: Path, device_name: str) -> _core.Model:
    return _core.Model.load(str(tiny_llama), device=device_name, threads=1)


def token_bytes(model: _core.Model) -> list[bytes]:
    return [b"%d " % i for i in range(model.spec["vocab"])]


def task(seed: int, model: _core.Model) -> dict[str, Any]:
    """Greedy or drawn; ends at its cap, which may be one token, at the end of sequence, at one of
    some stop ids, or at a stop string that takes several tokens."""
    rng = random.Random(seed)
    vocab = model.spec["vocab"]
    prompt = [rng.randrange(vocab) for _ in range(rng.randint(1, 24))]
    if seed % 3 == 0:
        prompt[:17] = [(7 * i + 3) % vocab for i in range(17)][: len(prompt)]
    return {
        "prompt": prompt,
        "max_tokens": rng.choice([1, 2, 7, 30]),
        "temperature": rng.choice([0.0, 0.0, 1.0]),
        "top_k": rng.choice([0, 5]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.3]),
        "seed": seed,
        "stop_ids": rng.sample(range(vocab), vocab // 3) if seed % 4 == 0 else [],
        "stop": ["5 1", "3 2"] if seed % 4 == 1 else [],
        "ignore_eos": seed % 2 == 0,
        "ttft_ms": 400.0,
        "tpot_ms": 40.0 + seed,
    }


def run(
    model: _core.Model, policy: str | Policy, loop: str, count: int = 16
) -> tuple[list[Output], _core.Engine]:
    engine = _core.Engine(
        model,
        policy,
        LATENCY,
        loop=loop,
        kv_cache_bytes=BLOCKS * model.kv_block_bytes,
        host_kv_bytes=6 * model.kv_block_bytes,
        max_rows=6,
        max_step_tokens=64,
        prefix_cache=True,
        token_bytes=token_bytes(model),
    )
    handles = engine.submit_all([_core.TaskSpec(**task(i, model)) for i in range(count)])
    results = [handle.wait(120.0) for handle in handles]
    engine.wait_idle()
    engine.check_integrity()
    return [(r["reason"], r["token_ids"], r["text"]) for r in results], engine


@pytest.fixture(scope="module")
def plain(model: _core.Model) -> list[Output]:
    outputs, engine = run(model, "orca", "plain")
    engine.close()
    reasons = [reason for reason, _, _ in outputs]
    assert {"stop", "length"} <= set(reasons)
    return outputs


@pytest.mark.parametrize("text", POLICIES)
def test_tokens_are_those_of_the_plain_loop(
    model: _core.Model, plain: list[Output], text: str
) -> None:
    outputs, engine = run(model, Witness(text), "overlap")
    assert outputs == plain
    events = engine.drain_events()
    engine.close()
    ended: set[int] = set()
    last: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for t, number, kind, _ in events:
        assert number not in ended and t >= last.get(number, 0.0)
        last[number] = t
        tokens[number] = tokens.get(number, 0) + (kind == "token")
        if kind == "finish":
            ended.add(number)
    assert [tokens[i] for i in sorted(tokens)] == [len(ids) for _, ids, _ in plain]


@pytest.mark.parametrize("text", ["orca", "slice", "fastserve", "pace"])
def test_cancelled_and_late_in_mid_flight(
    model: _core.Model, plain: list[Output], text: str
) -> None:
    """What a task has by then is the beginning of what it would have had; nothing stays behind."""
    options = {"kv_cache_bytes": 20 * model.kv_block_bytes, "token_bytes": token_bytes(model)}
    engine = _core.Engine(model, text, LATENCY, loop="overlap", **options)
    fields = [task(i, model) for i in range(16)]
    for i in range(3, 16, 4):
        fields[i].update(deadline_ms=3.0, stop_at_deadline=True)
    handles = engine.submit_all([_core.TaskSpec(**f) for f in fields])
    for handle in handles[::3]:
        handle.take(5.0)  # it has begun
        engine.cancel(handle.id)
    for handle, (reason, ids, _) in zip(handles, plain):
        result = handle.wait(60.0)
        got = result["token_ids"]
        assert result["reason"] in (reason, "cancelled", "deadline")
        assert got == ids[: len(got)]
        if result["reason"] == reason:
            assert got == ids
    engine.wait_idle()
    engine.check_integrity()
    stats = engine.stats()
    assert stats["free_blocks"] == stats["total_blocks"] and stats["live"] == 0
    engine.close()


def test_a_loop_has_a_name(model: _core.Model) -> None:
    with pytest.raises(
        _core.InvalidArgument, match='loop: got "both", expected "plain" or "overlap"'
    ):
        _core.Engine(model, "orca", LATENCY, loop="both")
