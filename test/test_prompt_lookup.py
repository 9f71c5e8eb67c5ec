"""Prompt-lookup decoding: the same tokens as without it, in fewer steps, never beyond a task's end.

That any schedule gives the same bits with drafts too is in test_engine_invariance.py."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from reference import models, tiny

from slicellm import _core

FREE = _core.LatencyModel.from_decode_table([1.0])  # rows cost nothing: every draft pays
FAMILIES = ["llama", "qwen2", "chatglm1", "chatglm2"]
BLOCKS = 64
LENGTH = 40


def load(directory: Path, family: str, device: str) -> _core.Model:
    config = models.FAMILIES[family]
    tiny.write_directory(directory / family, config, tiny.weights(config))
    return _core.Model.load(str(directory / family), device=device, dtype="float16", threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, device_name: str) -> _core.Model:
    return load(tmp_path_factory.mktemp("model"), "llama", device_name)


def run(
    model: _core.Model, tasks: list[dict[str, Any]], **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """Results, statistics and step records of tasks that decode side by side."""
    options = {"policy": "orca", "latency": FREE, **options}
    engine = _core.Engine(model, kv_cache_bytes=BLOCKS * model.kv_block_bytes, **options)
    results = [h.wait(60) for h in engine.submit_all([_core.TaskSpec(**task) for task in tasks])]
    engine.wait_idle()
    engine.check_integrity()
    stats, steps = engine.stats(), engine.drain_steps()
    engine.close()
    assert stats["free_blocks"] == BLOCKS
    return results, stats, steps


def prompts(model: _core.Model, count: int, **settings: Any) -> list[dict[str, Any]]:
    rng = random.Random(1)
    vocab = model.spec["vocab"]
    return [
        {
            "prompt": [rng.randrange(vocab) for _ in range(8)],
            "max_tokens": LENGTH,
            "ignore_eos": True,
            "seed": seed,
            **settings,
        }
        for seed in range(count)
    ]


def output(result: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("reason", "token_ids", "logprobs", "top_logprobs", "text")
    return tuple(result[key] for key in keys)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 0.5, "repetition_penalty": 1.1, "logprobs": 2},
]


@pytest.mark.parametrize(
    "family, settings", [*zip(FAMILIES, SETTINGS), *zip(FAMILIES, SETTINGS[::-1])], ids=str
)
def test_the_same_tokens_in_fewer_steps(
    tmp_path: Path, device_name: str, family: str, settings: dict[str, Any]
) -> None:
    model = load(tmp_path, family, device_name)
    tasks = prompts(model, 4, **settings)
    plain, before, _ = run(model, tasks)
    found, stats, steps = run(model, tasks, prompt_lookup=7)
    assert [output(r) for r in found] == [output(r) for r in plain]
    assert before["drafted_tokens"] == before["accepted_tokens"] == 0
    assert 0 < stats["accepted_tokens"] <= stats["drafted_tokens"]
    # Each token came from a prompt, from a decode row or from a draft that was right.
    assert 4 * LENGTH == 4 + sum(steps["decode_rows"]) + stats["accepted_tokens"]
    # The latency model is told what the steps held.
    computed = sum(steps["tokens"]) - sum(steps["prefill_tokens"])
    assert computed == sum(steps["decode_rows"]) + stats["drafted_tokens"]
    assert sum(steps["rows"]) == 4 + computed


def test_nothing_comes_after_the_end(model: _core.Model) -> None:
    """Ends at every place of an output whose second half repeats itself."""
    (task,) = prompts(model, 1)
    (plain,), _, _ = run(model, [task])
    ids = plain["token_ids"]
    letters = [bytes([97 + i % 26]) for i in range(model.spec["vocab"])]
    text = b"".join(letters[i] for i in ids).decode()
    for place in range(LENGTH):
        first = ids.index(ids[place]) + 1
        for ends in ({"stop_ids": [ids[place]]}, {"max_tokens": place + 1}):
            (found,), stats, _ = run(model, [{**task, **ends}], prompt_lookup=9)
            wanted = ids[:first] if "stop_ids" in ends else ids[: place + 1]
            assert found["token_ids"] == wanted
            assert len(found["token_times"]) == len(wanted)
            assert stats["accepted_tokens"] < len(wanted)
        (found,), _, _ = run(
            model, [{**task, "ignore_eos": False}], prompt_lookup=9, eos_ids=[ids[place]]
        )
        assert (found["token_ids"], found["reason"]) == (ids[:first], "stop")
        stop = text[place : place + 3]
        (found,), _, _ = run(
            model, [{**task, "stop": [stop]}], prompt_lookup=9, token_bytes=letters
        )
        end = text.find(stop)
        assert found["text"] == text[:end]
        assert found["token_ids"] == ids[: end + len(stop)]
        (found,), _, _ = run(model, [{**task, "true_output_tokens": place + 1}], prompt_lookup=9)
        assert (found["token_ids"], found["reason"]) == (ids[: place + 1], "stop")


def test_drafts_ride_along_only_where_they_pay(model: _core.Model) -> None:
    tasks = prompts(model, 1)

    def drafted(latency: _core.LatencyModel, **settings: Any) -> int:
        _, stats, _ = run(
            model, [{**t, **settings} for t in tasks], latency=latency, prompt_lookup=5
        )
        return int(stats["drafted_tokens"])

    # A draft is right half of the time, as far as is known: two rows may cost less than 1.5 of one.
    assert drafted(_core.LatencyModel.from_decode_table([1.0, 1.6, 2.4])) == 0
    assert drafted(_core.LatencyModel.from_decode_table([1.0, 1.4, 2.4])) > 0
    # Of a step of two rows, 10 ms + 1 ms, and a TPOT in between.
    slow = _core.LatencyModel.from_decode_table([10.0, 11.0])
    assert drafted(slow) > 0 and drafted(slow, tpot_ms=11.5) > 0
    assert drafted(slow, tpot_ms=10.5) == 0


def test_batches_that_go_on_in_step_take_no_drafts(model: _core.Model) -> None:
    tasks = prompts(model, 3)
    plain, _, _ = run(model, tasks)
    for policy in ("static", "scls"):
        found, stats, _ = run(model, tasks, policy=policy, prompt_lookup=5)
        assert [output(r) for r in found] == [output(r) for r in plain]
        assert stats["drafted_tokens"] == 0


@pytest.mark.parametrize("value", [-1, 1.5, "7"])
def test_a_count_is_expected(model: _core.Model, value: object) -> None:
    with pytest.raises(_core.InvalidArgument, match="prompt_lookup: got .*, expected 0 "):
        _core.Engine(model, "orca", FREE, kv_cache_bytes=1 << 20, prompt_lookup=value)


def test_the_overlapped_loop_refuses_it(model: _core.Model) -> None:
    with pytest.raises(_core.InvalidArgument, match="prompt_lookup: got 3, expected 0 with the"):
        _core.Engine(model, "orca", FREE, kv_cache_bytes=1 << 20, prompt_lookup=3, loop="overlap")
