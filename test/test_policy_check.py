"""The plan check: each rule broken once, with its sentence, beside a plan that keeps it."""

from __future__ import annotations

import math

import pytest

from slicellm import _core
from slicellm.policies import StepPlan, TaskView, View, check_plan, latency_from_table

READY, FRESH, ON_HOST, HALF, WHOLE, EMPTY = range(6)


def tasks() -> list[TaskView]:
    return [
        TaskView(id=10, prompt_len=30, max_tokens=50, produced=3, cached=32, kv="device", blocks=2),
        TaskView(id=11, prompt_len=40, max_tokens=50),
        TaskView(id=12, prompt_len=30, max_tokens=50, produced=3, cached=32, kv="host", blocks=2),
        TaskView(id=13, prompt_len=40, max_tokens=50, cached=16, kv="device", blocks=1),
        TaskView(id=14, prompt_len=40, max_tokens=50, prefill_divisible=False),
        TaskView(),
    ]


def view(**fields: object) -> View:
    values = {"now": 5.0, "total_blocks": 20, "total_host_blocks": 4, **fields}
    return View(tasks(), latency_from_table([14, 27]), **values)


def test_a_plan_that_keeps_every_rule() -> None:
    check_plan(
        StepPlan(
            kv=[("swap_in", ON_HOST)],
            endings=[(WHOLE, "rejected", "no room")],
            prefill=[(FRESH, 40), (HALF, 10)],
            decode=[READY, ON_HOST],
        ),
        view(),
    )
    check_plan(StepPlan(kv=[("drop", READY)], prefill=[(READY, 33)]), view())
    check_plan(StepPlan(prefill=[(WHOLE, 40)]), view())
    check_plan(StepPlan(wake_at=5.5), view())
    check_plan(StepPlan(), View([], latency_from_table([14])))


BROKEN = [
    # slots
    (dict(decode=[6]), "plan.decode[0]: got slot 6, expected a slot that holds a live task"),
    (dict(decode=[-1]), "plan.decode[0]: got slot -1, expected a slot that holds a live task"),
    (dict(prefill=[(EMPTY, 1)]), "plan.prefill[0]: got slot 5, expected a slot that holds a live"),
    (dict(kv=[("drop", 99)]), "plan.kv[0]: got slot 99, expected a slot that holds a live task"),
    (
        dict(endings=[(7, "rejected", "")]),
        "plan.endings[0]: got slot 7, expected a slot that holds",
    ),
    (
        dict(decode=[READY, READY]),
        "plan.decode[1]: got slot 0 a second time, expected each slot once",
    ),
    (dict(prefill=[(FRESH, 8), (FRESH, 8)]), "plan.prefill[1]: got slot 1 a second time"),
    (
        dict(kv=[("drop", READY)], prefill=[(READY, 33)], decode=[READY]),
        "plan.decode[0]: got slot 0 a second time",
    ),
    (
        dict(endings=[(READY, "rejected", ""), (READY, "deadline", "")]),
        "plan.endings[1]: got slot 0 a second time",
    ),
    (
        dict(endings=[(READY, "rejected", "")], decode=[READY]),
        "plan.decode[0]: got slot 0 a second time",
    ),
    # decode
    (
        dict(decode=[FRESH]),
        "plan.decode[0]: got slot 1 with 40 tokens pending, expected a task whose prefill is done",
    ),
    (
        dict(decode=[ON_HOST]),
        "plan.decode[0]: got slot 2 with KV on the host, expected KV on the device",
    ),
    (
        dict(kv=[("swap_out", READY)], decode=[READY]),
        "plan.decode[0]: got slot 0 with KV on the host, expected KV on the device",
    ),
    (
        dict(kv=[("drop", READY)], decode=[READY]),
        "plan.decode[0]: got slot 0 with 33 tokens pending, expected a task whose prefill is done",
    ),
    # prefill
    (
        dict(prefill=[(READY, 1)]),
        "plan.prefill[0]: got slot 0 that is ready to decode, expected it under decode",
    ),
    (
        dict(prefill=[(ON_HOST, 1)]),
        "plan.prefill[0]: got slot 2 with KV on the host, expected KV on the device or none",
    ),
    (
        dict(prefill=[(FRESH, 0)]),
        "plan.prefill[0]: got slot 1 with 0 tokens, expected 1 to 40 pending tokens",
    ),
    (
        dict(prefill=[(HALF, 25)]),
        "plan.prefill[0]: got slot 3 with 25 tokens, expected 1 to 24 pending tokens",
    ),
    (
        dict(prefill=[(WHOLE, 20)]),
        "plan.prefill[0]: got slot 4 with 20 tokens, expected all 40 pending tokens, as its prefill"
        " is not divisible",
    ),
    # KV actions
    (
        dict(kv=[("swap_out", FRESH)]),
        "plan.kv[0]: got slot 1 without KV, expected a task with KV on the device to swap out",
    ),
    (
        dict(kv=[("swap_in", READY)]),
        "plan.kv[0]: got slot 0 with KV on the device, expected a task with KV on the host to swap",
    ),
    (
        dict(kv=[("drop", READY), ("drop", READY)]),
        "plan.kv[1]: got slot 0 without KV, expected a task with KV to drop",
    ),
    # padding
    (dict(padding_rows=[5, 0]), "plan.padding.rows[1]: got 0, expected at least 1 token in KV"),
    (dict(padding_prompts=[-1]), "plan.padding.prompts[0]: got -1, expected at least 1 token"),
    # endings, waiting
    (
        dict(wake_at=math.nan, decode=[READY]),
        "plan wake_at: got nan, expected a time or infinity",
    ),
    (dict(), "plan is empty with wake_at: got inf, expected a step, or a finite wake_at after now"),
    (dict(wake_at=5.0), "plan is empty with wake_at: got 5.0"),
]


