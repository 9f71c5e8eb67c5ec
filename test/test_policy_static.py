"""static and ils by hand: batches that start and end together, padding, reservations."""

from __future__ import annotations

from slicellm.policies import SyntheticTable, latency_from_table, snapshot


def table(policy: str = "static", **fields: int) -> SyntheticTable:
    return SyntheticTable(policy, latency_from_table([14, 27, 38]), **fields)


def test_a_batch_pads_its_prompts_and_keeps_rows_that_ended() -> None:
    t = table("static:batch=2")
    a = t.add(prompt_len=10, output_len=2)
    b = t.add(prompt_len=16, output_len=5)
    c = t.add(prompt_len=8)
    plan = t.step()
    assert plan.prefill == ((a, 10), (b, 16)) and plan.padding_prompts == (6,)
    plan = t.step()
    assert plan.decode == (a, b) and not plan.padding_rows
    assert t.ended == {0: "length"}
    # a has 12 tokens, the last of which a live row would append now: 11 in KV.
    plan = t.step()
    assert plan.decode == (b,) and plan.padding_rows == (11,) and not plan.padding_prompts
    assert t.step().padding_rows == (12,)
    assert t.step().padding_rows == (13,)
    assert t.ended == {0: "length", 1: "length"}
    assert t.step().prefill == ((c, 8),)


def test_the_next_batch_waits_for_the_last_row() -> None:
    t = table("static:batch=2")
    t.add(output_len=1), t.add(output_len=3)
    late = t.add()
    t.step()
    assert snapshot(t.policy) == {"running": [1], "waiting": [2], "rows": 2, "generated": 1}
    assert t.step().decode == (1,)
    assert t.step().decode == (1,)
    assert t.step().prefill == ((late, 16),)


def test_a_batch_starts_with_what_waits() -> None:
    t = table("static:batch=4")
    a = t.add()
    assert t.step().prefill == ((a, 16),)
    t.add()
    assert t.step().decode == (a,)


def test_prompts_longer_than_a_step_come_in_parts() -> None:
    t = table("static:batch=2", max_step_tokens=32)
    a, b = t.add(prompt_len=40, output_len=3), t.add(prompt_len=20, output_len=3)
    assert t.step().prefill == ((a, 32),)
    plan = t.step()  # the rest of a, all of b, and 4 of its 20 pads
    assert plan.prefill == ((a, 8), (b, 20)) and plan.padding_prompts == (4,)
    plan = t.step()
    assert not plan.prefill and not plan.decode and plan.padding_prompts == (16,)
    assert t.step().decode == (a, b)


def test_kv_of_the_worst_case_is_reserved() -> None:
    # Rows of at most 16 + 64 tokens: 5 blocks each, two in 10.
    t = table(total_blocks=10)
    for _ in range(3):
        t.add(prompt_len=16, max_tokens=64)
    assert t.step().prefill == ((0, 16), (1, 16))
    # The third fits beside the first two if it is short, but not with the batch's longest.
    t = table(total_blocks=14)
    t.add(prompt_len=16, max_tokens=64), t.add(prompt_len=16, max_tokens=64)
    t.add(prompt_len=4, max_tokens=4)
    assert t.step().prefill == ((0, 16), (1, 16))


def test_a_row_that_ended_never_outgrows_the_longest_row() -> None:
    t = table("static:batch=2")
    t.add(prompt_len=30, max_tokens=2)  # at most 32 tokens
    t.add(prompt_len=4, max_tokens=20)
    contexts = []
    while any(task.id >= 0 for task in t.tasks):
        contexts += t.step().padding_rows
    assert contexts == [31] * 18


def test_cancelled_rows_become_padding_and_the_queue_moves_on() -> None:
    t = table("static:batch=2")
    t.add(), t.add(), t.add(prompt_len=5), t.add()
    t.step()
    t.cancel(3), t.cancel(0)
    plan = t.step()
    assert plan.decode == (1,) and plan.padding_rows == (16,)
    t.cancel(1)
    assert t.step().prefill == ((2, 5),)


def test_impossible_tasks_are_rejected() -> None:
    t = table(max_step_tokens=16, total_blocks=4)
    t.add(prompt_len=60, max_tokens=6)
    t.add(prompt_len=17, prefill_divisible=False)
    t.add(prompt_len=16)
    plan = t.step()
    assert [slot for slot, _, _ in plan.endings] == [0, 1]
    assert plan.prefill == ((2, 16),)


def test_ils_is_orca_with_a_cap() -> None:
    t = table("ils:max_parallel=2")
    a, b = t.add(output_len=2), t.add(output_len=9)
    c = t.add()
    assert [s for s, _ in t.step().prefill] == [a, b]
    assert t.step().decode == (a, b)
    plan = t.step()
    assert plan.decode == (b,) and [s for s, _ in plan.prefill] == [c]
    assert not plan.padding_rows
    assert snapshot(t.policy) == {"running": [b, c], "waiting": []}
    assert t.policy.name == "ils"
