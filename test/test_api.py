"""The Python package: models, tasks, engines, streams, asyncio, the calibration cache."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

import slicellm
from slicellm import (
    Engine,
    InvalidArgument,
    LatencyModel,
    Model,
    Result,
    StateError,
    Task,
    calibration,
)
from slicellm.task import make_result

PROMPT = "the value of the"


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return slicellm.load(tiny_llama, threads=1)


@pytest.fixture(scope="module")
def patient_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny model with room for answers that take far longer than any test."""
    path = tmp_path_factory.mktemp("patient") / "patient.flm"
    return slicellm.load(tiny_models.make_llama_flm(path, positions=1 << 17), threads=1)


@pytest.fixture(scope="module")
def latency() -> LatencyModel:
    return LatencyModel.from_decode_table([1.0, 1.2, 1.4, 1.6])


@pytest.fixture
def engine(patient_model: Model, latency: LatencyModel) -> Iterator[Engine]:
    with Engine(patient_model, "orca", latency=latency, record_events=True) as engine:
        yield engine
        engine.wait_idle()
        engine.core.check_integrity()


def greedy(model: Model, ids: list[int], count: int) -> list[int]:
    """The most likely continuation by whole forward passes: no engine, no KV cache."""
    out = list(ids)
    for _ in range(count):
        out.append(int(model.forward(out)[-1].argmax()))
    return out[len(ids) :]


def finishes(engine: Engine) -> dict[int, int]:
    """Number of finish events of each task in the log."""
    events = [task for _, task, kind, _ in engine.core.drain_events() if kind == "finish"]
    return {task: events.count(task) for task in events}


# ---- models --------------------------------------------------------------------------------------
def test_forward(model: Model) -> None:
    logits = model.forward([1, 5, 9, 300])
    assert logits.shape == (4, model.spec["vocab"]) and logits.dtype == np.float32
    np.testing.assert_array_equal(model.forward([1, 5, 9, 300], chunk=1), logits)
    np.testing.assert_array_equal(model.forward(np.array([1, 5, 9, 300])), logits)


def test_model_facts(model: Model, tiny_llama: Path) -> None:
    assert (model.spec["layers"], model.spec["kv_heads"], model.spec["head_dim"]) == (2, 2, 16)
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # K and V, layers, heads, size, bytes
    assert Model(tiny_llama, threads=1, kv_cache_dtype="float32").kv_bytes_per_token == 512
    assert model.threads == 1 and model.weight_bytes > 100_000
    assert str(tiny_llama) in repr(model)
    assert len(model.token_bytes) == model.spec["vocab"]


def test_text(model: Model) -> None:
    ids = model.encode("the value")
    assert ids[0] == 1 and model.decode(ids) == "the value"
    assert model.encode([7, 8]) == model.encode(np.array([7, 8], np.int32)) == [7, 8]
    chat = model.encode([{"role": "user", "content": "the value"}])
    assert model.decode(chat) == "[INST] the value [/INST]"


def test_directory_quantised_on_load(tiny_llama_dir: Path, model: Model) -> None:
    plain = slicellm.load(tiny_llama_dir, threads=1)
    np.testing.assert_array_equal(plain.forward([1, 2, 3]), model.forward([1, 2, 3]))
    small = slicellm.load(tiny_llama_dir, dtype="int4g32", threads=1)
    assert small.weight_bytes < plain.weight_bytes
    assert small.fingerprint != plain.fingerprint
    chat = small.encode([{"role": "user", "content": "hi"}])
    assert small.decode(chat) == "user: hi\nassistant:"  # the directory's own template


