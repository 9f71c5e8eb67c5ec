"""SLICE's steps by hand: the scan of the matrix, prefills, KV. Numbers are worked on paper."""

from __future__ import annotations

from slice_cases import add, prefill_all, state_of, table

from slicellm.policies import SyntheticTable, snapshot

# ---- the scan -----------------------------------------------------------------------------------


def test_columns_are_scanned_left_to_right_and_wrap() -> None:
    # v = 5, 3, 1. Column 0 is everybody's prefill; then columns 1..4, and again from column 0.
    t = table("slice:cycle_ms=500")
    a, b, c = add(t, 100), add(t, 500 / 3), add(t)
    assert dict(t.step().prefill) == {a: 10, b: 10, c: 10}
    columns = [t.step().decode for _ in range(9)]
    cycle = [(a, b, c), (a, b), (a, b), (a,), (a,)]
    assert columns == cycle[1:] + cycle
    assert snapshot(t.policy)["column"] == 0


def test_spread_scan() -> None:
    t = table("slice:cycle_ms=400,mask_layout=spread", steps=[1.0])  # v = 4 and 2
    a, b = add(t, 100), add(t, 200)
    prefill_all(t)
    assert [t.step().decode for _ in range(7)] == [
        (a,), (a, b), (a,), (a, b), (a,), (a, b), (a,),
    ]  # fmt: skip


def test_each_task_gets_its_rate_in_a_cycle() -> None:
    t = table(steps=[5, 6, 7, 8])
    slots = [add(t, tpot) for tpot in (50, 100, 120, 250)]
    prefill_all(t)
    for _ in range(19):  # the rest of the first cycle
        t.step()
    produced = [t.tasks[s].produced for s in slots]
    assert produced == [20, 10, 9, 4]
    for _ in range(20):
        t.step()
    assert [t.tasks[s].produced for s in slots] == [40, 20, 18, 8]


def test_arrival_and_departure_restart_the_scan() -> None:
    t = table(steps=[5, 6, 7, 8])
    fast, slow = add(t, 50), add(t, 250)
    prefill_all(t)
    for _ in range(6):
        t.step()
    assert snapshot(t.policy)["column"] == 7
    new = add(t, 250)
    plan = t.step()  # column 0 of the new matrix
    assert plan.decode == (fast, slow)
    assert plan.prefill == ((new, 10),)
    for _ in range(4):
        t.step()
    t.cancel(new)
    assert t.propose().decode == (fast, slow)
    assert snapshot(t.policy)["column"] == 0


def test_a_dropped_plan_changes_nothing() -> None:
    t = table(steps=[5, 6, 7])
    add(t, 50), add(t, 250)
    first = t.propose()
    assert t.propose() == first
    t.step()
    for _ in range(3):
        t.propose()
    assert snapshot(t.policy)["column"] == 1


def test_a_prompt_longer_than_a_step_spans_several() -> None:
    t = table(max_step_tokens=16, steps=[5, 6, 7])
    ready = add(t, 50, prompt_len=4)
    prefill_all(t)
    long = add(t, None, prompt_len=40)  # v = 1: without its prefill it would have one column
    plans = [t.step() for _ in range(3)]
    # Beside one decode row 15 tokens are left: 15 + 15 + 10.
    assert [p.prefill for p in plans] == [((long, 15),), ((long, 15),), ((long, 10),)]
    assert [p.decode for p in plans] == [(ready,)] * 3


def test_an_indivisible_prefill_gets_its_own_step() -> None:
    t = table(max_step_tokens=16, steps=[5, 6, 7])
    ready = add(t, 50, prompt_len=4)
    prefill_all(t)
    long = add(t, 50, prompt_len=16, prefill_divisible=False)
    plan = t.step()
    assert plan.prefill == ((long, 16),) and not plan.decode
    assert snapshot(t.policy)["column"] == 0  # it took no column from the others
    assert t.step().decode == (ready, long)


