"""priority-pause by hand: reserved rows, pauses and their limit, order of admission."""

from __future__ import annotations

import random

import pytest

from slicellm.policies import SyntheticTable, latency_from_table, snapshot

URGENT = 100.0


def table(parameters: str, **fields: int) -> SyntheticTable:
    return SyntheticTable(f"priority-pause:{parameters}", latency_from_table([10]), **fields)


def test_reserved_rows_are_for_urgent_tasks() -> None:
    t = table("max_batch=2,reserved_rows=1")
    a, b = t.add(), t.add()
    assert t.step().prefill == ((a, 16),)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ()
    urgent = t.add(utility=URGENT)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ((urgent, 16),)
    assert snapshot(t.policy)["waiting"] == [b]


def test_a_pause_ends_after_its_steps() -> None:
    t = table("max_batch=2,reserved_rows=1,max_pause_steps=2")
    a, u = t.add(max_tokens=50), t.add(max_tokens=50, utility=URGENT)
    t.step()
    assert t.step().decode == (u, a)
    v = t.add(max_tokens=50, utility=URGENT)
    plan = t.step()  # both rows are taken: a is paused for v
    assert plan.decode == (u,) and plan.prefill == ((v, 16),)
    assert snapshot(t.policy)["paused_steps"] == [0, 1, 0]  # u, a, v
    decodes = [t.step().decode for _ in range(7)]
    assert decodes == [(u, v), (a, u), (u, v), (u, v), (a, u), (u, v), (u, v)]


def test_without_pauses_an_urgent_task_waits_for_a_row() -> None:
    t = table("max_batch=2,reserved_rows=1,max_pause_steps=0")
    a, u = t.add(), t.add(max_tokens=4, utility=URGENT)
    t.step()
    v = t.add(utility=URGENT)
    for _ in range(3):
        plan = t.step()
        assert plan.decode == (u, a) and plan.prefill == ()
    assert t.ended == {1: "length"}
    assert t.step().prefill == ((v, 16),)


def test_urgent_tasks_alone_fit_the_rows() -> None:
    t = table("max_batch=2,reserved_rows=1,max_pause_steps=9")
    a = t.add(max_tokens=30)
    t.step()
    u, v, w = (t.add(max_tokens=3, utility=URGENT) for _ in range(3))
    assert t.step().prefill == ((u, 16), (v, 16))
    assert snapshot(t.policy)["waiting"] == [w]
    assert t.step().decode == (u, v)
    assert t.step().decode == (u, v)
    plan = t.step()
    assert plan.decode == (a,) and plan.prefill == ((w, 16),)


def test_the_last_admitted_is_paused_first() -> None:
    t = table("max_batch=3,reserved_rows=0,max_pause_steps=2")
    a, b, c = (t.add(max_tokens=50) for _ in range(3))
    t.step()
    u = t.add(max_tokens=50, utility=URGENT)
    assert t.step().decode == (a, b)
    assert t.step().decode == (u, a, b)
    assert t.step().decode == (c, u, a)  # c was left out twice; now b is
    assert t.step().decode == (u, a, b)


@pytest.mark.parametrize(
    ("order", "expected"), [("priority", [3, 1, 2, 0]), ("fcfs", [0, 1, 2, 3])]
)
def test_order_of_admission(order: str, expected: list[int]) -> None:
    t = table(f"max_batch=1,reserved_rows=0,max_pause_steps=0,order={order}")
    for utility in (1, 5, 5, URGENT):
        t.add(utility=utility, output_len=1)
    assert [t.step().prefill[0][0] for _ in range(4)] == expected


def test_fcfs_does_not_hold_an_urgent_task_up_for_a_row() -> None:
    t = table("max_batch=2,reserved_rows=1,order=fcfs")
    t.add()
    t.step()
    t.add(), t.add(utility=URGENT)
    plan = t.step()
    assert plan.decode == (0,) and plan.prefill == ((2, 16),)


@pytest.mark.parametrize("order", ["priority", "fcfs"])
def test_nobody_overtakes_a_task_that_waits_for_kv(order: str) -> None:
    # 16 + 64 tokens are 5 of 8 blocks, reserved at admission.
    t = table(f"order={order}", total_blocks=8)
    t.add(prompt_len=16, max_tokens=64, output_len=4)
    t.step()
    t.add(prompt_len=32, max_tokens=33, utility=URGENT)  # four
    t.add(prompt_len=8, max_tokens=8)  # one
    for _ in range(3):
        plan = t.step()
        assert plan.decode == (0,) and plan.prefill == ()
    assert t.step().prefill == ((1, 32), (2, 8))


def test_what_counts_as_urgent() -> None:
    t = table("max_batch=2,reserved_rows=1,urgent_utility=50")
    t.add(), t.add(utility=49), t.add(utility=50)
    assert t.step().prefill == ((2, 16), (1, 16))


@pytest.mark.parametrize("seed", range(20))
def test_no_ordinary_task_is_left_out_for_longer(seed: int) -> None:
    rng = random.Random(seed)
    limit = rng.randint(1, 5)
    t = table(f"max_batch={rng.randint(2, 5)},max_pause_steps={limit}", max_step_tokens=24)
    left_out: dict[int, int] = {}  # id -> steps in a row
    longest = 0
    for _ in range(300):
        if rng.random() < 0.4 and sum(task.id >= 0 for task in t.tasks) < 12:
            t.add(
                utility=URGENT if rng.random() < 0.6 else 1,
                prompt_len=rng.randint(1, 40),
                max_tokens=rng.randint(1, 30),
            )
        ready = [s for s, task in enumerate(t.tasks) if task.id >= 0 and task.ready_to_decode()]
        ids = {slot: t.tasks[slot].id for slot in ready if t.tasks[slot].utility < URGENT}
        decodes = t.step().decode if any(task.id >= 0 for task in t.tasks) else ()
        left_out = {id: left_out.get(id, 0) + 1 for s, id in ids.items() if s not in decodes}
        longest = max(longest, *left_out.values(), 0)
    assert longest == limit
