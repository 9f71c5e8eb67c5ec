"""Orca by hand: first come first served, reservations, mixed steps."""

from __future__ import annotations

from slicellm.policies import SyntheticTable, latency_from_table, snapshot


def table(policy: str = "orca", **fields: int) -> SyntheticTable:
    return SyntheticTable(policy, latency_from_table([14, 27, 38]), **fields)


def test_prompts_join_the_decodes_of_a_step() -> None:
    t = table()
    a = t.add(prompt_len=10)
    assert t.step().prefill == ((a, 10),)
    b, c = t.add(prompt_len=20), t.add(prompt_len=30)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ((b, 20), (c, 30))
    assert t.step().decode == (a, b, c)


def test_batch_is_capped_and_filled_when_a_task_leaves() -> None:
    t = table("orca:max_batch=2")
    a, b = t.add(output_len=2), t.add(output_len=9)
    c, d = t.add(), t.add()
    assert [s for s, _ in t.step().prefill] == [a, b]
    assert t.step().decode == (a, b)
    assert t.ended == {0: "length"}
    plan = t.step()
    assert plan.decode == (b,) and [s for s, _ in plan.prefill] == [c]
    assert snapshot(t.policy) == {"running": [b, c], "waiting": [d]}


def test_rows_of_the_engine_cap_the_batch() -> None:
    t = table(max_rows=1)
    t.add(), t.add()
    assert t.step().prefill == ((0, 16),)
    assert t.step().decode == (0,)


def test_kv_is_reserved_for_prompt_and_max_tokens() -> None:
    # 16 + 64 tokens are 5 blocks, though a prompt takes one at first: two fit in 10.
    t = table(total_blocks=10)
    for _ in range(3):
        t.add(prompt_len=16, max_tokens=64)
    assert t.step().prefill == ((0, 16), (1, 16))
    for _ in range(63):
        assert t.step().decode == (0, 1)
    assert t.step().prefill == ((2, 16),)


def test_nobody_overtakes() -> None:
    # The second needs 8 blocks while the first holds a promise for 5 of 10; the third would fit.
    t = table(total_blocks=10)
    t.add(prompt_len=16, max_tokens=64, output_len=5)
    t.add(prompt_len=64, max_tokens=64)
    t.add(prompt_len=8, max_tokens=8)
    assert t.step().prefill == ((0, 16),)
    while 0 not in t.ended:
        assert not t.step().prefill
    assert t.step().prefill == ((1, 64), (2, 8))


def test_waiting_is_by_arrival_then_id() -> None:
    t = table("orca:max_batch=1")
    t.add(arrival=2.0), t.add(arrival=1.0), t.add(arrival=1.0)
    assert snapshot(t.policy)["waiting"] == [1, 2, 0]
    assert t.propose().prefill == ((1, 16),)


def test_whole_prompts_unless_longer_than_a_step() -> None:
    t = table(max_step_tokens=32)
    t.add(prompt_len=20), t.add(prompt_len=20), t.add(prompt_len=100, output_len=1)
    assert t.step().prefill == ((0, 20),)  # 12 tokens are left: the second is not cut
    plan = t.step()
    assert plan.decode == (0,) and plan.prefill == ((1, 20),)
    chunks = [t.step().prefill for _ in range(4)]  # beside two decodes: 30 a step
    assert chunks == [((2, 30),), ((2, 30),), ((2, 30),), ((2, 10),)]


def test_an_indivisible_prompt_waits_for_room() -> None:
    t = table(max_step_tokens=32)
    t.add(prompt_len=4, output_len=6)
    t.add(prompt_len=32, prefill_divisible=False)
    t.step()
    for _ in range(5):
        assert t.step().decode == (0,)
    assert t.step().prefill == ((1, 32),)


def test_impossible_tasks_are_rejected_and_do_not_block_the_queue() -> None:
    t = table(max_step_tokens=16, total_blocks=4)
    t.add(prompt_len=60, max_tokens=6)  # 66 tokens; 4 blocks hold 64, and the last needs no KV
    t.add(prompt_len=17, prefill_divisible=False)
    t.add(prompt_len=16)
    plan = t.step()
    assert [(slot, reason) for slot, reason, _ in plan.endings] == [
        (0, "rejected"),
        (1, "rejected"),
    ]
    assert "got 66 tokens, expected at most 65, which the KV cache can hold" in plan.endings[0][2]
    assert "expected at most 16, the size of a step" in plan.endings[1][2]
    assert plan.prefill == ((2, 16),)


def test_cancelled_tasks_leave_the_queue_and_the_batch() -> None:
    t = table("orca:max_batch=1")
    t.add(), t.add(), t.add()
    t.step()
    t.cancel(1)
    t.cancel(0)
    assert t.step().prefill == ((2, 16),)
    assert snapshot(t.policy) == {"running": [2], "waiting": []}
