"""`slicellm.simulate`: runs worked out by hand, determinism, and metrics from columns."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from machines import table_machine

import slicellm
from slicellm import simulation
from slicellm._core import InvalidArgument
from slicellm.bench.arrivals import Uniform
from slicellm.bench.tasks import Slo, WorkloadTask
from slicellm.bench.workload import load_workload

MACHINE = table_machine([10.0, 15.0], prefill_ms=20.0, prefill_ms_per_token=1.0)


def two_tasks() -> list[WorkloadTask]:
    return [
        WorkloadTask(0.000, 10, 3, 50, "a", 5.0, Slo(deadline_ms=70)),
        WorkloadTask(0.035, 5, 2, 50, "b", 1.0, Slo(ttft_ms=50, tpot_ms=10.001)),
    ]


@pytest.mark.parametrize("event_log", [True, False])
def test_two_tasks_under_orca_by_hand(event_log: bool) -> None:
    """0 -  30 ms  prefill of task 0: 20 + 10
    30 -  40     decode of task 0
    40 -  75     decode of task 0 (10) and prefill of task 1 (20 + 5); task 0 ends
    75 -  85     decode of task 1, which ends"""
    run = slicellm.simulate(two_tasks(), "orca", MACHINE, event_log=event_log)
    np.testing.assert_allclose(run.columns["first_token"], [0.030, 0.075])
    np.testing.assert_allclose(run.columns["last_token"], [0.075, 0.085])
    np.testing.assert_allclose(run.columns["finish"], [0.075, 0.085])
    np.testing.assert_allclose(run.columns["max_gap"], [0.035, 0.010])
    assert run.columns["tokens"].tolist() == [3, 2]
    tasks = run.task_metrics()
    np.testing.assert_allclose(tasks.tpot, [0.0225, 0.010])
    # Task 1 is due at 85 and 95.001 ms: early by 10 and 10.001.
    np.testing.assert_allclose(tasks.max_lateness, [np.nan, -0.010])
    assert tasks.reason.tolist() == ["stop", "stop"]  # at its true length a task ends by itself
    assert tasks.met.tolist() == [False, True]  # 75 ms > 70; TTFT 40 <= 50
    found = run.metrics
    assert found["attainment"] == 0.5
    assert found["utility"] == pytest.approx(1 / 6)
    assert found["makespan_s"] == pytest.approx(0.085)
    assert found["steps"] == 4
    assert found["itl_ms"]["mean"] == pytest.approx((10 + 35 + 10) / 3)
    assert found["itl_ms"]["max"] == pytest.approx(35)
    # The mixed step counts by its tokens: 5 of 6.
    assert found["prefill_share"] == pytest.approx((30 + 35 * 5 / 6) / 85)
    assert (run.log is None) == (run.steps is None) == (not event_log)


def test_closed_loop_starts_a_task_when_one_ends() -> None:
    tasks = [WorkloadTask(0.0, 10, 1, 5) for _ in range(3)]  # 30 ms each, one after the other
    run = slicellm.simulate(tasks, "orca", MACHINE, max_concurrency=1)
    np.testing.assert_allclose(run.columns["arrival"], [0.0, 0.030, 0.060])
    np.testing.assert_allclose(run.columns["finish"], [0.030, 0.060, 0.090])


def without_real_time(values: dict[str, object]) -> str:
    return json.dumps({k: v for k, v in values.items() if k not in simulation.REAL_TIME})


@pytest.mark.parametrize("policy", ["slice:ratio=0.7", "orca", "fastserve"])
def test_same_arguments_same_run_bit_for_bit(policy: str) -> None:
    runs = [slicellm.simulate("edge", policy, num_tasks=200, load=2, seed=s) for s in (5, 5, 6)]
    assert without_real_time(runs[0].metrics) == without_real_time(runs[1].metrics)
    assert runs[0].log == runs[1].log != runs[2].log
    assert runs[0].latency_json == runs[1].latency_json


def test_metrics_from_columns_agree_with_those_from_the_event_log() -> None:
    logged = slicellm.simulate("edge", "slice:ratio=0.7", num_tasks=1500, load=1.2, event_log=True)
    columns = slicellm.simulate(
        "edge", "slice:ratio=0.7", num_tasks=1500, load=1.2, event_log=False
    )
    assert logged.log is not None and columns.log is None
    exact = ("attainment", "utility", "goodput", "makespan_s", "ttft_ms", "tpot_ms", "e2el_ms")
    for key in (*exact, "classes", "finish", "output_tokens", "met", "steps", "smooth"):
        assert columns.metrics[key] == logged.metrics[key], key
    assert columns.metrics["prefill_share"] == pytest.approx(logged.metrics["prefill_share"])
    for key, value in logged.metrics["itl_ms"].items():
        assert columns.metrics["itl_ms"][key] == pytest.approx(value, rel=0.01), key
    assert columns.metrics["task_itl_ms"]["max"] == logged.metrics["task_itl_ms"]["max"]
    a, b = logged.task_metrics(), columns.task_metrics()
    for field in ("arrival", "tokens", "ttft", "tpot", "e2el", "max_itl", "met", "end"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), field)
    assert a.reason.tolist() == b.reason.tolist()


def test_workload_at_a_rate_and_with_other_arrivals() -> None:
    run = slicellm.simulate("edge", "orca", MACHINE, num_tasks=20, rate=4.0)
    assert run.columns["arrival"][-1] == pytest.approx(5.0)  # the last of n at n/rate
    even = slicellm.simulate("edge", "orca", MACHINE, num_tasks=5, arrivals=Uniform(2.0))
    np.testing.assert_allclose(even.columns["arrival"], [0.5, 1.0, 1.5, 2.0, 2.5])
    work = simulation.work_on(load_workload("edge"), MACHINE)
    twice = slicellm.simulate("edge", "orca", MACHINE, num_tasks=10, load=2.0)
    assert twice.columns["arrival"][-1] == pytest.approx(10 / (2 * work.saturation))
    assert twice.tasks.kinds[0].slo.deadline_ms == pytest.approx(1500 * 10 / 14)  # l(1) / 14 ms


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    for tasks, words in (
        ([], "at least one"),
        ([WorkloadTask(1.0, 5, 1, 5), WorkloadTask(0.5, 5, 1, 5)], "by arrival"),
        ("office", "edge, tiers"),
        ([WorkloadTask(0.0, 0, 1, 5)], "prompt_tokens"),
        ([WorkloadTask(0.0, 2**32 + 1, 1, 5)], "prompt_tokens"),
        ([WorkloadTask(0.0, 5, 1, 0)], "max_tokens"),
        ([WorkloadTask(float("nan"), 5, 1, 5)], "arrival"),
        ([WorkloadTask(float("inf"), 5, 1, 5)], "arrival"),
        ([WorkloadTask(0.0, 5, 1, 5, utility=-1.0)], "utility"),
        ([WorkloadTask(0.0, 5, 1, 5, slo=Slo(tpot_ms=-1))], "tpot_ms"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            slicellm.simulate(tasks, "orca", MACHINE)
    wrong: list[dict[str, Any]] = [
        {"load": -1.0},
        {"load": float("nan")},
        {"rate": 0.0},
        {"num_tasks": 0},
        {"slo_scale": float("inf")},
        {"seed": -1},
        {"max_rows": 0},
        {"max_concurrency": -1},
        {"blocks": 0},
    ]
    for arguments in wrong:
        name = next(iter(arguments)).replace("max_concurrency", "in_flight")
        with pytest.raises(InvalidArgument, match=name):
            slicellm.simulate("edge", "orca", MACHINE, **arguments)
    with pytest.raises(InvalidArgument, match="rtx4060ti"):
        slicellm.simulate("edge", "orca", "abacus")
    with pytest.raises(InvalidArgument, match="fifo"):
        slicellm.simulate("edge", "fifo")


def test_a_task_that_never_fits_is_rejected() -> None:
    small = table_machine([10.0], blocks=2, host_blocks=0)  # 32 tokens
    tasks = [WorkloadTask(0.0, 30, 1, 10), WorkloadTask(0.0, 10, 1, 10)]
    run = slicellm.simulate(tasks, "orca", small)
    assert run.task_metrics().reason.tolist()[0] == "rejected"
    assert run.metrics["finish"]["rejected"] == 1 and run.metrics["attainment"] == 0.5
