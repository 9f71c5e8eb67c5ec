"""scls by hand: slices, batches by predicted serving time, the interval, early return."""

from __future__ import annotations

import pytest

from slicellm.policies import SyntheticTable, latency_from_table, snapshot


def table(policy: str, **fields: int) -> SyntheticTable:
    """A step of any rows takes 10 ms, a prefill 20 ms and 0.4 ms a token."""
    return SyntheticTable(policy, latency_from_table([10.0]), **fields)


def test_slices_batches_and_interval() -> None:
    t = table("scls:slice=4,gamma_ms=1000")
    a = t.add(prompt_len=10, output_len=3)
    b = t.add(prompt_len=500, output_len=6)
    c = t.add(prompt_len=12, output_len=4)
    # a and c together: 20 + 9.6 + 4 * 10 ms, less than 64 + 64.8 apart. With b both would pay for
    # 500 tokens a row. The longest batch comes first.
    plan = t.step()
    assert plan.prefill == ((b, 500),) and not plan.padding_prompts
    late = t.add(prompt_len=8, output_len=1)
    for _ in range(3):
        assert t.step().decode == (b,)
    assert t.now == pytest.approx(0.220 + 0.030)
    # The slice of b is over: its KV goes, and the next batch starts at once.
    plan = t.step()
    assert plan.kv == (("drop", b),) and not plan.prefill
    plan = t.step()
    assert plan.prefill == ((a, 10), (c, 12)) and plan.padding_prompts == (2,)
    assert t.step().decode == (a, c)
    assert t.step().decode == (a, c)
    plan = t.step()
    assert plan.decode == (c,) and plan.padding_rows == (12,)
    assert t.ended == {0: "length", 2: "length"}
    # Nothing more until the next schedule, 1 s after the first.
    plan = t.step()
    assert not plan.runs() and plan.wake_at == 1.0
    assert t.now == 1.0
    plan = t.step()  # b comes back with prompt + 4 tokens; it and `late` are better apart
    assert plan.prefill == ((b, 504),)
    state = snapshot(t.policy)
    assert (state["batches"], state["rows"], state["queued"]) == (3, 4, 1)
    assert t.step().decode == (b,)
    assert t.ended[1] == "length"
    assert t.step().prefill == ((late, 8),)
    assert sorted(t.ended) == [0, 1, 2, 3]
    # b ended after 2 of 4 tokens, `late` after one; the batch of a and c took all four.
    t.add()
    t.step()
    assert snapshot(t.policy)["early_returns"] == 2


def test_the_interval_grows_with_the_load() -> None:
    t = table("scls:slice=4,lambda=10,gamma_ms=1000")
    t.add(prompt_len=500, output_len=1)
    t.step()
    t.add(prompt_len=8)
    # Ten times the predicted 20 + 200 + 40 ms.
    plan = t.step()
    assert plan.wake_at == pytest.approx(2.6)


def test_what_comes_while_idle_is_served_at_once() -> None:
    t = table("scls:slice=4,gamma_ms=1000")
    t.add(output_len=1)
    t.step()
    t.now = 5.0
    late = t.add()
    assert t.step().prefill == ((late, 16),)


def test_a_proposal_that_is_dropped_changes_nothing() -> None:
    t = table("scls:slice=4,gamma_ms=1000")
    t.add(), t.add(prompt_len=400)
    before = snapshot(t.policy)
    first = t.propose()
    assert snapshot(t.policy) == before
    t.cancel(1)
    assert first.prefill == ((1, 400),)
    assert t.step().prefill == ((0, 16),)


def test_tasks_that_leave_while_they_wait_run_or_queue() -> None:
    t = table("scls:slice=8,gamma_ms=1000")
    a, b = t.add(prompt_len=300), t.add(prompt_len=16)
    t.step()
    c = t.add()
    t.cancel(b), t.cancel(c)  # b is in a queued batch, c in the pool
    assert snapshot(t.policy)["queued"] == 0
    t.cancel(a)
    assert snapshot(t.policy)["running"] == []
    d = t.add()
    assert t.step().wake_at == 1.0
    assert t.step().prefill == ((d, 16),)


def test_an_output_that_cannot_be_computed_again_is_refused() -> None:
    t = table("scls:slice=4,gamma_ms=1000", max_step_tokens=18)
    t.add(prompt_len=16, prefill_divisible=False)
    for _ in range(5):
        t.step()
    assert t.ended == {0: "rejected"}  # 20 tokens after its first slice
