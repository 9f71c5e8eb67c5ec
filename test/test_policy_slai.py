"""SLAI by hand: last schedulable times, their offset, the order of waiting prompts."""

from __future__ import annotations

import pytest

from slicellm.policies import SyntheticTable, latency_from_table, snapshot


def table(
    policy: str, prefill_ms: float = 0, per_token: float = 1.0, decode_ms: float = 10, **fields: int
) -> SyntheticTable:
    """A decode step takes the same time for any number of rows; prompt tokens add to it."""
    latency = latency_from_table([decode_ms], prefill_ms, per_token)
    return SyntheticTable(policy, latency, **fields)


def test_a_decode_makes_room_for_prompts_until_its_last_schedulable_time() -> None:
    t = table("slai:variant=fcfs_fixed,token_budget=50")
    a = t.add(prompt_len=10, tpot_ms=200)
    assert t.step().prefill == ((a, 10),)  # 10 ms
    b = t.add(prompt_len=80, tpot_ms=200)
    # LST = 10 + 200 - 10 * 10 = 110 > 10: the prompt takes all 50 tokens.
    plan = t.step()
    assert plan.prefill == ((b, 50),) and plan.decode == ()
    # The mean step took (10 + 50) / 2 = 30 ms: LST = 10 + 200 - 300 < 60.
    assert snapshot(t.policy)["mean_step_ms"] == pytest.approx(30)
    c = t.add(prompt_len=100, tpot_ms=200)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ((b, 30), (c, 19))


@pytest.mark.parametrize(("tpot_ms", "urgent"), [(349, True), (351, False)])
def test_the_last_schedulable_time_to_the_millisecond(tpot_ms: float, urgent: bool) -> None:
    # After steps of 10 and 50 ms LST = 10 + TPOT - 10 * 30 ms, and it is 60 ms.
    t = table("slai:variant=fcfs_fixed,token_budget=50")
    t.add(prompt_len=10, tpot_ms=tpot_ms)
    t.step()
    t.add(prompt_len=200, tpot_ms=1000)
    t.step()
    plan = t.step()
    assert plan.decode == ((0,) if urgent else ())
    assert plan.prefill == ((1, 49 if urgent else 50),)


def test_other_decodes_take_what_prompts_leave() -> None:
    t = table("slai:variant=fcfs_fixed,token_budget=50")
    a = t.add(prompt_len=10, tpot_ms=1000)
    t.step()
    b = t.add(prompt_len=80, tpot_ms=1000)
    t.step()
    # LST = 10 + 1000 - 300 = 710 > 60: not urgent, but 20 tokens are left beside the prompt.
    plan = t.step()
    assert plan.prefill == ((b, 30),) and plan.decode == (a,)


def test_decodes_by_last_schedulable_time() -> None:
    # Both have their first token at 20 ms. With one decode a step, of 10 ms, and m the mean step
    # time, LST is 320 - 10 m for a, and 95 ms after its last token - 10 m for b: b runs until
    # its last token is later than 225 ms, which is the 21st at 230 ms.
    t = table("slai:variant=fcfs_fixed,max_decodes=1")
    a = t.add(prompt_len=10, max_tokens=100, tpot_ms=300)
    b = t.add(prompt_len=10, max_tokens=100, tpot_ms=95)
    assert t.step().prefill == ((a, 10), (b, 10))
    assert [t.step().decode for _ in range(22)] == [(b,)] * 21 + [(a,)]


def test_the_target_of_a_task_without_tpot() -> None:
    t = table("slai:max_decodes=1")
    best_effort = t.add(prompt_len=10, max_tokens=100)
    slow = t.add(prompt_len=10, max_tokens=100, tpot_ms=1e6)
    fast = t.add(prompt_len=10, max_tokens=10, deadline_ms=1500)  # 150 ms a token
    medium = t.add(prompt_len=10, max_tokens=100, tpot_ms=155)
    t.step()
    assert [t.step().decode for _ in range(2)] == [(fast,), (medium,)]
    t.cancel(fast), t.cancel(medium)
    assert t.step().decode == (slow,)
    t.cancel(slow)
    assert t.step().decode == (best_effort,)


@pytest.mark.parametrize(
    ("variant", "blocks", "urgent"),
    # The task holds 94 blocks: 94 / 98 = 0.959 and 94 / 97 = 0.969 of the KV.
    [
        ("spf_dynamic", 98, False),
        ("spf_dynamic", 97, True),
        ("spf_dynamic_user_priority", 98, False),
        ("spf_dynamic_user_priority", 97, True),
        ("spf_fixed", 98, True),
        ("fcfs_fixed", 98, True),
    ],
)
def test_the_offset_doubles_when_the_kv_is_full(variant: str, blocks: int, urgent: bool) -> None:
    # Each step takes 100 ms: LST is 800 - 5 * 100 or 800 - 10 * 100 ms after the last token.
    t = table(
        f"slai:variant={variant},token_budget=48",
        prefill_ms=100,
        per_token=0,
        decode_ms=1e-9,
        total_blocks=blocks,
    )
    a = t.add(prompt_len=1500, tpot_ms=800)
    while t.tasks[a].produced == 0:
        t.step()
    b = t.add(prompt_len=48, tpot_ms=800)
    plan = t.step()
    assert plan.prefill == ((b, 47 if urgent else 48),)
    assert plan.decode == ((a,) if urgent else ())


@pytest.mark.parametrize(
    ("parameters", "order"),
    [
        ("variant=fcfs_fixed", [0, 1, 2]),
        ("variant=spf_fixed", [1, 0, 2]),
        ("variant=spf_dynamic", [1, 0, 2]),
        ("variant=spf_dynamic_user_priority", [2, 1, 0]),  # 0 and 1 were strict until 2 came
        ("variant=spf_dynamic_user_priority,strict_tpot_ms=200", [2, 1, 0]),
        ("variant=spf_dynamic_user_priority,strict_tpot_ms=500", [1, 0, 2]),
    ],
)
def test_the_order_of_waiting_prompts(parameters: str, order: list[int]) -> None:
    t = table(f"slai:{parameters}")
    t.add(prompt_len=30, tpot_ms=500)
    t.add(prompt_len=20, tpot_ms=500)
    t.add(prompt_len=40, tpot_ms=100)
    assert [slot for slot, _ in t.step().prefill] == order


def test_strict_users_stay_strict_while_none_is_there() -> None:
    t = table("slai:variant=spf_dynamic_user_priority,max_batch=1")
    t.add(prompt_len=10, output_len=1, tpot_ms=100)
    t.step()
    t.add(prompt_len=30, tpot_ms=200)
    t.add(prompt_len=20, tpot_ms=500)
    assert snapshot(t.policy)["waiting"] == [1, 0]  # slots; the shorter, though less strict


def test_the_youngest_is_computed_again_before_shorter_prompts() -> None:
    t = table("slai:variant=spf_dynamic", total_blocks=4)
    a = t.add(prompt_len=16, max_tokens=33)
    b = t.add(prompt_len=16, max_tokens=33)
    t.step()
    for _ in range(16):
        assert t.step().decode == (a, b)
    c = t.add(prompt_len=8)
    plan = t.step()
    assert plan.kv == (("drop", b),) and plan.decode == (a,) and plan.prefill == ()
    assert snapshot(t.policy)["waiting"] == [b, c]
