"""Policies written in Python, and native ones driven from Python, in and out of order."""

from __future__ import annotations

import json

import pytest

from slicellm import _core
from slicellm.policies import (
    Policy,
    StepPlan,
    SyntheticTable,
    TaskView,
    View,
    latency_from_table,
    make_policy,
)

LATENCY = latency_from_table([14, 27, 38])


class ShortestFirst(Policy):
    """One task at a time, the one with the fewest tokens left to produce."""

    def __init__(self) -> None:
        super().__init__()
        self.live: set[int] = set()
        self.committed: list[tuple[float, list[int]]] = []

    def on(self, kind: str, slot: int, view: View) -> None:
        (self.live.add if kind == "arrive" else self.live.discard)(slot)

    def plan(self, view: View) -> StepPlan:
        if not self.live:
            return StepPlan()
        slot = min(self.live, key=lambda s: (view.task(s).max_tokens - view.task(s).produced, s))
        if view.task(slot).ready_to_decode():
            return StepPlan(decode=[slot])
        return StepPlan(prefill=[(slot, view.task(slot).pending())])

    def commit(self, plan: StepPlan, duration: float, token_slots: list[int], view: View) -> None:
        self.committed.append((duration, token_slots))

    def inspect(self) -> str:
        return json.dumps({"live": sorted(self.live)})


def test_a_python_policy_schedules() -> None:
    policy = ShortestFirst()
    table = SyntheticTable(policy, LATENCY)
    table.add(max_tokens=9), table.add(max_tokens=3), table.add(max_tokens=5)
    assert table.run() == 17
    assert list(table.ended) == [1, 2, 0]
    assert policy.name == "ShortestFirst"
    assert policy.committed[0] == (pytest.approx(0.0264), [1])


def view(tasks: list[TaskView] | None = None, **fields: float) -> View:
    if tasks is None:
        tasks = [TaskView(id=5, prompt_len=20, max_tokens=30)]
    return View(tasks, LATENCY, **fields)


def test_a_view_shows_what_it_was_made_of() -> None:
    v = view(
        [
            TaskView(id=1, prompt_len=20, max_tokens=3, arrival=2.0, tpot_ms=120, class_id=4),
            TaskView(),
            TaskView(id=2, prompt_len=20, max_tokens=3, arrival=1.0, cached=17, kv="device"),
            TaskView(id=0, prompt_len=20, max_tokens=3, arrival=1.0, cached=16, kv="host"),
        ],
        now=7.0,
        total_blocks=10,
        total_host_blocks=5,
    )
    assert v.live == (3, 2, 0)  # by arrival, then id
    assert (v.free_blocks, v.free_host_blocks) == (8, 4)  # 17 tokens are two blocks
    assert v.now == 7.0 and v.blocks_for(33) == 3
    assert v.task(0).tpot_ms == pytest.approx(120) and v.task(0).ttft_ms is None
    assert v.tasks[2].pending() == 3 and v.tasks[1].id == -1
    assert v.decode_step_ms(2) == 27
    v.task(0).produced = 3  # a copy
    assert v.task(0).produced == 0


def test_native_policies_refuse_calls_out_of_order() -> None:
    v = view()
    policy = make_policy("orca")
    with pytest.raises(_core.StateError, match="view: got 1 live tasks, expected 0"):
        policy.plan(v)
    with pytest.raises(
        _core.StateError, match="finish: got task 5 in slot 0, expected a task that"
    ):
        policy.on("finish", 0, v)
    policy.on("arrive", 0, v)
    with pytest.raises(
        _core.StateError, match="arrive: got task 5 in slot 0, expected a task in a"
    ):
        policy.on("arrive", 0, v)
    for slot in (-1, 1):
        with pytest.raises(
            _core.StateError, match=f"slot: got {slot}, expected a slot of the view"
        ):
            policy.on("arrive", slot, v)
    with pytest.raises(_core.StateError, match="view: got slot 0 without task 5"):
        policy.plan(view([]))
    plan = policy.plan(v)
    with pytest.raises(_core.StateError, match="commit: got a plan that was not the last proposed"):
        policy.commit(StepPlan(decode=[0]), 0.1, [], v)
    with pytest.raises(_core.StateError, match="token_slots: got 3, expected slots of live tasks"):
        policy.commit(plan, 0.1, [3], v)
    with pytest.raises(ValueError, match="duration: got nan, expected seconds of at least 0"):
        policy.commit(plan, float("nan"), [0], v)
    with pytest.raises(ValueError, match='kind: got "leave", expected arrive or finish'):
        policy.on("leave", 0, v)
    policy.commit(plan, 0.1, [0], v)
    with pytest.raises(_core.StateError, match="commit: got a plan that was not the last proposed"):
        policy.commit(plan, 0.1, [0], v)


