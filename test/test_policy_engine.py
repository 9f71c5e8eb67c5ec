"""Policies inside the engine: the registry's, an object of make_policy, and one in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from slicellm import _core
from slicellm.policies import Policy, StepPlan, View, latency_from_table, list_policies, make_policy

LATENCY = latency_from_table([2.0, 3.0, 4.0])


@pytest.fixture(scope="module")
def model(tiny_llama: Path, device_name: str) -> _core.Model:
    return _core.Model.load(str(tiny_llama), device=device_name, threads=1)


def task(**fields: object) -> _core.TaskSpec:
    return _core.TaskSpec([3, 4, 5, 6], **{"max_tokens": 8, "ignore_eos": True, **fields})


class RoundRobin(Policy):
    """One row a step, the live tasks in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.seen: list[str] = []

    def on(self, kind: str, slot: int, view: View) -> None:
        self.seen.append(f"{kind} {view.task(slot).id}")

    def plan(self, view: View) -> StepPlan:
        slot = view.live[self.turn % len(view.live)]
        now = view.task(slot)
        if now.ready_to_decode():
            return StepPlan(decode=[slot])
        return StepPlan(prefill=[(slot, now.pending())])

    def commit(self, plan: StepPlan, duration: float, token_slots: list[int], view: View) -> None:
        assert duration > 0 and len(token_slots) == 1
        self.turn += 1

    def inspect(self) -> str:
        return f'{{"turn": {self.turn}}}'


def test_a_policy_in_python_serves(model: _core.Model) -> None:
    policy = RoundRobin()
    engine = _core.Engine(model, policy, LATENCY)
    try:
        handles = engine.submit_all([task() for _ in range(3)])
        results = [handle.wait(30.0) for handle in handles]
        engine.wait_idle()
        assert engine.inspect_policy() == '{"turn": 24}'
        engine.check_integrity()
    finally:
        engine.close()
    assert [len(r["token_ids"]) for r in results] == [8, 8, 8]
    assert len({tuple(r["token_ids"]) for r in results}) == 1  # same prompt, greedy
    assert sorted(policy.seen[:3]) == [f"arrive {r['id']}" for r in results]
    assert sorted(policy.seen[3:]) == [f"finish {r['id']}" for r in results]


def failure(model: _core.Model, policy: Policy) -> str:
    engine = _core.Engine(model, policy, LATENCY)
    try:
        result = engine.submit(task()).wait(30.0)
        assert result["reason"] == "error"
        with pytest.raises(_core.StateError):
            engine.submit(task())
    finally:
        engine.close()
    return str(result["error"])


def test_what_a_policy_raises_ends_the_engine_with_its_name(model: _core.Model) -> None:
    class Fails(RoundRobin):
        def plan(self, view: View) -> StepPlan:
            raise IndexError("nothing left")

    assert "policy Fails: got IndexError: nothing left, expected plan() not to raise" in failure(
        model, Fails()
    )


def test_a_broken_plan_ends_the_engine_with_the_rule(model: _core.Model) -> None:
    class TooFast(RoundRobin):
        def plan(self, view: View) -> StepPlan:
            return StepPlan(decode=[view.live[0]])

    assert "plan.decode[0]: got slot 0 with 4 tokens pending" in failure(model, TooFast())

    class Sleeps(RoundRobin):
        def plan(self, view: View) -> StepPlan:
            return StepPlan()

    assert "plan is empty with wake_at: got inf" in failure(model, Sleeps())


def test_padding_is_really_computed_by_the_model(model: _core.Model) -> None:
    longest = model.spec["max_positions"]

    class Pads(RoundRobin):
        def plan(self, view: View) -> StepPlan:
            plan = super().plan(view)
            plan.padding_prompts = [7]
            plan.padding_rows = [longest - 1, self.context]
            return plan

    policy = Pads()
    policy.context = 20
    engine = _core.Engine(model, policy, LATENCY)
    try:
        result = engine.submit(task()).wait(30.0)
        engine.wait_idle()
        engine.check_integrity()
        steps = engine.drain_steps()
        free = engine.stats()["free_blocks"]
    finally:
        engine.close()
    assert free == engine.stats()["total_blocks"]
    assert steps["padding_rows"].tolist() == [2] * 8
    assert steps["padding_tokens"].tolist() == [7] * 8
    alone = _core.Engine(model, "orca", LATENCY)
    try:
        assert alone.submit(task()).wait(30.0)["token_ids"] == result["token_ids"]
    finally:
        alone.close()
    # The model refuses a padding row beyond its longest context, as it does any other.
    beyond = Pads()
    beyond.context = longest
    assert f"at most {longest} tokens, the model's longest context" in failure(model, beyond)


def test_an_engine_refuses_a_policy_that_is_told_true_lengths(model: _core.Model) -> None:
    with pytest.raises(
        _core.InvalidArgument,
        match="policy: got pace-told, expected one that needs no true output lengths",
    ):
        _core.Engine(model, "pace-told", LATENCY)


def test_a_policy_may_wait_and_refuse(model: _core.Model) -> None:
    class Waits(RoundRobin):
        def plan(self, view: View) -> StepPlan:
            if view.now < view.task(view.live[0]).arrival + 0.05:
                return StepPlan(wake_at=view.now + 0.01)
            refused = [s for s in view.live if view.task(s).max_tokens > 8]
            if refused:
                return StepPlan(endings=[(s, "rejected", "too long for me") for s in refused])
            return super().plan(view)

        def commit(
            self, plan: StepPlan, duration: float, token_slots: list[int], view: View
        ) -> None:
            self.turn += plan.runs()

    engine = _core.Engine(model, Waits(), LATENCY)
    try:
        handles = engine.submit_all([task(), task(max_tokens=9)])
        done, refused = (handle.wait(30.0) for handle in handles)
    finally:
        engine.close()
    assert done["reason"] == "length" and done["token_times"][0] >= done["arrival"] + 0.05
    assert (refused["reason"], refused["error"]) == ("rejected", "too long for me")


SERVED = [
    "slice:mask_layout=spread",
    "scls:gamma_ms=20",
    *(info["name"] for info in list_policies() if info["name"] not in ("scls", "pace-told")),
]


@pytest.mark.parametrize("text", SERVED)
def test_native_policies_serve(model: _core.Model, text: str) -> None:
    policy = make_policy(text)
    engine = _core.Engine(model, policy, LATENCY, kv_cache_bytes=6 * model.kv_block_bytes)
    try:
        with pytest.raises(_core.StateError, match="policy: got one that an engine has taken"):
            policy.inspect()
        with pytest.raises(_core.StateError, match="policy: got one that an engine has taken"):
            _core.Engine(model, policy, LATENCY)
        tasks = [task(max_tokens=40, tpot_ms=50.0 + i) for i in range(6)]  # 3 blocks each: 18 > 6
        results = [handle.wait(60.0) for handle in engine.submit_all(tasks)]
        engine.wait_idle()
        engine.check_integrity()
    finally:
        engine.close()
    assert [r["reason"] for r in results] == ["length"] * 6
    assert len({tuple(r["token_ids"]) for r in results}) == 1


def test_an_engine_needs_a_policy(model: _core.Model) -> None:
    with pytest.raises(
        _core.InvalidArgument, match="expected a policy's name or a slicellm.Policy"
    ):
        _core.Engine(model, 3, LATENCY)  # type: ignore[arg-type]
    with pytest.raises(_core.InvalidArgument, match='policy: got "fifo", expected one of slice'):
        _core.Engine(model, "fifo", LATENCY)
