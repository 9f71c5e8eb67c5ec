"""vLLM by hand: steps of prompts only, watermark, preemption, priorities."""

from __future__ import annotations

import pytest

from slicellm.policies import SyntheticTable, latency_from_table, snapshot


def table(policy: str = "vllm", **fields: int) -> SyntheticTable:
    return SyntheticTable(policy, latency_from_table([14, 27, 38]), **fields)


def test_prompts_stop_the_decodes() -> None:
    t = table()
    a = t.add(prompt_len=10)
    assert t.step().prefill == ((a, 10),)
    assert t.step().decode == (a,)
    b, c = t.add(prompt_len=20), t.add(prompt_len=30)
    plan = t.step()
    assert plan.prefill == ((b, 20), (c, 30)) and plan.decode == ()
    plan = t.step()
    assert plan.prefill == () and plan.decode == (a, b, c)


def test_whole_prompts_up_to_the_token_limit() -> None:
    t = table("vllm:max_num_batched_tokens=40")
    for _ in range(3):
        t.add(prompt_len=20)
    assert t.step().prefill == ((0, 20), (1, 20))
    plan = t.step()
    assert plan.prefill == ((2, 20),) and plan.decode == ()
    assert t.step().decode == (0, 1, 2)


def test_a_prompt_beyond_the_token_limit() -> None:
    t = table("vllm:max_num_batched_tokens=32")
    t.add(prompt_len=4)
    t.step()
    t.add(prompt_len=80), t.add(prompt_len=8)
    plans = [t.step() for _ in range(3)]
    assert [plan.prefill for plan in plans] == [((1, 32),), ((1, 32),), ((1, 16), (2, 8))]
    assert all(plan.decode == () for plan in plans)
    assert t.step().decode == (0, 1, 2)
    t.add(prompt_len=80, prefill_divisible=False)
    assert t.step().prefill == ((3, 80),)


def test_rows_are_capped() -> None:
    t = table("vllm:max_num_seqs=2")
    t.add(output_len=2), t.add(), t.add()
    assert t.step().prefill == ((0, 16), (1, 16))
    assert t.step().decode == (0, 1)
    assert t.step().prefill == ((2, 16),)


@pytest.mark.parametrize(
    ("watermark", "prompt_len", "admitted"),
    # 100 blocks of 16 tokens, 80 of them held: 20 are free.
    [(0.1, 160, True), (0.1, 161, False), (0.01, 304, True), (0.01, 305, False), (0, 320, True)],
)
def test_admission_keeps_the_watermark_free(
    watermark: float, prompt_len: int, admitted: bool
) -> None:
    t = table(f"vllm:watermark={watermark}", total_blocks=100)
    t.add(prompt_len=1280)
    t.step()
    t.add(prompt_len=prompt_len)
    plan = t.step()
    assert plan.prefill == (((1, prompt_len),) if admitted else ())
    assert plan.decode == (() if admitted else (0,))


def test_a_task_alone_may_take_every_block() -> None:
    t = table("vllm:watermark=0.5", total_blocks=10)
    t.add(prompt_len=150, max_tokens=10)
    assert t.step().prefill == ((0, 150),)
    t.run()
    assert t.ended == {0: "length"}


def test_the_youngest_is_computed_again_from_the_front_of_the_queue() -> None:
    # Four blocks of 16. Both hold two until, with 32 tokens in KV, each needs a third.
    t = table(total_blocks=4)
    a = t.add(prompt_len=16, max_tokens=33)
    b = t.add(prompt_len=16, max_tokens=33)
    t.step()
    for _ in range(16):
        assert t.step().decode == (a, b)
    c = t.add(prompt_len=20)  # two blocks: none is free
    plan = t.step()
    assert plan.kv == (("drop", b),) and plan.decode == (a,)
    assert snapshot(t.policy) == {"running": [a], "waiting": [b, c]}
    while 0 not in t.ended:
        assert t.step().decode == (a,)
    assert t.step().prefill == ((b, 33),)  # three of four blocks; c needs two
    assert snapshot(t.policy) == {"running": [b], "waiting": [c]}


def test_priority_admits_the_higher_utility_first_then_the_earlier() -> None:
    t = table("vllm:order=priority,max_num_seqs=1")
    for utility in (1, 5, 5, 100):
        t.add(utility=utility, output_len=1)
    assert [t.step().prefill[0][0] for _ in range(4)] == [3, 1, 2, 0]
    t = table("vllm:max_num_seqs=1")
    for utility in (1, 5):
        t.add(utility=utility, output_len=1)
    assert [t.step().prefill[0][0] for _ in range(2)] == [0, 1]


def test_priority_preempts_the_lowest_utility_which_keeps_its_place() -> None:
    t = table("vllm:order=priority", total_blocks=4)
    a = t.add(utility=1, prompt_len=16, max_tokens=33)
    b = t.add(utility=5, prompt_len=16, max_tokens=33)
    assert t.step().prefill == ((b, 16), (a, 16))
    for _ in range(16):
        assert t.step().decode == (b, a)
    c = t.add(utility=3, prompt_len=20)
    plan = t.step()
    assert plan.kv == (("drop", a),) and plan.decode == (b,)
    assert snapshot(t.policy) == {"running": [b], "waiting": [c, a]}