@pytest.mark.parametrize(("plan", "sentence"), BROKEN, ids=[s[:40] for _, s in BROKEN])
def test_broken_rule(plan: dict, sentence: str) -> None:
    with pytest.raises(_core.StateError) as error:
        check_plan(StepPlan(**plan), view())
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("fields", "plan", "sentence"),
    [
        (
            dict(max_rows=1),
            dict(decode=[READY], prefill=[(FRESH, 1)]),
            "plan rows: got 2, expected at most max_rows = 1",
        ),
        (
            dict(max_step_tokens=40),
            dict(decode=[READY], prefill=[(FRESH, 40)]),
            "plan tokens: got 41, expected at most max_step_tokens = 40",
        ),
        (  # the decode row appends token 33 to two full blocks; the prompt needs three
            dict(free_blocks=3),
            dict(decode=[READY], prefill=[(FRESH, 40)]),
            "plan blocks: got 4 new KV blocks, expected at most the 3 that are free",
        ),
        (
            dict(max_rows=2),
            dict(decode=[READY], padding_rows=[5, 5]),
            "plan rows: got 3, expected at most max_rows = 2",
        ),
        (
            dict(max_step_tokens=40),
            dict(prefill=[(FRESH, 30)], padding_prompts=[10], padding_rows=[5]),
            "plan tokens: got 41, expected at most max_step_tokens = 40",
        ),
        (  # a row on 16 tokens writes its 17th: two blocks; 17 pads two more
            dict(free_blocks=3),
            dict(padding_rows=[16], padding_prompts=[17]),
            "plan blocks: got 4 new KV blocks, expected at most the 3 that are free",
        ),
        (
            dict(free_blocks=1),
            dict(kv=[("swap_in", ON_HOST)]),
            "plan.kv[0]: got slot 2 with 2 blocks, expected at most the 1 blocks free on the dev",
        ),
        (
            dict(free_host_blocks=1),
            dict(kv=[("swap_out", READY)]),
            "plan.kv[0]: got slot 0 with 2 blocks, expected at most the 1 blocks free on the host",
        ),
    ],
)
def test_limits(fields: dict, plan: dict, sentence: str) -> None:
    with pytest.raises(_core.StateError) as error:
        check_plan(StepPlan(**plan), view(**fields))
    assert str(error.value).startswith(sentence)
    check_plan(StepPlan(**plan), view())  # the plan itself is sound


def test_actions_and_endings_free_blocks_for_the_step() -> None:
    tight = view(free_blocks=1)  # the prompt needs three
    check_plan(StepPlan(kv=[("swap_out", READY)], prefill=[(FRESH, 40)]), tight)
    check_plan(StepPlan(kv=[("drop", READY)], prefill=[(FRESH, 40)]), tight)
    check_plan(StepPlan(endings=[(READY, "rejected", "")], prefill=[(FRESH, 40)]), tight)
    # In order: the host has two free blocks, so one has to come in before another goes out.
    full_host = view(total_host_blocks=2)
    check_plan(StepPlan(kv=[("swap_in", ON_HOST), ("swap_out", READY)]), full_host)
    with pytest.raises(_core.StateError, match="at most the 0 blocks free on the host"):
        check_plan(StepPlan(kv=[("swap_out", READY), ("swap_in", ON_HOST)]), full_host)


def test_prediction_of_a_plan_goes_by_its_features() -> None:
    # Two decode rows 27 ms; a chunk of 10 tokens 20 + 4 ms.
    v = view()
    plan = StepPlan(kv=[("swap_in", ON_HOST)], decode=[READY, ON_HOST], prefill=[(HALF, 10)])
    assert v.predict_ms(plan)[0] == pytest.approx(27 + 24)
    # Padding costs what tasks would: two rows, and 20 + 0.4 * 16 ms for the prompt.
    plan = StepPlan(decode=[READY], padding_rows=[40], prefill=[(HALF, 10)], padding_prompts=[6])
    assert v.predict_ms(plan)[0] == pytest.approx(27 + 26.4)
    with pytest.raises(_core.StateError, match="expected a task whose prefill is done"):
        v.predict_ms(StepPlan(decode=[FRESH]))


