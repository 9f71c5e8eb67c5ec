"""Every policy through the simulator on random workloads: what must hold whatever is decided.

The engine checks each plan (no row twice, budgets and KV kept) and ends with an error when one is
broken, so that a run that returns has kept them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policies_under_test import POLICIES
from witness import Witness

from slicellm import _core
from slicellm.policies import Policy, latency_from_table

STOP, LENGTH, REJECTED = 1, 2, 5  # numbers of FinishReason
CLASSES = [  # name, ttft_ms, tpot_ms, deadline_ms, utility
    ("robot", None, None, 400.0, 100.0),
    ("voice", 300.0, 60.0, None, 10.0),
    ("chat", 2000.0, 250.0, None, 1.0),
    ("batch", None, None, None, 1.0),
]
BELIEF = latency_from_table([14, 27, 38, 50])
TRUTH = latency_from_table([13, 26, 40, 49, 60], prefill_ms=15.0)

tasks = st.tuples(
    st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.3]),  # seconds after the one before
    st.integers(1, 60),  # prompt
    st.integers(1, 30),  # true output length
    st.integers(1, 30),  # cap
    st.integers(0, len(CLASSES) - 1),
)
workloads = st.lists(tasks, min_size=1, max_size=24)
machines = st.fixed_dictionaries(
    {
        # 89 tokens, the most that a task can need, are 6 blocks.
        "blocks": st.one_of(st.integers(6, 12), st.integers(13, 60)),
        "host_blocks": st.sampled_from([0, 4, 20]),
        "max_rows": st.integers(1, 8),
        "max_step_tokens": st.integers(8, 128),
        "prefill_divisible": st.booleans(),
        "jitter": st.sampled_from([0.0, 0.2]),
        "loop": st.sampled_from(["plain", "overlap"]),
    }
)


def simulate(policy: str | Policy, workload: list, machine: dict[str, Any]) -> dict[str, Any]:
    gaps, prompts, outputs, caps, classes = zip(*workload, strict=True)
    columns = {
        "arrival": np.cumsum(gaps),
        "prompt_tokens": prompts,
        "output_tokens": outputs,
        "max_tokens": caps,
        "class_id": classes,
    }
    return _core.simulate(
        policy, TRUTH, BELIEF, CLASSES, columns, record_events=True, seed=3, **machine
    )


@pytest.mark.parametrize("text", POLICIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workload=workloads, machine=machines)
def test_invariants(text: str, workload: list, machine: dict[str, Any]) -> None:
    run = simulate(text, workload, machine)
    endings = Counter(t for _, t, kind, _ in run["events"] if kind in ("finish", "reject"))
    assert endings == Counter(range(1, len(workload) + 1))
    for i, (_, prompt, output, cap, _) in enumerate(workload):
        reason, tokens = run["reason"][i], run["tokens"][i]
        # A prompt that must not be cut, and cannot be computed again in one step with its output.
        cannot_run = prompt + cap - 1 > machine["max_step_tokens"]
        if reason == REJECTED:
            assert not machine["prefill_divisible"] and cannot_run
        else:
            assert reason == (STOP if output <= cap else LENGTH)
            assert tokens == min(output, cap)

    again = simulate(Witness(text), workload, machine)
    for column in ("arrival", "first_token", "last_token", "finish", "tokens", "reason"):
        np.testing.assert_array_equal(again[column], run[column])
    assert again["events"] == run["events"]
    assert again["latency_json"] == run["latency_json"]
    for column in ("start", "duration", "predicted", "decode_rows", "prefill_tokens"):
        np.testing.assert_array_equal(again["steps"][column], run["steps"][column])
