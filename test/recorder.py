"""A policy that keeps everything another one is shown and proposes, and the replay of it."""

from __future__ import annotations

from typing import Any

from slicellm.policies import Policy, StepPlan, View, make_policy

Record = list[tuple[str, tuple[Any, ...], StepPlan | None]]


class Recorder(Policy):
    """Passes everything on, keeps copies of it, and asks for each plan twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inner = make_policy(text)
        self.record: Record = []  # of each call: method, arguments, the plan if it gives one

    def on(self, kind: str, slot: int, view: View) -> None:
        self.record.append(("on", (kind, slot, view.copy()), None))
        self.inner.on(kind, slot, view)

    def plan(self, view: View) -> StepPlan:
        plan = self.inner.plan(view)
        assert self.inner.plan(view) == plan
        self.record.append(("plan", (view.copy(),), plan))
        return plan

    def commit(self, plan: StepPlan, duration: float, token_slots: list[int], view: View) -> None:
        self.record.append(("commit", (plan, duration, token_slots, view.copy()), None))
        self.inner.commit(plan, duration, token_slots, view)


def replay(text: str, record: Record) -> None:
    """The same events and views give the same plans, though no plan is asked for twice."""
    policy = make_policy(text)
    for name, arguments, plan in record:
        result = getattr(policy, name)(*arguments)
        assert result == plan