def test_features_of_padding() -> None:
    # Of a latency model that knows one feature at a time: rows, context and pairs of pad tokens.
    def predicted(**feature: float) -> float:
        samples = []
        for k in (1, 2, 4, 8):
            row = {"tokens": 1, "rows": 0, "context": 0.0, "chunk_work": 0.0}
            row.update({name: k * size for name, size in feature.items()})
            samples.append((*row.values(), 0.0, 0, 1.0 + k))
        latency = _core.LatencyModel.fit(samples)
        v = View(tasks(), latency, total_blocks=40)
        base = v.predict_ms(StepPlan(decode=[READY]))[0]
        plan = StepPlan(decode=[READY], padding_rows=[40, 60], padding_prompts=[6, 8])
        return v.predict_ms(plan)[0] - base

    assert predicted(rows=1) == pytest.approx(2, rel=0.02)
    assert predicted(context=100.0) == pytest.approx(1, rel=0.02)
    assert predicted(chunk_work=25.0) == pytest.approx(2, rel=0.02)  # 6 * 3 + 8 * 4


def test_padding_is_part_of_a_plan() -> None:
    plan = StepPlan(padding_rows=[3], padding_prompts=[2])
    assert plan.runs() and not plan.empty()
    assert plan == StepPlan(padding_rows=[3], padding_prompts=[2])
    assert plan != StepPlan(padding_rows=[3]) and plan != StepPlan(padding_rows=[4])
    assert repr(plan) == "StepPlan(padding_rows=(3,), padding_prompts=(2,))"
    check_plan(plan, view())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (dict(prompt_len=0), "task 1 prompt_len: got 0, expected an integer from 1 to 1000000000"),
        (
            dict(prompt_len=2**31 - 1),
            "task 1 prompt_len: got 2147483647, expected an integer from 1",
        ),
        (dict(max_tokens=-1), "task 1 max_tokens: got -1, expected an integer from 1"),
        (dict(utility=math.nan), "task 1 utility: got nan, expected a number of at least 0"),
        (dict(utility=-1.0), "task 1 utility: got -1.0, expected a number of at least 0"),
        (dict(tpot_ms=0.0), "task 1 tpot_ms: got 0.0, expected a number above 0"),
        (dict(ttft_ms=math.nan), "task 1 ttft_ms: got nan, expected a number above 0"),
        (dict(deadline_ms=math.inf), "task 1 deadline_ms: got inf, expected a number above 0"),
        (dict(arrival=math.nan), "task 1 arrival: got nan, expected a time"),
        (dict(cached=9, kv="device"), "task 1 cached: got 9, expected fewer tokens than"),
        (dict(cached=3), "task 1 kv: got none, expected none exactly when nothing is cached"),
        (dict(kv="device"), "task 1 kv: got device, expected none"),
        (dict(class_id=-1), "task 1 class_id: got -1, expected an integer from 0"),
    ],
)
def test_malformed_tasks(fields: dict, sentence: str) -> None:
    with pytest.raises(_core.InvalidArgument) as error:
        View([TaskView(**{"id": 1, "prompt_len": 8, "max_tokens": 8, **fields})],
             latency_from_table([14]))  # fmt: skip
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (dict(now=math.nan), "now: got nan, expected a time"),
        (dict(block_tokens=0), "block_tokens: got 0, expected an integer from 1"),
        (dict(max_rows=0), "max_rows: got 0, expected an integer from 1"),
        (dict(total_blocks=2), "free_blocks: got 3, expected at most the 2 blocks in all"),
        (
            dict(free_blocks=18),
            "free_blocks: got 18, expected at most the 20 blocks in all, with 3",
        ),
        (
            dict(total_host_blocks=1),
            "free_host_blocks: got 2, expected at most the 1 blocks in all",
        ),
    ],
)
def test_malformed_views(fields: dict, sentence: str) -> None:
    with pytest.raises(_core.InvalidArgument) as error:
        view(**fields)
    assert str(error.value).startswith(sentence)


def test_malformed_words() -> None:
    with pytest.raises(ValueError, match='TaskView: got "prompt", expected the name of one of its'):
        TaskView(prompt=3)
    with pytest.raises(ValueError, match='kv: got "disk", expected none, device or host'):
        TaskView(kv="disk")
    with pytest.raises(ValueError, match='plan.kv: got "move", expected swap_out, swap_in or drop'):
        StepPlan(kv=[("move", 0)])
    with pytest.raises(ValueError, match='plan.endings: got "stop", expected rejected or deadline'):
        StepPlan(endings=[(0, "stop", "")])
    with pytest.raises(ValueError, match="slot: got 6, expected a slot below 6"):
        view().task(6)
    with pytest.raises(TypeError):
        StepPlan(decode=[2**40])


def test_plans_are_values() -> None:
    plan = StepPlan(decode=[1, 2], prefill=[(3, 4)])
    assert plan == StepPlan(decode=[1, 2], prefill=[(3, 4)]) != StepPlan(decode=[1])
    assert repr(plan) == "StepPlan(prefill=((3, 4),), decode=(1, 2))"
    assert (plan.runs(), plan.empty(), StepPlan().empty()) == (True, False, True)
    with pytest.raises(AttributeError):
        plan.decode.append(3)  # a tuple: no change that would be lost
    plan.decode = [7]
    assert plan.decode == (7,)
