"""Every policy on random tasks: legal plans, all tasks end, idempotent, replayable."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policies_under_test import POLICIES
from recorder import Recorder, replay

from slicellm.policies import SyntheticTable, latency_from_table, make_policy

targets = st.one_of(st.none(), st.sampled_from([15.0, 50.0, 100.0, 120.0, 250.0, 3000.0]))
tasks = st.fixed_dictionaries(
    {
        "prompt_len": st.integers(1, 60),
        "max_tokens": st.integers(1, 40),
        "output_len": st.integers(1, 40),
        "utility": st.sampled_from([0.0, 1.0, 10.0, 100.0]),
        "tpot_ms": targets,
        "ttft_ms": targets,
        "deadline_ms": targets,
        "class_id": st.integers(0, 2),
    }
)
# What happens, in order: tasks arrive together, a live task is cancelled, or some steps run.
happenings = st.lists(
    st.one_of(
        st.lists(tasks, min_size=1, max_size=4),
        st.integers(0, 7),
        st.integers(1, 12).map(lambda n: ("steps", n)),
    ),
    min_size=1,
    max_size=12,
)
machines = st.fixed_dictionaries(
    {
        "total_blocks": st.integers(7, 40),  # 100 tokens, the most a task can have, are 7 blocks
        "total_host_blocks": st.sampled_from([0, 3, 10, 50]),
        "max_rows": st.integers(1, 8),
        "max_step_tokens": st.integers(8, 128),
    }
)


def check_ledger(table: SyntheticTable) -> None:
    """What the table holds fits, counted apart from the native check."""
    device = sum(t.blocks for t in table.tasks if t.kv == "device")
    host = sum(t.blocks for t in table.tasks if t.kv == "host")
    assert device <= table.view_fields["total_blocks"]
    assert host <= table.view_fields["total_host_blocks"]
    for task in table.tasks:
        assert task.blocks == (0 if task.kv == "none" else math.ceil(task.cached / 16))


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("divisible", [True, False])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(happenings=happenings, machine=machines)
def test_every_task_ends(text: str, divisible: bool, happenings: list, machine: dict) -> None:
    recorder = Recorder(text)
    table = SyntheticTable(recorder, latency_from_table([14, 27, 38, 50]), **machine)
    added = 0
    for happening in happenings:
        if isinstance(happening, list):
            for task in happening:
                output_len = min(task["output_len"], task["max_tokens"])
                table.add(**{**task, "output_len": output_len}, prefill_divisible=divisible)
                added += 1
        elif isinstance(happening, int):
            live = [slot for slot, task in enumerate(table.tasks) if task.id >= 0]
            if live:
                table.cancel(live[happening % len(live)])
        else:
            for _ in range(happening[1]):
                if any(task.id >= 0 for task in table.tasks):
                    table.step()
                    check_ledger(table)
    table.run(max_steps=5000)
    assert sorted(table.ended) == list(range(added))
    refusable = not divisible  # a whole prompt may be longer than a step
    assert refusable or "rejected" not in table.ended.values()
    replay(text, recorder.record)


@pytest.mark.parametrize("tokens", [(16, 24), (21, 24)])
def test_boosted_classes_do_not_drop_each_other_s_prompts_for_ever(tokens: tuple[int, int]) -> None:
    """Two tasks of two classes, whose prompts take longer than boost_after and do not both fit;
    then too when what has been produced is computed again, up to a last chunk of one token."""
    machine = {"total_blocks": 7, "total_host_blocks": 0, "max_rows": 1, "max_step_tokens": 10}
    policy = make_policy("slice:boost_after_ms=100,age_after_ms=300")
    table = SyntheticTable(policy, latency_from_table([14, 27, 38, 50]), **machine)
    for class_id, prompt in ((0, 51), (1, 28)):
        table.add(
            prompt_len=prompt,
            max_tokens=tokens[class_id],
            output_len=tokens[class_id],
            utility=1.0 - class_id,
            class_id=class_id,
            prefill_divisible=True,
        )
    table.run(max_steps=5000)
    assert len(table.ended) == 2


BOUNDED_WAIT = [
    "orca:max_batch=4",
    "fastserve:max_batch=3,starvation_steps=20,starvation_ms=200",
    "static:batch=4",
    "ils:max_parallel=3",
    "scls:slice=8,gamma_ms=100",
    "sarathi",
    "vllm",
    "slai:variant=fcfs_fixed",
    "rad-like",
    "priority-pause:max_batch=3",
]


@pytest.mark.parametrize("text", BOUNDED_WAIT)
def test_nobody_starves_under_a_stream_of_short_tasks(text: str) -> None:
    """A long task, short of memory too, ends while shorter ones keep arriving."""
    table = SyntheticTable(
        text, latency_from_table([14, 27, 38, 50]), total_blocks=24, total_host_blocks=8
    )
    table.add(prompt_len=200, max_tokens=100, class_id=1)
    for _ in range(3000):
        while sum(task.id >= 0 for task in table.tasks) < 8:
            table.add(prompt_len=10, max_tokens=12)
        table.step()
        check_ledger(table)
        if 0 in table.ended:
            break
    assert table.ended[0] == "length"
