"""What a policy was shown while an engine ran a model, shown again: the same plans, with either
loop, on any device. (test_policy_properties.py does so without an engine, for every policy.)"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from recorder import Recorder, replay

from slicellm import _core

POLICIES = ["pace", "slice", "orca", "fastserve", "sarathi:token_budget=16"]


@pytest.fixture(scope="module")
def model(tiny_llama: Path, device_name: str) -> _core.Model:
    return _core.Model.load(str(tiny_llama), device=device_name, threads=1)


def tasks(model: _core.Model) -> list[_core.TaskSpec]:
    """Of up to 4 blocks each, with targets from easy to hopeless; they come while others run."""
    rng = random.Random(3)
    return [
        _core.TaskSpec(
            [rng.randrange(3, model.spec["vocab"]) for _ in range(rng.randint(4, 24))],
            max_tokens=rng.randint(8, 40),
            ignore_eos=True,
            arrival_s=rng.random() * 0.02,
            utility=rng.choice([1.0, 10.0, 100.0]),
            ttft_ms=rng.uniform(1, 500),
            tpot_ms=rng.uniform(1, 100),
            class_name=rng.choice("abc"),
        )
        for _ in range(12)
    ]


@pytest.mark.parametrize("loop", ["plain", "overlap"])
@pytest.mark.parametrize("text", POLICIES)
def test_a_recorded_run_gives_the_same_plans(model: _core.Model, text: str, loop: str) -> None:
    """With little memory, cancelled tasks, and beliefs about time that change on the way."""
    samples = [(b, b, 0.0, 0.0, 0.0, 0, 1.0 + b / 8) for b in (1, 4, 8)]
    samples += [(n, 1, 0.0, n * n / 2, 0.0, n, 1.0 + n / 8) for n in (16, 64)]
    latency = _core.LatencyModel.fit(samples)
    recorder = Recorder(text)
    engine = _core.Engine(
        model,
        recorder,
        latency,
        loop=loop,
        kv_cache_bytes=6 * model.kv_block_bytes,
        host_kv_bytes=6 * model.kv_block_bytes,
        max_rows=6,
        max_step_tokens=64,
    )
    handles = engine.submit_all(tasks(model))
    for handle in handles[::5]:
        handle.take(30.0)  # it has begun
        engine.cancel(handle.id)
    for handle in handles:
        assert handle.wait(60.0)["reason"] in ("length", "cancelled")
    engine.wait_idle()
    assert engine.latency_json() != latency.to_json()
    engine.close()
    plans = [plan for _, _, plan in recorder.record if plan is not None]
    assert sum(plan.runs() for plan in plans) > 50
    replay(text, recorder.record)
