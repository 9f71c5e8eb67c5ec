"""Metrics of an event log whose every number is worked out by hand in the comments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slicellm._core import InvalidArgument
from slicellm.bench import eventlog, metrics, report
from slicellm.bench.eventlog import Declared, Event, EventLog
from slicellm.bench.tasks import Slo

CONTROL = Slo(deadline_ms=1500)
CHAT = Slo(ttft_ms=1000, tpot_ms=250)


def hand_log() -> EventLog:
    """Seven tasks; times are binary fractions, so that sums are exact.

    0  a  ttft .5   tpot .5    e2el 1.5   deadline 1.5 held exactly                        met
    1  b  ttft .5   tpot 1/3   e2el 1.5   tpot above .25; due 3, 3.25, 3.5, 3.75: smooth   missed
    2  b  ttft .5   tpot .25   e2el 1.25  due 2.5, 2.75, 3, 3.25: late by 0, .375, .1875, 0   met
    3  b  ttft .25  one token             tpot undefined counts as met                     met
    4  b  rejected                                                                         missed
    5  a  ttft .5   one token, in time, but ended by its deadline                          missed
    6  a  finished normally without a token .25 after its arrival                          met
    """
    tasks = [
        Declared(1.0, "a", 100, CONTROL, 10, 30),
        Declared(2.0, "b", 1, CHAT, 20, 300),
        Declared(2.0, "b", 1, Slo(ttft_ms=500, tpot_ms=250), 20, 300),
        Declared(4.0, "b", 1, Slo(ttft_ms=500, tpot_ms=1), 20, 300),
        Declared(5.0, "b", 1, CHAT, 20, 300),
        Declared(6.0, "a", 100, CONTROL, 10, 30),
        Declared(7.0, "a", 100, CONTROL, 10, 30),
    ]
    times = {
        0: [1.5, 2.0, 2.5],
        1: [2.5, 2.75, 3.25, 3.5],
        2: [2.5, 3.125, 3.1875, 3.25],
        3: [4.25],
        5: [6.5],
    }
    events = [Event(t, task, "token", 7) for task, ts in times.items() for t in ts]
    events += [
        Event(2.5, 0, "finish", "stop"),
        Event(3.5, 1, "finish", "length"),
        Event(3.25, 2, "finish", "stop"),
        Event(4.25, 3, "finish", "length"),
        Event(5.0, 4, "reject"),
        Event(9.0, 5, "finish", "deadline"),
        Event(7.25, 6, "finish", "stop"),
    ]
    events.sort(key=lambda e: e.t)
    return EventLog(tasks, events)


def test_task_metrics() -> None:
    tasks = metrics.task_metrics(hand_log())
    nan = np.nan
    np.testing.assert_array_equal(tasks.tokens, [3, 4, 4, 1, 0, 1, 0])
    np.testing.assert_array_equal(tasks.ttft, [0.5, 0.5, 0.5, 0.25, nan, 0.5, nan])
    np.testing.assert_allclose(tasks.tpot, [0.5, 1 / 3, 0.25, nan, nan, nan, nan], rtol=1e-15)
    np.testing.assert_array_equal(tasks.e2el, [1.5, 1.5, 1.25, 0.25, nan, 0.5, nan])
    np.testing.assert_array_equal(tasks.max_itl, [0.5, 0.5, 0.625, nan, nan, nan, nan])
    # Gaps of task 1: .25 .25 .5, of task 2: .0625 .0625 .625; p99 lies 98 % from 2nd to 3rd.
    np.testing.assert_allclose(
        tasks.p99_itl, [0.5, 0.25 + 0.98 * 0.25, 0.0625 + 0.98 * 0.5625, nan, nan, nan, nan]
    )
    # Task 1: -.5 -.5 -.25 -.25; task 3: 4.25 - 4.5; the others lack a target or a token.
    np.testing.assert_array_equal(tasks.max_lateness, [nan, -0.25, 0.375, -0.25, nan, nan, nan])
    assert tasks.met.tolist() == [True, False, True, True, False, False, True]
    ends = ["stop", "length", "stop", "length", "rejected", "deadline", "stop"]
    assert tasks.reason.tolist() == ends


def test_compute() -> None:
    result = metrics.compute(hand_log())
    assert result["attainment"] == 4 / 7
    assert result["utility"] == 202 / 304  # 100 + 1 + 1 + 100 of 3 * 100 + 4
    assert result["makespan_s"] == 8.0  # first arrival 1, last event 9
    assert result["goodput"] == 0.5
    assert result["output_tokens_per_s"] == 13 / 8
    assert result["goodput_tokens_per_s"] == 8 / 8  # 3 + 4 + 1 + 0
    assert result["ttft_ms"] == {"mean": 450.0, "p50": 500.0, "p99": 500.0}
    tpot = result["tpot_ms"]  # 1000/3 is in the middle, 250 and 500 at the sides
    assert tpot["mean"] == pytest.approx((500 + 1000 / 3 + 250) / 3)
    assert tpot["p50"] == pytest.approx(1000 / 3)
    assert tpot["p99"] == pytest.approx(1000 / 3 + 0.98 * (500 - 1000 / 3))
    # Gaps: .0625 .0625 .25 .25 .5 .5 .5 .625, sum 2.75; p99 at place 6.93.
    assert result["itl_ms"] == {
        "mean": 343.75,
        "p50": 375.0,
        "p99": pytest.approx(500 + 0.93 * 125),
        "max": 625.0,
    }
    # Tasks 0 to 3; 6 has no token, 4 and 5 did not finish normally.
    assert result["e2el_ms"]["mean"] == 1125.0
    assert result["e2el_ms"]["p50"] == 1375.0
    assert result["smooth"] == 2 / 3
    assert result["lateness_ms"] == {"max": 375.0}
    assert result["finish"] == {"stop": 3, "length": 2, "rejected": 1, "deadline": 1}
    a, b = result["classes"]["a"], result["classes"]["b"]
    assert (a["submitted"], a["met"], a["attainment"], a["utility"]) == (3, 2, 2 / 3, 200 / 300)
    assert (b["submitted"], b["met"], b["attainment"], b["utility"]) == (4, 2, 0.5, 0.5)
    assert a["e2el_ms"]["mean"] == 1500.0
    assert b["e2el_ms"]["mean"] == 1000.0
    assert result["bound"] is None
    assert result["plan_us"] == {"p50": None, "p99": None, "max": None}
    json.dumps(result, allow_nan=False)


def test_result_keys_are_those_of_the_result_file() -> None:
    result = metrics.compute(hand_log(), hand_steps())
    for key in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"):
        assert {"mean", "p50", "p99"} <= set(result[key])
    assert {"p50", "p99", "max"} <= set(result["plan_us"])
    assert {"submitted", "met", "attainment", "utility"} <= set(result["classes"]["a"])


def test_goodput_with_given_targets() -> None:
    # TTFT at most .3 s: task 3 (.25) and task 6, which is judged by its end at .25.
    result = metrics.compute(hand_log(), goodput=Slo(ttft_ms=300))
    assert result["goodput_given"] == 2 / 8


def test_percentiles_asked_for_come_beside_the_fixed_ones() -> None:
    result = metrics.compute(hand_log(), percentiles=(25.0, 99.9))
    # TTFT: .25 .5 .5 .5 .5; the first quarter ends at place 1.
    assert list(result["ttft_ms"]) == ["mean", "p50", "p99", "p25", "p99.9"]
    assert result["ttft_ms"]["p25"] == 500.0


def hand_steps() -> dict[str, Any]:
    return {
        # pure prefill, mixed (30 of 40 tokens prefill), pure decode, pure decode
        "duration": np.array([0.2, 0.4, 0.1, 0.1]),
        "predicted": np.array([0.1, 0.4, 0.125, 0.1]),
        "plan_seconds": np.array([1e-6, 2e-6, 3e-6, 4e-6]),
        "overhead_seconds": np.array([1e-5, 1e-5, 1e-5, 1e-5]),
        "prefill_tokens": np.array([50, 30, 0, 0]),
        "decode_rows": np.array([0, 10, 8, 6]),
    }


def test_step_metrics() -> None:
    result = metrics.step_metrics(hand_steps())
    assert result["plan_us"]["p50"] == pytest.approx(2.5)
    assert result["plan_us"]["p99"] == pytest.approx(3.97)
    assert result["plan_us"]["max"] == pytest.approx(4.0)
    assert result["plan_share"] == pytest.approx(10e-6 / (0.8 + 10e-6 + 40e-6))
    assert result["prefill_share"] == pytest.approx((0.2 + 0.75 * 0.4) / 0.8)
    assert result["decode_rows_mean"] == 8.0
    assert result["prediction_error"]["relative"]["mean"] == pytest.approx((0.5 + 0.25) / 4)
    assert result["prediction_error"]["bias"] == pytest.approx(-0.075 / 0.8)


def test_empty_and_unfinished_logs() -> None:
    assert metrics.compute(EventLog())["attainment"] == 0.0
    log = EventLog([Declared(0.0, "a", 1, CHAT)], [Event(0.5, 0, "token", 1)])
    result = metrics.compute(log)
    assert result["attainment"] == 0.0 and result["finish"] == {"unfinished": 1}
    assert result["e2el_ms"]["mean"] is None


def test_log_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with path.open("w") as file:
        eventlog.write(file, hand_log(), "slice:ratio=0.9", 3)
        eventlog.write(file, hand_log(), "orca", 3)
    runs = eventlog.read(path)
    assert list(runs) == [("slice:ratio=0.9", 3), ("orca", 3)]
    assert runs["orca", 3].tasks == hand_log().tasks
    assert metrics.compute(runs["orca", 3]) == metrics.compute(hand_log())
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {
        "t": 1.0,
        "task": 0,
        "event": "arrive",
        "class": "a",
        "utility": 100,
        "deadline_ms": 1500,
        "prompt_tokens": 10,
        "max_tokens": 30,
        "policy": "slice:ratio=0.9",
        "seed": 3,
    }


def test_module_prints_the_table_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with path.open("w") as file:
        eventlog.write(file, hand_log(), "orca", 0)
    command = [sys.executable, "-m", "slicellm.bench"]
    shown = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "57.1 %" in shown.stdout and "66.4 %" in shown.stdout  # 4/7, 202/304
    assert "1 rejected, 1 deadline" in shown.stdout
    wrong = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "not empty"),
        ("{", "one JSON object a line"),
        ("[1]", "a JSON object"),
        ('{"t": 0, "task": 0, "event": "begin"}', "one of arrive"),
        ('{"t": NaN, "task": 0, "event": "arrive"}', "a number"),
        ('{"t": 0, "task": -1, "event": "arrive"}', "a whole number"),
        ('{"t": 0, "task": 0, "event": "token", "id": 5}', "with an arrive line"),
        ('{"t": 0, "task": 0, "event": "arrive", "tpot_ms": -5}', "above 0"),
        (
            '{"t": 0, "task": 0, "event": "arrive"}\n{"t": 0, "task": 0, "event": "arrive"}',
            "not arr",
        ),
        (
            '{"t": 0, "task": 0, "event": "arrive"}\n{"t": 0, "task": 0, "event": "finish"}',
            "one of st",
        ),
    ],
)
def test_malformed_logs_are_refused(tmp_path: Path, lines: str, sentence: str) -> None:
    path = tmp_path / "log"
    path.write_text(lines)
    with pytest.raises(InvalidArgument, match=sentence):
        eventlog.read(path)


def test_several_seeds_give_runs_mean_and_spread() -> None:
    runs = [
        {"orca": {"attainment": a, "finish": f, "plan_us": {"p50": None}, "bound": None}}
        for a, f in ((0.25, {"stop": 2}), (0.75, {"stop": 1, "rejected": 1}))
    ]
    result = report.result_object({"model": "m"}, [4, 5], runs)
    assert [r["config"]["seed"] for r in result["runs"]] == [4, 5]
    mean, spread = result["mean"]["policies"]["orca"], result["spread"]["policies"]["orca"]
    assert mean["attainment"] == 0.5
    assert spread["attainment"] == pytest.approx(0.5**0.5 / 2)  # sample deviation of .25 and .75
    assert mean["finish"] == {"stop": 1.5, "rejected": 0.5}
    assert mean["plan_us"] == {"p50": None} and mean["bound"] is None
    single = report.result_object({"model": "m"}, [4], runs[:1])
    assert single["config"]["seed"] == 4 and single["policies"] == runs[0]