# The engine calls a Python policy through the native base class, as `Policy.plan(policy, view)`.


class Broken(Policy):
    name = "broken on purpose"

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.kept: View | None = None

    def plan(self, view: View) -> StepPlan:
        self.kept = view
        if self.what == "raises":
            raise ValueError("no idea\nwith a second line")
        if self.what == "wrong type":
            return [0]  # type: ignore[return-value]
        return StepPlan(prefill=[(0, view.task(0).pending())])

    def on(self, kind: str, slot: int, view: View) -> None:
        raise KeyError(kind)

    def commit(self, plan: StepPlan, duration: float, token_slots: list[int], view: View) -> None:
        raise ZeroDivisionError(f"{plan} {duration} {token_slots}")

    def inspect(self) -> str:
        return 3  # type: ignore[return-value]


def test_the_core_calls_python() -> None:
    assert Policy.plan(Broken(""), view()) == StepPlan(prefill=[(0, 20)])
    policy = ShortestFirst()
    Policy.on(policy, "arrive", 0, view())
    assert Policy.inspect(policy) == '{"live": [0]}'
    plan = Policy.plan(policy, view())
    Policy.commit(policy, plan, 0.5, [0], view())
    assert policy.committed == [(0.5, [0])]


def sentence_of(call: object) -> str:
    with pytest.raises(_core.StateError) as error:
        call()  # type: ignore[operator]
    return str(error.value)


def test_exceptions_become_errors_that_name_the_policy() -> None:
    assert sentence_of(lambda: Policy.plan(Broken("raises"), view())) == (
        "policy broken on purpose: got ValueError: no idea, expected plan() not to raise"
    )
    assert sentence_of(lambda: Policy.plan(Broken("wrong type"), view())) == (
        "policy broken on purpose: got plan() that returned list, expected a StepPlan"
    )
    broken = Broken("")
    assert sentence_of(lambda: Policy.on(broken, "finish", 0, view())) == (
        "policy broken on purpose: got KeyError: 'finish', expected on() not to raise"
    )
    assert sentence_of(lambda: Policy.commit(broken, StepPlan(), 0.25, [0], view())) == (
        "policy broken on purpose: got ZeroDivisionError: StepPlan() 0.25 [0], expected commit()"
        " not to raise"
    )
    assert sentence_of(lambda: Policy.inspect(broken)).endswith("expected JSON as a str")


def test_a_policy_without_plan_says_so() -> None:
    class Empty(Policy):
        pass

    policy = Empty()
    Policy.on(policy, "arrive", 0, view())  # on, commit and inspect may be left out
    assert Policy.inspect(policy) == "{}"
    assert sentence_of(lambda: Policy.plan(policy, view())) == (
        "policy Empty: got no method plan, expected plan(self, view) -> StepPlan"
    )


def test_a_lent_view_expires_with_the_call() -> None:
    for what in ("", "raises"):
        policy = Broken(what)
        try:
            Policy.plan(policy, view())
        except _core.StateError:
            pass
        assert policy.kept is not None
        for use in (lambda v=policy.kept: v.now, lambda v=policy.kept: v.task(0)):
            assert sentence_of(use) == (
                "view: got a use after the call it was lent for, expected views to be used inside"
                " on, plan or commit only"
            )
