"""EDF by hand: when tokens are due, the batch, and who loses KV."""

from __future__ import annotations

import pytest

from slicellm.policies import SyntheticTable, latency_from_table, snapshot


def table(policy: str = "edf", **fields: int) -> SyntheticTable:
    return SyntheticTable(policy, latency_from_table([10]), **fields)


def due(t: SyntheticTable) -> dict[int, float | None]:
    """slot -> ms, in order."""
    state = snapshot(t.policy)
    return dict(zip(state["slots"], state["due_ms"], strict=True))


def test_when_the_next_token_is_due() -> None:
    t = table()
    none = t.add()
    chat = t.add(ttft_ms=500, tpot_ms=100)
    voice = t.add(tpot_ms=60)  # counts as its TTFT too
    robot = t.add(deadline_ms=1000)
    capped = t.add(ttft_ms=500, tpot_ms=100, deadline_ms=550)
    first = t.add(ttft_ms=300)
    expected = {voice: 60, first: 300, chat: 500, capped: 500, robot: 1000, none: None}
    assert list(due(t)) == list(expected) and due(t) == pytest.approx(expected)
    assert len(t.step().prefill) == 6
    expected = {voice: 120, capped: 550, chat: 600, robot: 1000, none: None, first: None}
    assert list(due(t)) == list(expected) and due(t) == pytest.approx(expected)
    assert t.step().decode == tuple(expected)
    assert due(t)[chat] == pytest.approx(700) and due(t)[capped] == pytest.approx(550)


def test_arrivals_move_the_due_times() -> None:
    t = table()
    t.add(arrival=2.0, tpot_ms=100), t.add(arrival=1.0, tpot_ms=1000, ttft_ms=3000)
    assert due(t) == pytest.approx({0: 2100, 1: 4000})


def test_the_batch_is_the_earliest() -> None:
    t = table("edf:max_batch=1")
    a, b = t.add(ttft_ms=100, tpot_ms=100), t.add(ttft_ms=150, tpot_ms=100)
    plans = [t.step() for _ in range(4)]  # due 100 and 150, then 200 and 250
    assert [plan.prefill for plan in plans] == [((a, 16),), ((b, 16),), (), ()]
    assert [plan.decode for plan in plans] == [(), (), (a,), (b,)]


def test_a_late_token_stays_the_earliest() -> None:
    t = table("edf:max_batch=1")
    late = t.add(tpot_ms=1, max_tokens=4)  # 1 ms a token where a step takes 10
    t.add(tpot_ms=20)
    assert t.step().prefill == ((late, 16),)
    assert [t.step().decode for _ in range(3)] == [(late,)] * 3
    assert t.step().prefill == ((1, 16),)


def test_an_urgent_arrival_takes_kv_and_gives_it_back() -> None:
    t = table(total_blocks=4, total_host_blocks=4)
    a = t.add(prompt_len=48, tpot_ms=1000)  # three blocks
    t.step()
    b = t.add(prompt_len=32, tpot_ms=10, max_tokens=4)  # two of four
    plan = t.step()
    assert plan.kv == (("swap_out", a),) and plan.prefill == ((b, 32),) and plan.decode == ()
    for _ in range(3):
        plan = t.step()
        assert plan.decode == (b,) and plan.kv == ()
    plan = t.step()
    assert plan.kv == (("swap_in", a),) and plan.decode == (a,)


def test_a_drop_where_the_host_is_full() -> None:
    t = table(total_blocks=4, total_host_blocks=2)
    a = t.add(prompt_len=48, tpot_ms=1000)
    t.step()
    b = t.add(prompt_len=32, tpot_ms=10, max_tokens=2)
    plan = t.step()
    assert plan.kv == (("drop", a),) and plan.prefill == ((b, 32),)
    t.step()
    assert t.step().prefill == ((a, 49),)  # with its first output token


def test_who_lost_kv_takes_none() -> None:
    t = table(total_blocks=4, total_host_blocks=4)
    a = t.add(prompt_len=48, tpot_ms=100)
    t.step()
    b = t.add(prompt_len=32, ttft_ms=50, tpot_ms=500)
    assert t.step().kv == (("swap_out", a),)
    assert list(due(t)) == [a, b]  # at 200 and 550 ms
    plan = t.step()
    assert plan.decode == (b,) and plan.kv == ()


def test_a_prompt_without_room_closes_the_door() -> None:
    t = table(total_blocks=4)
    d = t.add(prompt_len=31, tpot_ms=10)  # grows from two to three blocks
    t.step()
    t.add(prompt_len=48, tpot_ms=500), t.add(prompt_len=8, tpot_ms=1000)
    for _ in range(15):
        plan = t.step()
        assert plan.decode == (d,) and plan.prefill == ()
    assert t.step().prefill == ((1, 48), (2, 8))


def test_who_lost_kv_comes_back_in_order() -> None:
    t = table(total_blocks=4, total_host_blocks=4)
    long, short = t.add(prompt_len=40, tpot_ms=400), t.add(prompt_len=8, tpot_ms=1000)
    assert t.step().prefill == ((long, 40), (short, 8))  # three blocks and one
    d, e = t.add(prompt_len=31, tpot_ms=10), t.add(prompt_len=32, max_tokens=1, tpot_ms=10)
    plan = t.step()
    assert plan.kv == (("swap_out", short), ("swap_out", long))
    assert plan.prefill == ((d, 31), (e, 32))
    for _ in range(15):  # d holds two blocks, then three: the short one would fit
        plan = t.step()
        assert plan.decode == (d,) and plan.kv == ()
    plan = t.step()
    assert plan.kv == (("swap_in", long), ("swap_in", short)) and plan.decode == (long, short)


def test_an_indivisible_prompt_takes_the_step_when_it_is_first() -> None:
    t = table(max_step_tokens=32)
    d = t.add(ttft_ms=100, tpot_ms=100)
    t.step()  # next due at 200 ms
    t.add(prompt_len=32, ttft_ms=500, tpot_ms=500, prefill_divisible=False)
    t.add(prompt_len=4, ttft_ms=600, tpot_ms=500)
    plan = t.step()  # due at 500 and 600 ms, behind the decode
    assert plan.decode == (d,) and plan.prefill == ()
    t.step(), t.step()  # then d is due at 500 ms, too, and the older
    assert t.step().decode == (d,)
    plan = t.step()  # d at 600 ms
    assert plan.decode == () and plan.prefill == ((1, 32),)
