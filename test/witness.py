"""A policy that holds another one to its contract while it runs."""

from __future__ import annotations

from slicellm.policies import Policy, StepPlan, View, make_policy


class Witness(Policy):
    """Passes everything on to two policies of one kind, asks one of them for each plan twice, and
    looks at what the policies are shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.policies = [make_policy(text), make_policy(text)]
        self.live: set[int] = set()  # ids

    def on(self, kind: str, slot: int, view: View) -> None:
        for policy in self.policies:
            policy.on(kind, slot, view)
        task = view.task(slot).id
        if kind == "arrive":
            assert task not in self.live
            self.live.add(task)
        else:
            self.live.remove(task)  # once
            assert view.task(slot).kv == "none"
        if not self.live:
            assert view.free_blocks == view.total_blocks
            assert view.free_host_blocks == view.total_host_blocks

    def plan(self, view: View) -> StepPlan:
        assert {view.task(slot).id for slot in view.live} == self.live
        plans = [policy.plan(view) for policy in [*self.policies, self.policies[0]]]
        assert plans[0] == plans[1] == plans[2]
        return plans[0]

    def commit(self, plan: StepPlan, duration: float, token_slots: list[int], view: View) -> None:
        for policy in self.policies:
            policy.commit(plan, duration, token_slots, view)
