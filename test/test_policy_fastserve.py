"""FastServe by hand: skip-join level, demotion, starvation, swapping."""

from __future__ import annotations

import pytest

from slicellm.policies import SyntheticTable, latency_from_table, snapshot


def table(
    policy: str = "fastserve", prefill_ms: float = 0, per_token: float = 1.0, **fields: int
) -> SyntheticTable:
    """A decode step takes 8 ms and 1 ms more for each further row; a prompt 1 ms a token."""
    steps = [8.0 + b for b in range(40)]
    return SyntheticTable(policy, latency_from_table(steps, prefill_ms, per_token), **fields)


def levels(t: SyntheticTable) -> dict[int, list[int]]:
    return {q["level"]: q["slots"] for q in snapshot(t.policy)["queues"]}


@pytest.mark.parametrize(
    ("prompt_len", "level"),
    # Quanta 10, 20, 40, 80, ... ms; a prompt takes 1 ms a token.
    [(1, 0), (10, 0), (11, 1), (20, 1), (21, 2), (40, 2), (41, 3), (1000, 7)],
)
def test_skip_join(prompt_len: int, level: int) -> None:
    t = table()
    t.add(prompt_len=prompt_len)
    assert levels(t) == {level: [0]}


def test_demotion() -> None:
    # Prefill 4 ms in queue 0; a decode takes 8 ms: 12 > 10. Queue 1: 8, 16, 24 > 20.
    # Queue 2: 5 * 8 = 40 is not above 40, the sixth is.
    t = table()
    t.add(prompt_len=4)
    seen = []
    for _ in range(12):
        t.step()
        seen.append(next(iter(levels(t))))
    assert seen == [0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3]


def test_the_highest_queue_is_served_first() -> None:
    t = table("fastserve:max_batch=1")
    long = t.add(prompt_len=30)  # queue 2
    short = t.add(prompt_len=4, output_len=3)  # queue 0
    assert t.step().prefill == ((short, 4),)
    assert t.step().decode == (short,)  # then in queue 1
    assert t.step().decode == (short,)
    assert t.ended == {1: "length"}
    assert t.step().prefill == ((long, 30),)


def test_demoted_tasks_come_to_the_front_and_keep_their_order() -> None:
    t = table("fastserve:max_batch=2")
    resident = t.add(prompt_len=15)  # queue 1
    a, b = t.add(prompt_len=5), t.add(prompt_len=5)  # queue 0; their prefill takes 10 ms together
    assert t.step().prefill == ((a, 5), (b, 5))
    assert levels(t) == {0: [a, b], 1: [resident]}  # 10 ms is not above the quantum
    t.step()  # 9 ms for two rows
    assert levels(t) == {1: [a, b, resident]}


def test_prompt_tokens_are_capped() -> None:
    t = table("fastserve:max_prompt_tokens=20")
    for _ in range(4):
        t.add(prompt_len=8)
    assert t.step().prefill == ((0, 8), (1, 8))  # 16 ms: a third would make 24 tokens
    # The two are in queue 1 now, behind the other prompts, and decode in the same step.
    plan = t.step()
    assert plan.prefill == ((2, 8), (3, 8)) and plan.decode == (0, 1)


def test_rows_are_capped() -> None:
    t = table("fastserve:max_batch=3")
    for _ in range(4):
        t.add(prompt_len=2)
    assert t.step().prefill == ((0, 2), (1, 2), (2, 2))
    assert t.step().decode == (0, 1, 2)  # 6 + 10 ms > 10 ms: to queue 1
    assert t.step().prefill == ((3, 2),)


def test_a_prompt_beyond_the_cap_is_cut() -> None:
    t = table("fastserve:max_prompt_tokens=20")
    t.add(prompt_len=50)
    assert [t.step().prefill for _ in range(3)] == [((0, 20),), ((0, 20),), ((0, 10),)]
    t = table("fastserve:max_prompt_tokens=20")
    t.add(prompt_len=50, prefill_divisible=False)
    assert t.step().prefill == ((0, 50),)


def test_starving_tasks_come_to_the_front() -> None:
    # Every 10 steps, who has not run for 50 ms. A stream of short tasks keeps queue 0 busy.
    t = table("fastserve:max_batch=1,starvation_steps=10,starvation_ms=50")
    starved = t.add(prompt_len=100)
    t.add(prompt_len=6, output_len=1)
    for _ in range(10):
        waiting = t.add(prompt_len=6, output_len=1)
        assert t.step().prefill[0][0] != starved
    assert t.now == pytest.approx(0.060)
    assert levels(t) == {0: [starved, waiting]}
    assert t.step().prefill == ((starved, 100),)


def test_no_promotion_before_its_time() -> None:
    t = table("fastserve:max_batch=1,starvation_steps=10,starvation_ms=70")
    starved = t.add(prompt_len=100)
    for _ in range(10):
        t.add(prompt_len=6, output_len=1)
        t.step()
    assert levels(t) == {4: [starved]}


