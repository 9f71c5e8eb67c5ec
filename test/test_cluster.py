"""Several simulated engines behind a dispatcher: against single runs, by hand, and nothing lost."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicellm import _core

LATENCY = _core.LatencyModel.from_decode_table([10.0, 12.0, 14.0], 20.0, 0.4)
COLUMNS = ("arrival", "first_token", "last_token", "finish", "max_gap", "tokens", "reason")

# arrival, prompt, output, cap
Task = tuple[float, int, int, int]


def simulate(tasks: list[Task], policy: str = "orca", **fields: Any) -> dict[str, Any]:
    arrival, prompt, output, cap = (list(column) for column in zip(*tasks))
    columns = {
        "arrival": arrival,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "max_tokens": cap,
        "class_id": [0] * len(tasks),
    }
    classes = [("default", None, None, None, 1.0)]
    return _core.simulate(policy, LATENCY, LATENCY, classes, columns, **fields)


def random_tasks(count: int, seed: int, rate: float = 20.0) -> list[Task]:
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    prompts, outputs = rng.integers(1, 300, count), rng.integers(1, 60, count)
    return [(float(a), int(p), int(n), 50) for a, p, n in zip(arrivals, prompts, outputs)]


def test_round_robin_is_so_many_single_runs() -> None:
    tasks = random_tasks(60, 1)
    run = simulate(tasks, "orca:max_batch=4", instances=3, jitter=0.1, seed=7)
    for k in range(3):
        alone = simulate(tasks[k::3], "orca:max_batch=4", jitter=0.1, seed=7 + k)
        for name in COLUMNS:
            np.testing.assert_array_equal(run[name][k::3], alone[name])
        assert run["instances"][k]["num_steps"] == alone["num_steps"]
        assert run["instances"][k]["ended"] == 20
        assert run["instances"][k]["end"] == alone["end"]
    assert run["num_steps"] == sum(i["num_steps"] for i in run["instances"])


def test_least_loaded_takes_the_instance_with_the_fewest_tasks() -> None:
    # 40 ms prompt of 50 tokens each. Task 0 runs long on instance 0; 1 ends at 40 ms on 1.
    tasks = [(0.0, 50, 30, 30), (0.0, 50, 1, 1), (0.030, 50, 1, 1), (0.050, 50, 1, 1)]
    run = simulate(tasks, dispatch="least_loaded", instances=2)
    # Task 2 finds one task on each and goes to 0: beside a decode row from 40 ms to 90. Task 3
    # finds two there and none on 1, where it is alone.
    np.testing.assert_allclose(run["finish"][1:], [0.040, 0.090, 0.090])
    assert [i["ended"] for i in run["instances"]] == [2, 2]


def test_scls_slices_over_two_instances_by_hand() -> None:
    # A slice is 2 tokens. Predicted: 20 + 0.4 L + 2 * l(1) alone. The fit is not exact, but the
    # longest prompt goes first, to instance 0, the next to 1, and the last to 1, which has less.
    tasks = [(0.0, 100, 3, 9), (0.0, 1000, 1, 9), (0.0, 500, 2, 9)]
    run = simulate(
        tasks, "static:batch=9", dispatch="scls:slice=2,gamma_ms=300", instances=2, max_rows=9
    )
    # Instance 0: task 1, 420 ms. Instance 1: task 2, 220 + 10 ms; then task 0, 60 + 10 ms. The
    # schedule of 300 ms has task 0 again (with 102 tokens), for instance 1, which is idle: 60.8 ms.
    np.testing.assert_allclose(run["first_token"], [0.290, 0.420, 0.220])
    np.testing.assert_allclose(run["finish"], [0.3608, 0.420, 0.230])
    np.testing.assert_allclose(run["max_gap"], [0.0608, np.nan, 0.010])
    assert run["tokens"].tolist() == [3, 1, 2]
    state = json.loads(run["dispatch_state"])
    assert (state["waiting"], state["queued"], state["load_s"]) == (0, 0, [0, 0])
    assert (state["batches"], state["rows"], state["early_returns"]) == (4, 4, 2)
    # What was measured are the model's own numbers: 20 ms and 0.4 ms a prompt token.
    np.testing.assert_allclose(state["prefill_s"], [0.0004, 0, 0, 0.020], atol=1e-9)
    np.testing.assert_allclose([i["end"] for i in run["instances"]], [0.420, 0.3608])


def test_slices_are_one_task_in_the_event_log() -> None:
    run = simulate(
        [(0.0, 100, 3, 9), (0.0, 1000, 1, 9)],
        "static",
        dispatch="scls:slice=2,gamma_ms=300",
        instances=2,
        record_events=True,
    )
    # On instance 1 at once: 60 + 10 ms; again at 300 ms with 102 tokens, 60.8 ms.
    events = [(round(t, 6), kind, value) for t, task, kind, value in run["events"] if task == 1]
    assert events == [
        (0.0, "arrive", 0),
        (0.0, "admit", 0),
        (0.060, "prefill", 100),
        (0.060, "token", 0),
        (0.070, "token", 0),
        (0.070, "preempt", 101),
        (0.300, "resume", 0),
        (0.3608, "prefill", 102),
        (0.3608, "token", 0),
        (0.3608, "finish", 1),
    ]


def test_scls_over_one_instance_is_the_policy_scls() -> None:
    # Both make the same batches where every step's end is also the time of a schedule.
    tasks = [(0.0, p, n, cap) for _, p, n, cap in random_tasks(40, 3)]
    parameters = "scls:slice=8,gamma_ms=0.001,lambda=0"
    central = simulate(tasks, "static:batch=6", dispatch=parameters, max_rows=6)
    policy = simulate(tasks, parameters, max_rows=6)
    for name in COLUMNS:
        np.testing.assert_allclose(central[name], policy[name], rtol=1e-12)
    for name in ("num_steps", "invalid_tokens", "pad_tokens", "decode_rows", "decode_steps"):
        assert central[name] == policy[name]
    state = json.loads(central["dispatch_state"])
    assert state["rows"] > len(tasks) and state["batches"] < state["rows"]


def test_padding_is_counted_by_hand() -> None:
    # One batch: prompts of 10 and 30 (20 pads), outputs of 2 and 5: three invalid tokens.
    run = simulate([(0.0, 10, 2, 9), (0.0, 30, 5, 9)], "static")
    assert (run["pad_tokens"], run["invalid_tokens"]) == (20, 3)
    assert (run["decode_steps"], run["decode_rows"]) == (4, 8)
    # 20 + 0.4 * 60 ms, then four steps of two rows.
    np.testing.assert_allclose(run["finish"], [0.044 + 0.012, 0.044 + 4 * 0.012])
    assert run["prefill_seconds"] == pytest.approx(0.044)


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.lists(
        st.tuples(st.floats(0, 2), st.integers(1, 200), st.integers(0, 40), st.integers(1, 30)),
        min_size=1,
        max_size=40,
    ),
    instances=st.integers(1, 5),
    dispatch=st.sampled_from(["round_robin", "least_loaded", "scls:slice=7,gamma_ms=50"]),
    policy=st.sampled_from(["static:batch=5", "orca:max_batch=3", "fastserve", "scls:slice=5"]),
    in_flight=st.sampled_from([0, 0, 3]),
)
def test_nothing_is_lost_and_runs_repeat(
    tasks: list[Task], instances: int, dispatch: str, policy: str, in_flight: int
) -> None:
    tasks.sort()
    fields = {"instances": instances, "dispatch": dispatch, "in_flight": in_flight, "jitter": 0.05}
    run = simulate(tasks, policy, blocks=60, max_rows=5, **fields)
    produced = [min(n or cap, cap) for _, _, n, cap in tasks]
    assert run["tokens"].tolist() == produced
    assert sum(i["ended"] for i in run["instances"]) == len(tasks)
    assert (run["first_token"] <= run["last_token"]).all()
    assert (run["last_token"] == run["finish"]).all()
    assert (run["first_token"] > run["arrival"]).all()
    if not in_flight:
        assert run["arrival"].tolist() == [task[0] for task in tasks]
    again = simulate(tasks, policy, blocks=60, max_rows=5, **fields)
    for name in COLUMNS:
        np.testing.assert_array_equal(run[name], again[name])
    assert run["dispatch_state"] == again["dispatch_state"]


def test_what_can_never_fit_is_rejected_once() -> None:
    run = simulate([(0.0, 500, 5, 5), (0.0, 20, 5, 5)], "static", dispatch="scls", blocks=10)
    assert run["tokens"].tolist() == [0, 5]
    assert run["reason"].tolist()[0] != run["reason"].tolist()[1]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dispatch": "random"}, 'dispatch: got "random", expected one of round_robin, least_load'),
        ({"dispatch": "scls:slice=0"}, 'scls:slice: got "0", expected an integer from 1'),
        ({"dispatch": "scls:"}, "dispatch scls: got a colon at the end, expected parameters"),
        ({"instances": 0}, "instances: got 0, expected a count above 0"),
    ],
)
def test_malformed(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(_core.InvalidArgument) as error:
        simulate([(0.0, 1, 1, 1)], **fields)
    assert str(error.value).startswith(sentence)


def test_each_instance_needs_a_policy_of_its_own() -> None:
    with pytest.raises(_core.InvalidArgument, match="expected a policy's name, as each instance"):
        simulate([(0.0, 1, 1, 1)], _core.make_policy("orca"), instances=2)  # type: ignore[arg-type]


def test_dispatchers_are_listed() -> None:
    names = [info["name"] for info in _core.list_dispatchers()]
    assert names == ["round_robin", "least_loaded", "scls"]
