"""The Python package: engines, one task, runs of many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_cases import LATENCY, LONG, PROMPT, greedy

from slicellm import Engine, InvalidArgument, Model, StateError, Task


# ---- one task ------------------------------------------------------------------------------------
def test_generate_is_greedy(engine: Engine) -> None:
    model = engine.model
    result = engine.generate(PROMPT, max_tokens=24, ignore_eos=True, logprobs=1)
    expected = greedy(model, model.encode(PROMPT), 24)
    assert result.token_ids == expected
    data = b"".join(model.token_bytes[i] for i in expected)
    assert result.text == data.decode("utf-8", "replace")
    assert (result.finish_reason, result.error) == ("length", "")
    assert result.prompt_tokens == len(model.encode(PROMPT))
    logits = model.forward(model.encode(PROMPT))[-1].astype(np.float64)
    expected_logprob = logits.max() - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert result.logprobs is not None and result.top_logprobs is not None
    assert result.logprobs[0] == pytest.approx(expected_logprob, abs=1e-4)
    assert result.top_logprobs[0][0][0] == expected[0]
    assert 0 < result.ttft_ms <= result.e2el_ms  # type: ignore[operator]


def test_sampling_by_seed(engine: Engine) -> None:
    settings = {"max_tokens": 16, "temperature": 1.0, "ignore_eos": True}
    first = engine.generate(PROMPT, seed=1, **settings)
    assert engine.generate(PROMPT, seed=1, **settings).token_ids == first.token_ids
    others = [engine.generate(PROMPT, seed=s, **settings).token_ids for s in range(2, 6)]
    assert any(other != first.token_ids for other in others)


def test_stop_strings(engine: Engine) -> None:
    whole = engine.generate(PROMPT, max_tokens=24, ignore_eos=True)
    stop = whole.text[4:7]
    cut = engine.generate(PROMPT, max_tokens=24, ignore_eos=True, stop=[stop])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_over_long_prompt_is_rejected(model: Model) -> None:
    with Engine(model, "orca", latency=LATENCY) as engine:
        result = engine.generate([5] * 600)
    assert result.finish_reason == "rejected" and not result.slo_met
    assert "expected at most 512" in result.error


@pytest.mark.parametrize(
    "prompt",
    ["", [], (), [-1], [400], [1 << 40], ["a"], [1.5], [True], "\ud800", [{}], [{"role": "user"}],
     [{"role": "user", "content": 5}], [1, {"role": "user"}]],
)  # fmt: skip
def test_bad_prompts(engine: Engine, prompt: Any) -> None:
    with pytest.raises(InvalidArgument, match="got .* expected ") as caught:
        engine.generate(prompt)
    assert "\n" not in str(caught.value)


def test_settings_beside_a_task_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidArgument, match="settings: got max_tokens"):
        engine.generate(Task("hi"), max_tokens=5)


# ---- many tasks ----------------------------------------------------------------------------------
def test_run(engine: Engine) -> None:
    tasks = [Task([1, k], max_tokens=6, ignore_eos=True, ttft_ms=60_000) for k in range(5, 15)]
    results = engine.run(tasks)
    for task, result in zip(tasks, results):
        assert result.token_ids == greedy(engine.model, list(task.prompt), 6)  # type: ignore[arg-type]
        assert result.slo_met


def test_run_with_arrivals(engine: Engine) -> None:
    results = engine.run([Task([1, 5], max_tokens=2), PROMPT, [1, 6]], arrivals=[0.3, 0.0, 0.15])
    assert len(results) == 3
    arrived: dict[int, float] = {}
    first: dict[int, float] = {}
    for t, task, kind, _ in engine.core.drain_events():
        if kind in ("arrive", "token"):
            (arrived if kind == "arrive" else first).setdefault(task, t)
    late, early, middle = (result.id for result in results)
    assert arrived[late] - arrived[early] == pytest.approx(0.3)
    assert arrived[middle] - arrived[early] == pytest.approx(0.15)
    for result in results:  # none starts before it arrived, and each is judged from then
        assert result.ttft_ms == pytest.approx(1e3 * (first[result.id] - arrived[result.id]))
        assert result.ttft_ms > 0


@pytest.mark.parametrize(
    ("tasks", "arrivals", "field"),
    [
        ("text", None, "tasks"),
        (5, None, "tasks"),
        ([Task("a")], [0.0, 1.0], "arrivals"),
        ([Task("a")], [-1.0], "arrival"),
        ([Task("a")], [float("nan")], "arrival"),
        ([Task("a")], ["0"], "arrival"),
        ([Task("a"), None], None, "prompt"),
    ],
)
def test_bad_runs(engine: Engine, tasks: Any, arrivals: Any, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}[a-z_]*: got"):
        engine.run(tasks, arrivals)
    assert engine.stats()["live"] == 0


def test_no_tasks(engine: Engine) -> None:
    assert engine.run([]) == []


# ---- engines -------------------------------------------------------------------------------------
def test_closed_engine(patient_model: Model) -> None:
    engine = Engine(patient_model, "slice:ratio=0.9", latency=LATENCY)
    stream = engine.stream(LONG)
    engine.close()
    engine.close()
    assert stream.result().finish_reason == "cancelled"
    with pytest.raises(StateError, match="engine: got closed"):
        engine.generate("hi")


def test_engine_from_a_path(tiny_llama: Path) -> None:
    with Engine(tiny_llama, threads=1, latency=LATENCY) as engine:
        assert engine.generate("hi", max_tokens=2).token_ids
        assert engine.model.threads == 1


@pytest.mark.parametrize("policy", ["slice", "orca", "fastserve", "slice:mask_layout=spread"])
def test_policies_give_the_same_tokens(model: Model, policy: str) -> None:
    prompts = [[1, k] for k in range(6)]
    with Engine(model, policy, latency=LATENCY) as engine:
        tasks = [Task(p, max_tokens=10, ignore_eos=True, tpot_ms=100, utility=9) for p in prompts]
        for prompt, result in zip(prompts, engine.run(tasks)):
            assert result.token_ids == greedy(model, prompt, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "slise"}, "policy: got .*slise"),
        ({"policy": "slice:ratio=-1"}, "ratio"),
        ({"policy": "slice:nothing=2"}, "nothing"),
        ({"policy": 5}, "policy: got 5, expected a policy's name"),
        ({"policy": ""}, "policy: got"),
        ({"threads": 2}, "dtype, device, threads"),
        ({"device": "cuda"}, "dtype, device, threads"),
        ({"vram_limit": "8G"}, "dtype, device, threads"),
        ({"max_rows": 0}, "max_rows: got 0"),
        ({"max_rows": "8"}, "max_rows: got '8'"),
        ({"max_rows": True}, "max_rows: got True"),
        ({"max_step_tokens": -1}, "max_step_tokens: got -1"),
        ({"max_context": 1 << 20}, "max_context: got"),
        ({"max_queue": 0}, "max_queue: got 0"),
        ({"kv_cache_bytes": 1}, "kv_cache_bytes: got 1"),
        ({"kv_cache_bytes": -1}, "kv_cache_bytes: got -1"),
        ({"kv_cache_bytes": 1 << 60}, "kv_cache_bytes: got"),
        ({"host_kv_bytes": -2}, "host_kv_bytes: got -2"),
    ],
)
def test_bad_engine_arguments(model: Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Engine(model, **{"latency": LATENCY, **arguments})


def test_interpreter_ends_with_an_open_engine(tiny_llama: Path) -> None:
    """Neither an engine nor its dispatcher thread keeps a process from ending, or crashes it."""
    code = f"""
import asyncio, slicellm
model = slicellm.load({str(tiny_llama)!r}, threads=1)
engine = slicellm.Engine(model, "orca", latency=slicellm.LatencyModel.from_decode_table([1.0]))
async def main():
    async for piece in engine.astream("the", max_tokens=400, ignore_eos=True):
        break
asyncio.run(main())
stream = engine.stream("the", max_tokens=400, ignore_eos=True)
next(stream)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert (done.returncode, done.stderr) == (0, "")
