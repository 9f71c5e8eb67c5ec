"""Scheduling policies on synthetic tasks: plan, inspect and print without a model.

>>> from slicellm.policies import SyntheticTable, latency_from_table, snapshot
>>> table = SyntheticTable("slice", latency_from_table([14, 27, 38, 50]))
>>> robot = table.add(utility=100, deadline_ms=1500, max_tokens=30, prompt_len=20)
>>> voice = table.add(utility=1, tpot_ms=125, max_tokens=300, prompt_len=40)
>>> table.propose()
StepPlan(prefill=((0, 20), (1, 40)))
>>> state = snapshot(table.policy)
>>> state["rates"]  # 1500 ms / 30 tokens is a token each 50 ms; a cycle is 1,000 ms
[20, 8]
>>> round(state["estimate_ms"])  # (20 - 8) * 14 + 8 * 27
384
>>> print(MaskMatrix(state["rates"]))
20  11111111111111111111
 8  11111111............
>>> for _ in range(9):
...     plan = table.step()
>>> plan  # the ninth column
StepPlan(decode=(0,))

A policy of your own derives from `Policy` and defines `plan(view)`; `check_plan(plan, view)` says
what is wrong with a plan. `Engine(model, policy=MyPolicy())` serves with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slicellm._core import (
    LatencyModel,
    MaskMatrix,
    Policy,
    StepPlan,
    TaskView,
    View,
    check_plan,
    cycle_estimate_ms,
    list_policies,
    make_policy,
)

__all__ = [
    "LatencyModel",
    "MaskMatrix",
    "Policy",
    "StepPlan",
    "SyntheticTable",
    "TaskView",
    "View",
    "check_plan",
    "cycle_estimate_ms",
    "latency_from_table",
    "list_policies",
    "make_policy",
    "snapshot",
]


def latency_from_table(
    milliseconds: Sequence[float], prefill_ms: float = 20.0, prefill_ms_per_token: float = 0.4
) -> LatencyModel:
    """A latency model whose decode step of b rows takes `milliseconds[b - 1]`."""
    return LatencyModel.from_decode_table(milliseconds, prefill_ms, prefill_ms_per_token)


def snapshot(policy: Policy) -> dict[str, Any]:
    """`policy.inspect()` as a dictionary."""
    result = json.loads(policy.inspect())
    assert isinstance(result, dict)
    return result


class SyntheticTable:
    """Tasks with a KV ledger, and a policy that schedules them: an engine without a model.

    Time advances by what the latency model predicts for each step. A task ends after
    `output_len` tokens, which the policy cannot see. `view_fields` are those of
    `View`: `total_blocks`, `max_rows`, `max_step_tokens`, ...
    """

    def __init__(self, policy: str | Policy, latency: LatencyModel, **view_fields: int) -> None:
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.latency = latency
        self.now = 0.0
        self.tasks: list[TaskView] = []  # by slot; id -1: empty
        self.ended: dict[int, str] = {}  # id -> "length", "cancelled", "rejected" or "deadline"
        self.view_fields = view_fields
        self._output_len: dict[int, int] = {}  # by id
        self._next_id = 0

    def view(self) -> View:
        """The table as the policy sees it now."""
        return View(self.tasks, self.latency, now=self.now, **self.view_fields)

    def add(self, output_len: int | None = None, **fields: Any) -> int:
        """A task arrives now, with the fields of `TaskView`; returns its slot."""
        task = TaskView(**{"arrival": self.now, "prompt_len": 16, "max_tokens": 16, **fields})
        task.id = self._next_id
        self._next_id += 1
        self._output_len[task.id] = task.max_tokens if output_len is None else output_len
        slot = next((i for i, t in enumerate(self.tasks) if t.id < 0), len(self.tasks))
        self.tasks[slot : slot + 1] = [task]
        self.policy.on("arrive", slot, self.view())
        return slot

    def cancel(self, slot: int) -> None:
        """The task in `slot` leaves."""
        self._end(slot, "cancelled")

    def propose(self) -> StepPlan:
        """The policy's next plan, checked; nothing changes."""
        view = self.view()
        plan = self.policy.plan(view)
        check_plan(plan, view)
        return plan

    def step(self) -> StepPlan:
        """Runs the next plan and returns it. An empty table gives an empty plan."""
        plan = self.propose()
        duration = self.view().predict_ms(plan)[0] / 1e3 if plan.runs() else 0.0
        for kind, slot in plan.kv:
            self._move(kind, slot)
        for slot, _, _ in plan.endings:
            self._move("drop", slot)
        if not plan.runs() and not plan.kv and plan.wake_at < float("inf"):
            self.now = max(self.now, plan.wake_at)
        self.now += duration
        tokens = []
        for slot, count in [*plan.prefill, *((slot, 1) for slot in plan.decode)]:
            task = self.tasks[slot]
            task.kv = "device"
            task.cached += count
            task.blocks = max(task.blocks, self.blocks_for(task.cached))
            if task.pending() == 0:
                tokens.append(slot)
        for slot in tokens:
            task = self.tasks[slot]
            if task.produced == 0:
                task.first_token_time = self.now
            task.last_token_time = self.now
            task.produced += 1
        self.policy.commit(plan, duration, tokens, self.view())
        for slot, reason, _ in plan.endings:
            self._end(slot, reason)
        for slot in tokens:
            if self.tasks[slot].produced >= self._output_len[self.tasks[slot].id]:
                self._end(slot, "length")
        return plan

    def run(self, max_steps: int = 100_000) -> int:
        """Steps until no task is left; returns the number of steps."""
        for steps in range(max_steps):
            if all(task.id < 0 for task in self.tasks):
                return steps
            self.step()
        raise RuntimeError(f"tasks are left after {max_steps} steps")

    def blocks_for(self, tokens: int) -> int:
        """KV blocks for `tokens` tokens."""
        block = self.view_fields.get("block_tokens", 16)
        return (tokens + block - 1) // block

    def _move(self, kind: str, slot: int) -> None:
        task = self.tasks[slot]
        if kind == "drop":
            task.kv, task.cached, task.blocks = "none", 0, 0
        else:
            task.kv = "host" if kind == "swap_out" else "device"

    def _end(self, slot: int, reason: str) -> None:
        self.ended[self.tasks[slot].id] = reason
        self._move("drop", slot)
        self.tasks[slot].ended = reason
        self.policy.on("finish", slot, self.view())
        self.tasks[slot] = TaskView()
