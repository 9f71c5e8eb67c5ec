"""A published latency table and short ways to make and look at SLICE's tasks."""

from __future__ import annotations

from slicellm.policies import SyntheticTable, latency_from_table, snapshot

# l(1) .. l(15) of the published RTX 4060 Ti table, in ms.
L4060 = [14, 27, 38, 50, 60, 72, 83, 125, 126, 123, 124, 125, 126, 123, 124]


def table(policy: str = "slice", steps: list[float] | None = None, **fields: int) -> SyntheticTable:
    return SyntheticTable(policy, latency_from_table(steps or L4060), **fields)


def add(
    t: SyntheticTable, tpot: float | None = None, utility: float = 1.0, **fields: object
) -> int:
    values = {"prompt_len": 10, "max_tokens": 1000, **fields}
    return t.add(tpot_ms=tpot, utility=utility, **values)


def state_of(t: SyntheticTable) -> dict:
    t.propose()
    return snapshot(t.policy)


def prefill_all(t: SyntheticTable) -> None:
    """Runs column 0, in which every selected task is prefilled."""
    assert [slot for slot, _ in t.step().prefill]