def test_blocks_are_kept_free_by_swapping_the_tail_out() -> None:
    # 12 blocks, 2 to be kept free (max_batch). Two tasks of 4 blocks run at first.
    t = table("fastserve:max_batch=2", total_blocks=12, total_host_blocks=12)
    first, second = t.add(prompt_len=60, max_tokens=50), t.add(prompt_len=60, max_tokens=50)
    assert t.step().prefill == ((first, 60), (second, 60))
    # A short newcomer comes before them (they are in queue 3 and below). It needs 3 blocks and 2
    # spare ones; 4 are free: the task at the tail goes to the host.
    short = t.add(prompt_len=40, max_tokens=50)
    plan = t.step()
    assert plan.prefill == ((short, 40),)
    assert plan.kv == (("swap_out", second),)
    assert plan.decode == (first,)


@pytest.mark.parametrize(("prompt_len", "joins"), [(32, True), (33, False)])
def test_newcomers_leave_blocks_to_grow(prompt_len: int, joins: bool) -> None:
    # 4 of 8 blocks are free and 2 are to stay so: a prompt may take 2, 32 tokens.
    t = table("fastserve:max_batch=2", total_blocks=8, total_host_blocks=0)
    t.add(prompt_len=60, max_tokens=50)
    t.step()
    t.add(prompt_len=prompt_len, max_tokens=50)
    assert bool(t.step().prefill) == joins


def test_swapped_tasks_come_back_from_the_top_while_room() -> None:
    t = table("fastserve:max_batch=2", total_blocks=12, total_host_blocks=12)
    first, second = t.add(prompt_len=60, max_tokens=50), t.add(prompt_len=60, max_tokens=50)
    t.step()
    t.add(prompt_len=40, max_tokens=50, output_len=2)
    t.step()
    assert t.tasks[second].kv == "host"
    t.step()  # the short one ends
    assert t.ended == {2: "length"}
    plan = t.step()
    assert plan.kv == (("swap_in", second),)
    assert set(plan.decode) == {first, second}


def test_swap_in_needs_no_row() -> None:
    # With one row in a step a swapped task comes back to the device before it is its turn.
    t = table("fastserve:max_batch=1", total_blocks=9, total_host_blocks=9)
    first = t.add(prompt_len=60, max_tokens=50)  # 4 blocks
    t.step()
    second = t.add(prompt_len=20, max_tokens=50, output_len=100)
    t.add(prompt_len=40, max_tokens=50, output_len=1)  # 3 blocks and 1 spare
    kinds = []
    while 2 not in t.ended:
        kinds += t.step().kv
    assert kinds == [("swap_out", first)]
    plan = t.step()
    assert plan.kv == (("swap_in", first),) and plan.decode == (second,)


def test_no_new_prompts_while_the_host_is_nearly_full() -> None:
    # The host has 20 blocks and 1 free: below 10 %. Nobody new starts, the present ones go on.
    t = table(total_blocks=100, total_host_blocks=20)
    ready = t.add(prompt_len=10)
    t.step()
    newcomer = t.add(prompt_len=5)
    t.view_fields["free_host_blocks"] = 1
    assert t.propose().decode == (ready,) and not t.propose().prefill
    t.view_fields["free_host_blocks"] = 2  # 10 %
    assert t.propose().prefill == ((newcomer, 5),)


def test_a_task_refused_kv_closes_the_door_behind_it() -> None:
    # No host, all in queue 0. The first holds 4 of 8 blocks; the second needs 5; the third, behind
    # it, needs 1 and 2 spare ones, but must not take the blocks for which the second waits.
    t = table("fastserve:max_batch=2,quantum_ms=10000", total_blocks=8, total_host_blocks=0)
    first = t.add(prompt_len=60, max_tokens=4)
    t.step()
    second, third = t.add(prompt_len=70, max_tokens=10), t.add(prompt_len=10, max_tokens=6)
    while 0 not in t.ended:
        plan = t.step()
        assert plan.decode == (first,) and not plan.prefill
    assert t.step().prefill == ((second, 70), (third, 10))


def test_progress_when_device_and_host_are_full() -> None:
    # Two tasks fill the device; both need a block to go on and the host has none: the last one is
    # dropped and computed again later.
    t = table("fastserve:max_batch=2", total_blocks=8, total_host_blocks=0)
    t.add(prompt_len=4, max_tokens=124), t.add(prompt_len=4, max_tokens=124)
    dropped = False
    for _ in range(2000):
        if len(t.ended) == 2:
            break
        dropped |= any(kind == "drop" for kind, _ in t.step().kv)
    assert dropped
    assert t.ended == {0: "length", 1: "length"}


def test_impossible_tasks_are_rejected() -> None:
    t = table(max_step_tokens=16)
    t.add(prompt_len=17, prefill_divisible=False)
    t.add(prompt_len=16)
    plan = t.step()
    assert [(slot, reason) for slot, reason, _ in plan.endings] == [(0, "rejected")]
    assert plan.prefill == ((1, 16),)
    t.run()
    assert t.ended == {0: "rejected", 1: "length"}
