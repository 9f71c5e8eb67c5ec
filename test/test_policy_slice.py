"""SLICE's choice by hand: rates, estimate, selection. Numbers in comments are worked on paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slice_cases import L4060, add, prefill_all, state_of, table

from slicellm.policies import (
    LatencyModel,
    MaskMatrix,
    StepPlan,
    SyntheticTable,
    cycle_estimate_ms,
)

# ---- rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"tpot_ms": 50}, 20),
        ({"tpot_ms": 100}, 10),
        ({"tpot_ms": 250}, 4),
        # 1000 / 120 = 8.33; 8 tokens a cycle would come 125 ms apart.
        ({"tpot_ms": 120}, 9),
        # 1000 / 15 = 66.7. The published code stops at 49.
        ({"tpot_ms": 15}, 67),
        # 1000 / 70 = 14.28..
        ({"tpot_ms": 70}, 15),
        ({"tpot_ms": 1000}, 1),
        ({"tpot_ms": 5000}, 1),
        # Deadline only: 1500 / 30 tokens = 50 ms.
        ({"deadline_ms": 1500, "max_tokens": 30}, 20),
        # Both: the TPOT counts.
        ({"deadline_ms": 1500, "max_tokens": 30, "tpot_ms": 250}, 4),
        # Neither: best effort. A TTFT alone asks for no rate.
        ({}, 1),
        ({"ttft_ms": 200}, 1),
    ],
)
def test_rate(fields: dict, rate: int) -> None:
    t = table(steps=[1.0])
    t.add(**{"max_tokens": 100, **fields})
    assert state_of(t)["rates"] == [rate]


def test_rates_divide_exactly() -> None:
    # 1000 / (1000 / v) is v, whatever rounding does to the quotient.
    for v in range(1, 400):
        t = table(steps=[0.001])
        add(t, 1000 / v)
        assert state_of(t)["rates"] == [v]


def test_rate_follows_cycle() -> None:
    t = table("slice:cycle_ms=2000")
    add(t, 120)  # 2000 / 120 = 16.7
    assert state_of(t)["rates"] == [17]


# ---- the estimate of a cycle --------------------------------------------------------------------


def test_estimate_by_hand() -> None:
    # (20 - 8) * 14 + (8 - 4) * 27 + 4 * 38 = 168 + 108 + 152
    assert cycle_estimate_ms([20, 8, 4], L4060) == 428
    # Equal rates share all their steps: 10 * l(3).
    assert cycle_estimate_ms([10, 10, 10], L4060) == 380
    assert cycle_estimate_ms([], L4060) == 0


def test_estimate_is_the_sum_of_columns() -> None:
    rates = [67, 20, 20, 9, 4, 1]
    cells = MaskMatrix(rates).to_numpy()
    assert cycle_estimate_ms(rates, L4060) == sum(L4060[rows - 1] for rows in cells.sum(axis=0))


def test_not_underestimated_as_published() -> None:
    # Rates 20 20 10 10 10 10 | 10 (utility rate: the two fast ones first).
    # Paper: six tasks (20 - 10) * l(2) + 10 * l(6) = 270 + 720 = 990, fits.
    #        seven                        270 + 10 * l(7) = 270 + 830 = 1100, does not.
    # Published code, (v_{i-1} - v_i) l(i) with v_0 = 0: -20 * 14 + 10 * 38 = 100 for any number.
    t = table()
    for _ in range(2):
        add(t, 50, utility=100)
    for _ in range(8):
        add(t, 100)
    state = state_of(t)
    assert state["selected"] == [0, 1, 2, 3, 4, 5]
    assert state["estimate_ms"] == pytest.approx(990)


def test_differences_are_taken_in_rate_order() -> None:
    # By utility the slow task (v = 4) comes first, then the fast one (v = 20).
    # Sorted by rate: (20 - 4) * 14 + 4 * 27 = 224 + 108 = 332.
    # In utility order, as published: (4 - 20) * 14 + 20 * 27 = 316, which would fit 320.
    t = table("slice:ratio=0.32")
    add(t, 250, utility=100)
    add(t, 50, utility=1)
    assert state_of(t)["selected"] == [0]
    t = table("slice:ratio=0.332")
    add(t, 250, utility=100)
    add(t, 50, utility=1)
    state = state_of(t)
    assert state["selected"] == [1, 0]  # matrix rows are by rate
    assert state["estimate_ms"] == pytest.approx(332)


def test_more_tasks_than_the_table_has_rows() -> None:
    # l(16) = 124 + (124 - 14) / 14: the published code reads past its table here.
    t = table()
    for _ in range(16):
        add(t, 250)
    state = state_of(t)
    assert len(state["selected"]) == 16
    assert state["estimate_ms"] == pytest.approx(4 * (124 + 110 / 14))


def test_rate_is_not_capped_at_49() -> None:
    # v = 67, 4, 1. Two tasks: 63 * 14 + 4 * 27 = 990. Three: 63 * 14 + 3 * 27 + 38 = 1001.
    # With v capped at 49 the three would seem to take 45 * 14 + 3 * 27 + 38 = 749.
    t = table()
    add(t, 15, utility=100)
    add(t, 250)
    add(t)
    state = state_of(t)
    assert state["rates"] == [67, 4]
    assert state["estimate_ms"] == pytest.approx(990)


def test_step_times_are_taken_at_the_candidates_mean_context() -> None:
    # A model of 5 ms + 1 ms a row + 0.01 ms a token of context, which the fit finds.
    samples = [
        (rows, rows, rows * context, 0, 0, 0, 5 + rows + 0.01 * rows * context)
        for rows in (1, 2, 3, 4, 8)
        for context in (10, 100, 1000, 2000)
    ]
    latency = LatencyModel.fit(samples)
    t = SyntheticTable("slice", latency)
    add(t, 100, prompt_len=100)
    add(t, 100, prompt_len=500)
    # Both are candidates: mean context 300; two rows of rate 10.
    assert state_of(t)["estimate_ms"] == pytest.approx(10 * latency.decode_step_ms(2, 300))
    assert latency.decode_step_ms(2, 300) > latency.decode_step_ms(2, 0) + 3


# ---- selection ----------------------------------------------------------------------------------


def test_walk_is_by_utility_times_tpot() -> None:
    # Utility rates: 1 * 250 = 250, 2 * 100 = 200, 100 * 50 = 5000, 3 * 50 = 150.
    # 1000 * 0.5: real-time 20 * 14 = 280; + v 4: 16 * 14 + 4 * 27 = 332;
    # + v 10: 10 * 14 + 6 * 27 + 4 * 38 = 454; + v 20: 10 * 27 + 6 * 38 + 4 * 50 = 698 > 500.
    t = table("slice:ratio=0.5")
    slow = add(t, 250, 1)
    middle = add(t, 100, 2)
    real_time = add(t, 50, 100)
    cheap = add(t, 50, 3)
    state = state_of(t)
    assert state["selected"] == [real_time, middle, slow]
    assert state["estimate_ms"] == pytest.approx(454)
    assert state["waiting"] == [cheap]


def test_stops_at_the_first_misfit() -> None:
    # v = 10 fits (140). v = 67: 57 * 14 + 10 * 27 = 1068 does not; v = 4 behind it would:
    # 6 * 14 + 4 * 27 = 192, but the walk has stopped.
    t = table()
    add(t, 100, utility=100)
    add(t, 15, utility=300)
    add(t, 250, utility=1)
    state = state_of(t)
    assert state["selected"] == [0]
    assert state["waiting"] == [1, 2]


def test_a_task_too_fast_to_fit_runs_alone() -> None:
    # TPOT 10: 100 tokens a cycle need 1,400 ms.
    t = table()
    fast = add(t, 10, utility=1000)
    add(t, 250)
    state = state_of(t)
    assert state["selected"] == [fast]
    assert state["estimate_ms"] == pytest.approx(1400)
    assert t.step().prefill == ((fast, 10),)
    assert t.step().decode == (fast,)


def test_a_task_too_fast_to_fit_stays_alone_even_where_two_would_seem_to_fit() -> None:
    # A table that is not monotone: 20 * 60 = 1200 alone, 20 * 10 = 200 with a second one.
    t = table(steps=[60.0, 10.0])
    add(t, 50), add(t, 50)
    assert state_of(t)["selected"] == [0]


def test_a_cycle_that_is_exactly_full_fits() -> None:
    t = table(steps=[30.0, 50.0, 50.1])  # 20 * 50 = 1000
    add(t, 50)
    add(t, 50)
    add(t, 50)
    assert len(state_of(t)["selected"]) == 2


def test_equal_keys_go_by_arrival_then_id() -> None:
    t = table("slice:ratio=0.3")  # 20 * 14 = 280: one fits
    for _ in range(3):
        add(t, 50)
    assert state_of(t)["selected"] == [0]
    t = table("slice:ratio=0.3")
    add(t, 50, arrival=0.5)
    earlier = add(t, 50, arrival=0.25)
    assert state_of(t)["selected"] == [earlier]


def test_equal_rates_keep_the_order_of_the_walk() -> None:
    t = table()
    low, high = add(t, 100, 1), add(t, 100, 2)
    assert state_of(t)["selected"] == [high, low]


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 10), (0.5, 3), (0.38, 3), (0.37, 2), (0.1, 1)])
def test_ratio(ratio: float, count: int) -> None:
    # n tasks of v = 10 take 10 l(n); l is 14 27 38 50: 380 fits 0.38, and l(10) = 100 fits 1.0.
    t = table(f"slice:ratio={ratio}", steps=[14, 27, 38, 51, 60, 72, 83, 90, 95, 100, 110])
    for _ in range(12):
        add(t, 100)
    assert len(state_of(t)["selected"]) == count


def test_best_effort_comes_last() -> None:
    # Whatever its utility: 1 * 14 of the cycle for the best-effort task comes on top.
    t = table("slice:ratio=0.3")
    free = add(t, None, utility=1e6)
    paid = add(t, 50, utility=0.001)
    state = state_of(t)  # 20 * 14 = 280; both: 19 * 14 + 27 = 293
    assert state["selected"] == [paid, free]
    assert state["estimate_ms"] == pytest.approx(293)
    t = table("slice:ratio=0.28")
    add(t, None, utility=1e6)
    paid = add(t, 50, utility=0.001)
    assert state_of(t)["selected"] == [paid]


def test_best_effort_alone_runs_without_pause() -> None:
    t = table()
    add(t)
    prefill_all(t)
    assert [t.step().decode for _ in range(3)] == [(0,)] * 3


def test_rows_are_capped() -> None:
    t = table(steps=[1.0], max_rows=3)
    for _ in range(5):
        add(t, 100)
    assert state_of(t)["selected"] == [0, 1, 2]


# ---- options of later public versions -----------------------------------------------------------


def test_boost_serves_the_oldest_of_a_starving_class() -> None:
    def starving(policy: str) -> SyntheticTable:
        t = table(policy, steps=[30.0, 60.0, 90.0])  # one task of 20 tokens fits
        add(t, 50, utility=5, class_id=1)
        add(t, 50, utility=1, class_id=2)
        add(t, 50, utility=1, class_id=2)
        return t

    t = starving("slice")
    while t.now < 2:
        t.step()
    assert t.tasks[1].produced == 0
    t = starving("slice:boost_after_ms=450")
    while t.now < 0.45:
        assert t.tasks[1].produced == 0
        t.step()
    assert t.step().prefill == ((1, 10),)  # utility 10 beats 5
    assert t.tasks[2].produced == 0


def test_ageing_gives_up_on_who_waited_too_long() -> None:
    def waiting(policy: str) -> dict:
        t = table(policy, steps=[30.0, 60.0, 90.0])
        add(t, 50, utility=100, max_tokens=170)  # serves for more than 5 s
        old = add(t, 50, utility=3)
        while t.now < 5.01:
            t.step()
        new = add(t, 50, utility=2)
        while t.tasks[0].id == 0:
            t.step()
        return {"old": old, "new": new, "first": t.step().prefill[0][0]}

    off = waiting("slice")
    assert off["first"] == off["old"]
    on = waiting("slice:age_after_ms=5000")  # 3 * 0.1 < 2
    assert on["first"] == on["new"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([15, 50, 100, 120, 250, None]), min_size=1, max_size=20))
def test_the_estimate_holds_and_one_more_would_not(tpots: list[float | None]) -> None:
    """Selection against an independent statement of the rule, on random sets."""
    t = table()
    for tpot in tpots:
        add(t, tpot, utility=1 + len(t.tasks) % 3)
    state = state_of(t)

    def rate(tpot: float | None) -> int:
        return 1 if tpot is None else int(np.ceil(1000 / tpot))

    def cost(slots: list[int]) -> float:
        columns = [sum(rate(tpots[s]) > j for s in slots) for j in range(67)]
        return sum(t.latency.decode_step_ms(rows) for rows in columns if rows)

    walk = sorted(
        range(len(tpots)),
        key=lambda s: (tpots[s] is None, -(1 + s % 3) * (tpots[s] or 1), s),
    )
    chosen = walk[:1]
    for slot in walk[1:]:
        if cost([*chosen, slot]) > 1000 + 1e-6:
            break
        chosen.append(slot)
    assert sorted(state["selected"]) == sorted(chosen)
    assert state["estimate_ms"] == pytest.approx(cost(chosen))
    assert isinstance(t.propose(), StepPlan)