def test_impossible_tasks_are_rejected_with_a_reason() -> None:
    t = table(max_step_tokens=16, total_blocks=8)
    add(t, 50, prompt_len=17, max_tokens=8, prefill_divisible=False)
    add(t, 50, prompt_len=100, max_tokens=30)  # 130 tokens; 8 blocks hold all but one and the last
    fits = add(t, 50, prompt_len=16, max_tokens=100)
    plan = t.step()
    assert [(slot, reason) for slot, reason, _ in plan.endings] == [
        (0, "rejected"),
        (1, "rejected"),
    ]
    messages = [message for _, _, message in plan.endings]
    assert messages[0].startswith("prompt: got 17 tokens, expected at most 16")
    assert messages[1].startswith("prompt + max_tokens: got 130 tokens, expected at most 129")
    assert plan.prefill == ((fits, 16),)
    assert t.ended == {0: "rejected", 1: "rejected"}


# ---- memory -------------------------------------------------------------------------------------


def test_kv_is_capped_at_selection() -> None:
    # 10 prompt tokens and 20 in the coming cycle: 30 tokens, 2 blocks each; 5 blocks hold two.
    t = table(steps=[5, 6, 7], total_blocks=5)
    for _ in range(3):
        add(t, 50, max_tokens=60)
    assert state_of(t)["selected"] == [0, 1]


def test_a_short_task_reserves_no_more_than_it_can_use() -> None:
    # The first 10 + 6 tokens at most, of 10 + 20 in a cycle: one block each.
    t = table(steps=[5, 6, 7], total_blocks=3)
    for _ in range(3):
        add(t, 50, max_tokens=6)
    assert state_of(t)["selected"] == [0, 1, 2]


def holder_and_newcomers(**fields: int) -> SyntheticTable:
    """A worthless task with 3 of 4 blocks; then a valuable one arrives that needs 2 to 3."""
    t = table(steps=[5, 6, 7], total_blocks=4, **fields)
    add(t, 50, prompt_len=40, max_tokens=20, utility=1)
    prefill_all(t)
    add(t, 50, prompt_len=20, max_tokens=40, utility=100)
    return t


def test_a_holder_in_the_way_is_swapped_out() -> None:
    t = holder_and_newcomers(total_host_blocks=3)
    plan = t.step()
    assert plan.kv == (("swap_out", 0),)
    assert plan.prefill == ((1, 20),)
    while t.tasks[1].id >= 0:
        t.step()
    plan = t.step()  # back from the host
    assert plan.kv == (("swap_in", 0),) and plan.decode == (0,)


def test_a_holder_in_the_way_is_dropped_when_the_host_is_full() -> None:
    t = holder_and_newcomers(total_host_blocks=2)
    assert t.step().kv == (("drop", 0),)
    while t.tasks[1].id >= 0:
        t.step()
    assert t.step().prefill == ((0, 41),)  # prompt and output are computed again
    t.run()
    assert t.ended == {1: "length", 0: "length"}


def test_a_holder_not_in_the_way_keeps_its_kv() -> None:
    t = table(steps=[30, 60, 90], total_blocks=100)  # 20 * 60 > 1000: one at a time
    waits = add(t, 50, utility=1)
    prefill_all(t)
    runs = add(t, 50, utility=100)
    plan = t.step()
    assert plan.prefill == ((runs, 10),) and not plan.kv
    assert t.tasks[waits].kv == "device"


def test_the_least_valuable_holder_goes_first() -> None:
    t = table(steps=[5, 6, 7, 8], total_blocks=6)
    cheap = add(t, 50, prompt_len=20, max_tokens=20, utility=1)
    dear = add(t, 50, prompt_len=20, max_tokens=20, utility=2)
    prefill_all(t)
    add(t, 50, prompt_len=60, max_tokens=20, utility=100)  # 60 tokens: 4 of the 6 blocks
    plan = t.step()
    assert plan.kv == (("swap_out", cheap),)
    assert t.tasks[dear].kv == "device"


def test_selection_shrinks_when_the_next_cycle_no_longer_fits() -> None:
    # Two tasks of 20 tokens a cycle on 6 blocks (96 tokens). At the start each needs 10 + 20
    # tokens, 2 blocks. After a cycle 50 (4 blocks): 8 > 6, so only the first goes on.
    t = table(steps=[5, 6, 7], total_blocks=6)
    add(t, 50, max_tokens=80), add(t, 50, max_tokens=80)
    for _ in range(20):
        t.step()
    assert snapshot(t.policy)["column"] == 0
    plan = t.propose()
    assert plan.decode == (0,)
    assert snapshot(t.policy)["selected"] == [0]
    t.run()
    assert t.ended == {0: "length", 1: "length"}
