"""Sarathi by hand: the token budget over decodes and prompts, room for a prompt, recompute."""

from __future__ import annotations

import pytest

from slicellm.policies import SyntheticTable, latency_from_table, snapshot


def table(policy: str = "sarathi", **fields: int) -> SyntheticTable:
    return SyntheticTable(policy, latency_from_table([14, 27, 38]), **fields)


def test_the_budget_goes_to_decodes_then_started_then_waiting_prompts() -> None:
    t = table("sarathi:token_budget=32")
    a = t.add(prompt_len=10)
    assert t.step().prefill == ((a, 10),)
    b, c = t.add(prompt_len=50), t.add(prompt_len=20)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ((b, 31),)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ((b, 19), (c, 12))
    d = t.add(prompt_len=30)
    plan = t.step()
    assert plan.decode == (a, b) and plan.prefill == ((c, 8), (d, 22))
    plan = t.step()
    assert plan.decode == (a, b, c) and plan.prefill == ((d, 8),)
    assert t.step().decode == (a, b, c, d)


@pytest.mark.parametrize(("order", "expected"), [("fcfs", [1, 2]), ("spf", [2, 1])])
def test_started_prompts_come_before_waiting_ones(order: str, expected: list[int]) -> None:
    t = table(f"sarathi:token_budget=32,order={order}")
    t.add(prompt_len=40)
    assert t.step().prefill == ((0, 32),)
    t.add(prompt_len=12), t.add(prompt_len=4)
    plan = t.step()
    assert [slot for slot, _ in plan.prefill] == [0, *expected]
    assert plan.prefill[0] == (0, 8)


def test_decodes_are_never_cut_and_whole_prompts_may_exceed_the_budget() -> None:
    t = table("sarathi:token_budget=2")
    for _ in range(3):
        t.add(prompt_len=4, prefill_divisible=False)
    plans = [t.step() for _ in range(4)]  # one such prompt a step
    assert [plan.prefill for plan in plans] == [((0, 4),), ((1, 4),), ((2, 4),), ()]
    assert [plan.decode for plan in plans] == [(), (0,), (0, 1), (0, 1, 2)]
    t.add(prompt_len=4)
    assert t.step().prefill == ()  # 3 decodes leave nothing of 2 tokens


def test_an_indivisible_prompt_waits_for_room_in_the_engines_step() -> None:
    t = table(max_step_tokens=32)
    t.add(prompt_len=4, output_len=6)
    t.step()
    t.add(prompt_len=32, prefill_divisible=False)
    t.add(prompt_len=2)
    for _ in range(5):
        plan = t.step()
        assert plan.decode == (0,) and plan.prefill == ()  # nobody overtakes
    assert t.step().prefill == ((1, 32),)
    assert t.step().prefill == ((2, 2),)


def test_rows_are_capped() -> None:
    t = table("sarathi:max_batch=2")
    t.add(output_len=2), t.add(), t.add()
    assert t.step().prefill == ((0, 16), (1, 16))
    plan = t.step()
    assert plan.decode == (0, 1) and plan.prefill == ()
    assert t.step().prefill == ((2, 16),)


def test_a_prompt_starts_when_all_of_it_fits_beside_what_runs() -> None:
    t = table("sarathi:token_budget=20", total_blocks=5)
    t.add(prompt_len=16, output_len=3)  # 1 block, and a second one for the next token
    assert t.step().prefill == ((0, 16),)
    t.add(prompt_len=64)  # 4 blocks: 16 more than the first chunk needs
    t.add(prompt_len=8)
    assert t.step().prefill == ()
    assert t.step().prefill == ()
    assert [t.step().prefill for _ in range(4)] == [((1, 20),)] * 3 + [((1, 4), (2, 8))]


def test_prompts_that_join_together_fit_together() -> None:
    t = table("sarathi:token_budget=64", total_blocks=5)
    t.add(prompt_len=48), t.add(prompt_len=48)  # three blocks each, though 16 tokens would fit
    assert t.step().prefill == ((0, 48),)


@pytest.mark.parametrize("order", ["fcfs", "spf"])
def test_the_youngest_is_computed_again_from_the_front_of_the_queue(order: str) -> None:
    # Four blocks of 16. Both hold two until, with 32 tokens in KV, each needs a third.
    t = table(f"sarathi:order={order}", total_blocks=4)
    a = t.add(prompt_len=16, max_tokens=33)
    b = t.add(prompt_len=16, max_tokens=33)
    assert t.step().prefill == ((a, 16), (b, 16))
    for _ in range(16):
        plan = t.step()
        assert plan.decode == (a, b) and plan.kv == ()
    c = t.add(prompt_len=8)
    plan = t.step()
    assert plan.kv == (("drop", b),) and plan.decode == (a,) and plan.prefill == ()
    assert snapshot(t.policy) == {"running": [a], "waiting": [b, c]}
    for _ in range(15):  # b needs three blocks, one is free; c would fit but is behind b
        plan = t.step()
        assert plan.decode == (a,) and plan.prefill == ()
    assert t.ended == {0: "length"}
    assert t.step().prefill == ((b, 33), (c, 8))  # 16 of the prompt and 17 of the output
    assert t.tasks[b].produced == 18 and t.tasks[c].produced == 1


def test_no_plan_changes_the_policy() -> None:
    t = table("sarathi:token_budget=8")
    t.add(prompt_len=20)
    before = snapshot(t.policy)
    assert t.propose() == t.propose()
    assert snapshot(t.policy) == before == {"running": [], "waiting": [0]}


def test_tasks_that_can_never_run_are_refused() -> None:
    t = table(max_step_tokens=16, total_blocks=4)
    t.add(prompt_len=60, max_tokens=6)
    t.add(prompt_len=17, prefill_divisible=False)
    t.add(prompt_len=16)
    plan = t.step()
    assert [slot for slot, _, _ in plan.endings] == [0, 1] and plan.prefill == ((2, 16),)
    assert t.ended == {0: "rejected", 1: "rejected"}