def test_model_without_tokenizer(fixtures: Path, latency: LatencyModel) -> None:
    model = slicellm.load(fixtures / "chatglm2-float16.flm", threads=1)
    with Engine(model, "orca", latency=latency) as engine:
        with pytest.raises(InvalidArgument, match="tokenizer: got none .* --tokenizer DIR"):
            engine.generate("hello")
        result = engine.generate([1, 300, 17], max_tokens=4, ignore_eos=True)
    assert result.text == "" and result.token_ids == greedy(model, [1, 300, 17], 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "/no/such/model"}, "model: got .*expected"),
        ({"path": ""}, "model: got '', expected a path"),
        ({"path": 5}, "model: got 5, expected a path"),
        ({"path": "a\0b"}, "model: got .* expected a path"),
        ({"path": "model.gguf"}, "model: got 'model.gguf', .*GGUF comes later"),
        ({"dtype": "fp8"}, "dtype: got .*fp8"),
        ({"dtype": "int5"}, "dtype: got .*int5"),
        ({"dtype": 4}, "dtype: got 4, expected"),
        ({"device": "cuda"}, 'device: got "cuda", expected "cpu"'),
        ({"threads": 0}, "threads: got 0, expected 1 to 1024"),
        ({"threads": True}, "threads: got True"),
        ({"threads": "2"}, "threads: got '2'"),
        ({"threads": 1 << 40}, "threads: got"),
        ({"activation": "int3"}, "activation|atype"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype|kv_dtype"),
    ],
)
def test_bad_model_arguments(tiny_llama_dir: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(slicellm.Error, match=message) as caught:
        Model(**{"path": tiny_llama_dir, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "ids", [[], [-1], [400], [1 << 31], [1 << 70], [1.0], ["1"], [True], "12", None, 5, [[1]]]
)
def test_bad_ids(model: Model, ids: Any) -> None:
    with pytest.raises(InvalidArgument, match="ids: got .* expected"):
        model.forward(ids)
    with pytest.raises(InvalidArgument, match="ids: got .* expected"):
        model.forward(np.ones((2, 2), np.int64))


def test_bad_chunk(model: Model) -> None:
    for chunk in (-1, 1.5, "1", True):
        with pytest.raises(InvalidArgument, match="chunk: got"):
            model.forward([1, 2], chunk)  # type: ignore[arg-type]


# ---- tasks and results ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(f, v) for f in ("ttft_ms", "tpot_ms", "deadline_ms") for v in (
            0, -1, float("nan"), float("inf"), 1e13, "50", True, [1])],
        *[("utility", v) for v in (-1, float("nan"), float("inf"), "1", None, True)],
        *[("max_tokens", v) for v in (0, -1, 1 << 31, 1 << 63, 1.5, "5", True, None)],
        *[("temperature", v) for v in (-0.1, float("nan"), "0", True)],
        *[("top_k", v) for v in (-1, 1 << 31, 0.5, "1")],
        *[("top_p", v) for v in (0, -1, 1.1, float("nan"), "1")],
        *[("min_p", v) for v in (-0.1, 1.1, float("nan"))],
        *[("repetition_penalty", v) for v in (0, -1, float("nan"), float("inf"))],
        *[("seed", v) for v in (-1, 1 << 64, 1.0, "1", True)],
        *[("logprobs", v) for v in (-1, 101, 1 << 31, 0.5, True)],
        *[("stop", v) for v in ("end", [1], ["\ud800"], [""], 5)],
        *[("stop_ids", v) for v in ([-1], [1 << 31], ["a"], 5)],
        *[("ignore_eos", v) for v in (1, "true", None)],
        *[("stop_at_deadline", v) for v in (1, "true")],
        *[("class_name", v) for v in (5, None)],
        *[("prompt", v) for v in (None, 5, b"text", {"role": "user"})],
    ],
)  # fmt: skip
def test_bad_task_fields(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: got .* expected ") as caught:
        Task(**{"prompt": "hi", field: value})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_unknown_task_fields() -> None:
    with pytest.raises(TypeError, match="tpot"):
        Task("hi", tpot=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("times", "reason", "targets", "met"),
    [
        ([1.5, 1.6, 1.7], "stop", {}, True),
        ([1.5, 1.6, 1.7], "stop", {"ttft_ms": 501, "tpot_ms": 101, "deadline_ms": 701}, True),
        ([1.5, 1.6, 1.7], "length", {"ttft_ms": 499}, False),
        ([1.5, 1.6, 1.7], "stop", {"tpot_ms": 99}, False),
        ([1.5, 1.6, 1.7], "stop", {"deadline_ms": 699}, False),
        ([1.5, 1.6, 1.7], "cancelled", {}, False),
        ([1.5], "stop", {"tpot_ms": 1}, True),  # no second token: TPOT counts as met
        ([], "stop", {"tpot_ms": 1}, True),
        ([], "stop", {"ttft_ms": 1000}, False),
        ([], "rejected", {}, False),
    ],
)
def test_results_by_hand(
    times: list[float], reason: str, targets: dict[str, float], met: bool
) -> None:
    """Arrival at 1 s; times and targets written out."""
    output = {
        "id": 3, "reason": reason, "error": "", "arrival": 1.0, "finish_time": 2.0,
        "prompt_tokens": 4, "token_ids": [7] * len(times), "token_times": times,
        "logprobs": [-1.0] * len(times), "top_logprobs": [[]] * len(times), "text": "x",
    }  # fmt: skip
    result = make_result(Task("hi", **targets), output)
    assert result.slo_met is met
    assert result.ttft_ms == (pytest.approx(500) if times else None)
    assert result.tpot_ms == (pytest.approx(100) if len(times) > 1 else None)
    assert result.e2el_ms == (pytest.approx(1000 * (times[-1] - 1)) if times else None)
    assert result.logprobs is None and result.top_logprobs is None


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


def test_over_long_prompt_is_rejected(model: Model, latency: LatencyModel) -> None:
    with Engine(model, "orca", latency=latency) as engine:
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


# ---- streams -------------------------------------------------------------------------------------
def test_stream_is_generate(engine: Engine) -> None:
    task = Task(PROMPT, max_tokens=40, ignore_eos=True, logprobs=0)
    whole = engine.generate(task)
    stream = engine.stream(task)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [i for piece in pieces for i in piece.token_ids] == whole.token_ids
    assert [x for piece in pieces for x in piece.logprobs or []] == whole.logprobs
    assert stream.result().text == whole.text
    assert list(stream) == []


# Half a minute at the very least: a test that does not cancel it does not pass unnoticed.
LONG = Task(PROMPT, max_tokens=100_000, ignore_eos=True)


def test_leaving_a_loop_cancels(engine: Engine) -> None:
    for _ in engine.stream(LONG):
        break
    gc.collect()
    engine.wait_idle()
    with engine.stream(LONG) as stream:
        next(iter(stream))
    assert stream.result().finish_reason == "cancelled"
    stream = engine.stream(LONG)
    stream.close()
    stream.close()
    assert stream.result().finish_reason == "cancelled"
    assert sorted(finishes(engine).values()) == [1, 1, 1]
    assert engine.stats()["live"] == 0


def test_an_exception_in_a_loop_cancels(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), engine.stream(LONG) as stream:
        for _ in stream:
            raise ZeroDivisionError
    assert stream.result().finish_reason == "cancelled"


def test_cancel(engine: Engine) -> None:
    stream = engine.stream(LONG)
    next(stream)
    assert engine.cancel(stream.id)
    result = stream.result()
    assert result.finish_reason == "cancelled" and 1 <= len(result.token_ids) < 100_000
    assert not engine.cancel(stream.id) and not engine.cancel(10**9)


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
    first: dict[int, float] = {}
    for t, task, kind, _ in engine.core.drain_events():
        if kind == "token":
            first.setdefault(task, t)
    late, early, middle = (first[result.id] for result in results)
    assert early < middle < late
    assert late - early > 0.25  # it did not start before it arrived
    assert results[0].ttft_ms is not None and results[0].ttft_ms < 250  # and is judged from then


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


def test_threads_share_an_engine(engine: Engine) -> None:
    model = engine.model
    expected = {k: greedy(model, [1, k], 5) for k in range(8)}
    wrong: list[Any] = []

    def client(k: int) -> None:
        for n in range(20):
            if n % 4 == 3:
                next(engine.stream(LONG))
                continue
            result = engine.generate([1, k], max_tokens=5, ignore_eos=True)
            if result.token_ids != expected[k]:
                wrong.append(result)

    clients = [threading.Thread(target=client, args=(k,)) for k in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    gc.collect()
    engine.wait_idle()
    assert not wrong
    assert set(finishes(engine).values()) == {1}
    assert engine.stats()["submitted"] == engine.stats()["finished"] == 160


def test_two_thousand_tasks(patient_model: Model, latency: LatencyModel) -> None:
    """8 threads and 8 asyncio clients generate, stream and cancel on one engine: none is lost."""
    model = patient_model
    expected = {k: greedy(model, [1, k], 12) for k in range(8)}
    engine = Engine(model, "slice", latency=latency, record_events=True, max_rows=32)
    outcomes: list[tuple[str, bool]] = []  # finish reason, tokens are a prefix of the right ones

    def note(k: int, result: Result) -> None:
        right = result.token_ids == expected[k][: len(result.token_ids)]
        outcomes.append((result.finish_reason, right))

    def task(rng: random.Random, k: int, cancelled: bool) -> Task:
        tokens = 100_000 if cancelled else rng.randint(1, 12)
        return Task([1, k], rng.choice([1, 100]), tpot_ms=50, max_tokens=tokens, ignore_eos=True)

    def thread_client(number: int) -> None:
        rng = random.Random(number)
        for n in range(125):
            k, kind = rng.randrange(8), n % 4
            made = task(rng, k, kind == 3)
            if kind == 0:
                note(k, engine.generate(made))
                continue
            stream = engine.stream(made)
            if kind == 3:
                for _ in range(rng.randint(0, 3)):
                    next(stream)
                stream.close()
            elif kind == 2:
                assert sum(len(p.token_ids) for p in stream) == made.max_tokens
            note(k, stream.result())

    async def asyncio_client(number: int) -> None:
        rng = random.Random(100 + number)
        for n in range(125):
            k, kind = rng.randrange(8), n % 4
            made = task(rng, k, kind == 3)
            if kind < 2:
                note(k, await engine.agenerate(made))
                continue
            stream = engine.astream(made)
            async for _ in stream:
                if kind == 3 and rng.random() < 0.5:
                    await stream.aclose()
            note(k, stream.result())

    async def asyncio_clients() -> None:
        await asyncio.gather(*(asyncio_client(n) for n in range(8)))

    threads = [threading.Thread(target=thread_client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    asyncio.run(asyncio_clients())
    for thread in threads:
        thread.join()
    engine.wait_idle()
    stats = engine.stats()
    assert len(outcomes) == stats["submitted"] == stats["finished"] == 2000
    assert all(right for reason, right in outcomes if reason == "length")
    assert Counter(reason for reason, _ in outcomes) == {"length": 1504, "cancelled": 496}
    assert len(finishes(engine)) == 2000 and set(finishes(engine).values()) <= {1}
    engine.core.check_integrity()
    engine.close()


# ---- asyncio -------------------------------------------------------------------------------------
def test_asyncio_clients(engine: Engine) -> None:
    expected = {k: greedy(engine.model, [1, k], 8) for k in range(10)}

    async def one(k: int) -> bool:
        if k % 3 == 0:
            tokens = []
            async for piece in engine.astream([1, k % 10], max_tokens=8, ignore_eos=True):
                tokens += piece.token_ids
        else:
            tokens = (await engine.agenerate([1, k % 10], max_tokens=8, ignore_eos=True)).token_ids
        return tokens == expected[k % 10]

    async def clients() -> list[bool]:
        return await asyncio.gather(*(one(k) for k in range(200)))

    assert all(asyncio.run(clients()))
    assert all(asyncio.run(clients()))  # in another event loop
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("slicellm-updates") == 1


def test_cancelled_asyncio_task_cancels(engine: Engine) -> None:
    async def main() -> None:
        waiting = asyncio.create_task(engine.agenerate(LONG))
        while engine.stats()["steps"] < 3:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.agenerate(LONG), 0.05)

    asyncio.run(main())
    engine.wait_idle()
    assert set(finishes(engine).values()) == {1}
    assert engine.stats()["live"] == 0


def test_leaving_an_async_loop_cancels(engine: Engine) -> None:
    async def main() -> str:
        async for _ in engine.astream(LONG):
            break
        async with engine.astream(LONG) as stream:
            async for _ in stream:
                break
        return stream.result().finish_reason

    assert asyncio.run(main()) == "cancelled"
    gc.collect()
    engine.wait_idle()
    assert set(finishes(engine).values()) == {1}


def test_closing_the_engine_ends_asyncio_clients(
    patient_model: Model, latency: LatencyModel
) -> None:
    engine = Engine(patient_model, "orca", latency=latency)

    async def main() -> list[str]:
        waiting = [asyncio.create_task(engine.agenerate(LONG)) for _ in range(5)]
        stream = engine.astream(LONG)
        await stream.__anext__()
        await asyncio.sleep(0.01)  # all have submitted their tasks
        engine.close()
        assert [piece async for piece in stream][1:] == []
        return [(await task).finish_reason for task in waiting]

    assert asyncio.run(main()) == ["cancelled"] * 5
    assert not engine._updates._waiters


def test_event_loop_is_not_blocked(engine: Engine) -> None:
    """While tasks run, the loop goes on."""

    async def main() -> float:
        waiting = [asyncio.create_task(engine.agenerate(LONG)) for _ in range(16)]
        start = last = time.monotonic()
        longest = 0.0
        while time.monotonic() < start + 1:
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return longest

    assert asyncio.run(main()) < 0.5


# ---- engines -------------------------------------------------------------------------------------
def test_closed_engine(patient_model: Model, latency: LatencyModel) -> None:
    engine = Engine(patient_model, "slice:ratio=0.9", latency=latency)
    stream = engine.stream(LONG)
    engine.close()
    engine.close()
    assert stream.result().finish_reason == "cancelled"
    with pytest.raises(StateError, match="engine: got closed"):
        engine.generate("hi")


def test_engine_from_a_path(tiny_llama: Path, latency: LatencyModel) -> None:
    with Engine(tiny_llama, threads=1, latency=latency) as engine:
        assert engine.generate("hi", max_tokens=2).token_ids
        assert engine.model.threads == 1


@pytest.mark.parametrize("policy", ["slice", "orca", "fastserve", "slice:mask_layout=spread"])
def test_policies_give_the_same_tokens(model: Model, latency: LatencyModel, policy: str) -> None:
    prompts = [[1, k] for k in range(6)]
    with Engine(model, policy, latency=latency) as engine:
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
        ({"threads": 2}, "dtype or threads"),
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
def test_bad_engine_arguments(
    model: Model, latency: LatencyModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Engine(model, **{"latency": latency, **arguments})


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


# ---- calibration ---------------------------------------------------------------------------------
@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLICELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_calibration_is_kept(model: Model, cache: Path) -> None:
    calls: list[tuple[int, int]] = []
    latency = calibration.latency_model(
        model, seconds=0.3, progress=lambda done, total: calls.append((done, total))
    )
    assert calls and latency.decode_step_ms(1) > 0
    (path,) = cache.iterdir()
    assert path == calibration.cache_file(model) and model.fingerprint in path.name
    calls.clear()
    again = calibration.latency_model(model, progress=lambda *call: calls.append(call))
    assert not calls, "it came from the cache"
    assert json.loads(again.to_json()) == json.loads(latency.to_json())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b"null"])
def test_corrupt_cache_is_measured_again(model: Model, cache: Path, data: bytes) -> None:
    path = calibration.cache_file(model)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    latency = calibration.latency_model(model, seconds=0.2)
    assert latency.decode_step_ms(1) > 0
    assert calibration.load_cached(path) is not None
    assert [p.name for p in cache.iterdir()] == [path.name], "no temporary file is left"


def test_engine_calibrates_by_itself(model: Model, cache: Path) -> None:
    calibration.latency_model(model, seconds=0.2)
    with Engine(model) as engine:
        assert engine.generate("the", max_tokens=2).token_ids


def test_unwritable_cache(model: Model, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.write_text("a file where the directory should be")
    assert calibration.latency_model(model, seconds=0.2).decode_step_ms(1) > 0
    assert "calibration not kept" in capsys.readouterr().err


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLICELLM_CACHE", "/own")
    assert calibration.cache_directory() == Path("/own")
    monkeypatch.delenv("SLICELLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert calibration.cache_directory() == Path("/xdg/slicellm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert calibration.cache_directory() == tmp_path / ".cache" / "slicellm"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "5", True, 1e9])
def test_bad_calibration_time(model: Model, cache: Path, seconds: Any) -> None:
    with pytest.raises(InvalidArgument, match="seconds: got"):
        calibration.latency_model(model, seconds=seconds)
