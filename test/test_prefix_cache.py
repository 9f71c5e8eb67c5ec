"""The prefix cache: what it spares, what it shares, and that it changes no token."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reference import models, tiny

from slicellm import _core

LATENCY = _core.LatencyModel.from_decode_table([1.0])
BLOCK = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, device_name: str) -> _core.Model:
    path = tmp_path_factory.mktemp("model") / "llama"
    config = {**models.FAMILIES["llama"], "max_position_embeddings": 512}
    tiny.write_directory(path, config, tiny.weights(config))
    return _core.Model.load(str(path), device=device_name, dtype="float16")


@pytest.fixture
def engine(model: _core.Model) -> Iterator[_core.Engine]:
    made = make(model)
    yield made
    made.check_integrity()
    made.close()


def make(model: _core.Model, blocks: int = 64, **options: Any) -> _core.Engine:
    options = {"prefix_cache": True, **options}
    kv = {"kv_cache_bytes": blocks * model.kv_block_bytes, "host_kv_bytes": 0}
    return _core.Engine(model, "orca", LATENCY, **kv, **options)


def ids(model: _core.Model, count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(model.spec["vocab"]) for _ in range(count)]


def run(engine: _core.Engine, prompt: list[int], max_tokens: int = 8) -> dict[str, Any]:
    task = _core.TaskSpec(prompt, max_tokens=max_tokens, ignore_eos=True, logprobs=2)
    result = engine.submit(task).wait(30)
    engine.wait_idle()
    return result


def said(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["token_ids"], result["logprobs"], result["top_logprobs"]


@pytest.mark.parametrize(
    ("first", "second", "spared"),
    [
        (100, 100, 96),  # the last token is always computed: six full blocks of 16
        (96, 96, 80),  # ... also where it ends a block
        (17, 17, 16),
        (16, 16, 0),
        (100, 40, 32),
        (40, 100, 32),
    ],
)
def test_a_known_beginning_is_not_computed_again(
    model: _core.Model, engine: _core.Engine, first: int, second: int, spared: int
) -> None:
    text = ids(model, 100)
    assert run(engine, text[:first], max_tokens=1)["cached_tokens"] == 0
    again = run(engine, text[:second])
    assert again["cached_tokens"] == spared
    steps = engine.drain_steps()
    assert steps["prefill_tokens"].sum() == first + second - spared
    stats = engine.stats()
    assert stats["reused_tokens"] == spared
    assert stats["prefill_tokens"] == first + second - spared
    cold = make(model, prefix_cache=False)
    assert said(run(cold, text[:second])) == said(again)
    cold.close()


def test_an_answer_is_found_as_the_beginning_of_the_next_prompt(
    model: _core.Model, engine: _core.Engine
) -> None:
    prompt = ids(model, 30)
    answer = run(engine, prompt, max_tokens=40)["token_ids"]
    # K and V of the last answered token are never computed: 30 + 39 = 69 tokens, four blocks.
    follow = run(engine, prompt + answer + ids(model, 5, seed=1))
    assert follow["cached_tokens"] == 64


def test_equal_blocks_after_different_beginnings_are_different(
    model: _core.Model, engine: _core.Engine
) -> None:
    common = ids(model, BLOCK)
    run(engine, ids(model, BLOCK, seed=1) + common + [1])
    other = run(engine, ids(model, BLOCK, seed=2) + common + [1])
    assert other["cached_tokens"] == 0
    assert run(engine, common + [1])["cached_tokens"] == 0


def test_tasks_that_run_together_share_blocks(model: _core.Model) -> None:
    engine = make(model, blocks=20, max_step_tokens=512)
    text = ids(model, 8 * BLOCK)
    run(engine, text, max_tokens=1)
    # Eight blocks of beginning, held once, and a block of its own for each of four tasks; without
    # sharing they would take 36 of 20 blocks.
    prompts = [text + [seed] for seed in range(4)]
    handles = engine.submit_all(
        [_core.TaskSpec(p, max_tokens=8, ignore_eos=True, logprobs=2) for p in prompts]
    )
    results = [handle.wait(30) for handle in handles]
    engine.wait_idle()
    assert [r["cached_tokens"] for r in results] == [128] * 4
    assert engine.drain_steps()["decode_rows"].max() == 4
    engine.check_integrity()
    engine.close()
    alone = make(model, prefix_cache=False)
    assert [said(run(alone, p)) for p in prompts] == [said(r) for r in results]
    alone.close()


def test_memory_that_is_needed_takes_the_longest_unused(model: _core.Model) -> None:
    engine = make(model, blocks=10)
    old, new = ids(model, 4 * BLOCK, seed=1), ids(model, 4 * BLOCK, seed=2)
    run(engine, old, max_tokens=1)
    run(engine, new, max_tokens=1)
    stats = engine.stats()
    assert stats["free_blocks"] == stats["total_blocks"] == 10
    run(engine, ids(model, 5 * BLOCK - 1, seed=3), max_tokens=1)  # two free, three of `old`
    assert run(engine, new, max_tokens=1)["cached_tokens"] == 3 * BLOCK
    assert run(engine, old, max_tokens=1)["cached_tokens"] == BLOCK  # its end went first
    engine.check_integrity()
    engine.close()


def test_it_is_off_unless_asked_for_and_where_prompts_attend_both_ways(
    model: _core.Model, tmp_path: Path, device_name: str
) -> None:
    plain = make(model, prefix_cache=False)
    both_ways = models.FAMILIES["chatglm1"]
    tiny.write_directory(tmp_path / "glm", both_ways, tiny.weights(both_ways))
    glm = make(_core.Model.load(str(tmp_path / "glm"), device=device_name, dtype="float16"))
    for engine in (plain, glm):
        prompt = [3 + i % 7 for i in range(2 * BLOCK + 4)]
        run(engine, prompt, max_tokens=2)
        assert run(engine, prompt, max_tokens=2)["cached_tokens"] == 0
        engine.close()


def test_k_and_v_of_a_task_that_ended_in_nan_are_not_found(
    model: _core.Model, tmp_path: Path, device_name: str
) -> None:
    config = models.FAMILIES["llama"]
    weights = tiny.weights(config)
    name = "model.embed_tokens.weight"
    weights[name] = weights[name].copy()
    weights[name][5] = math.nan  # prompts with token 5 have no logits
    tiny.write_directory(tmp_path / "nan", config, weights)
    engine = make(_core.Model.load(str(tmp_path / "nan"), device=device_name, dtype="float32"))
    prompt = [5] + [3] * (2 * BLOCK)
    assert run(engine, prompt)["reason"] == "error"
    again = run(engine, prompt)
    assert (again["reason"], again["cached_tokens"]) == ("error", 0)
    engine.close()


class DropsOnce(_core.Policy):
    """Computes half of a prompt, drops it, and begins again."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def plan(self, view: _core.View) -> _core.StepPlan:
        (slot,) = view.live
        task = view.task(slot)
        if self.steps == 0:
            return _core.StepPlan(prefill=[(slot, task.prompt_len // 2)])
        kv = [("drop", slot)] if self.steps == 1 else []
        if task.ready_to_decode():
            return _core.StepPlan(decode=[slot])
        return _core.StepPlan(prefill=[(slot, task.prompt_len if kv else task.pending())], kv=kv)

    def commit(self, *_: Any) -> None:
        self.steps += 1


def test_what_a_task_computed_itself_is_not_told_as_cached(model: _core.Model) -> None:
    size = 32 * model.kv_block_bytes
    engine = _core.Engine(model, DropsOnce(), LATENCY, kv_cache_bytes=size, prefix_cache=True)
    result = run(engine, ids(model, 200), max_tokens=3)
    assert result["reason"] == "length" and result["cached_tokens"] == 0
    assert engine.stats()["reused_tokens"] == 96  # but it is not computed twice
    engine.close()
