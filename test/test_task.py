"""Tasks at the border: every field refuses what it cannot mean, by its outside name."""

from __future__ import annotations

import numpy as np
import pytest

from slicellm import _core

NAN, INF = float("nan"), float("inf")

INTEGERS = {
    "max_tokens": [0, -1, 2**24 + 1],
    "top_k": [-1],
    "seed": [-1, 2**64],
    "logprobs": [-1, 101],
    "true_output_tokens": [-1, 2**24 + 1],
}
NUMBERS = {
    "utility": [-0.5, 1.1e9],
    "ttft_ms": [0, -1, 1e13],
    "tpot_ms": [0, -3, 1e13],
    "deadline_ms": [0, -1e-9, 1e13],
    "temperature": [-0.1, 101],
    "top_p": [0, -0.5, 1.0001],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, -1, 101],
    "arrival_s": [-1, 1.1e9],
}
BAD = (
    [(f, v) for f, values in INTEGERS.items() for v in [*values, 1.5, NAN, INF, True, "7", [1]]]
    + [(f, v) for f in INTEGERS if f != "seed" for v in (2**31, 2**63, -(2**63) - 1, 10**5000)]
    + [(f, v) for f, values in NUMBERS.items() for v in [*values, NAN, INF, -INF, True, "7", [1]]]
    + [(f, v) for f in NUMBERS for v in (10**5000, np.array([1.0]))]
    + [
        ("stop", "abc"),
        ("stop", [""]),
        ("stop", ["x" * 1025]),
        ("stop", ["a"] * 65),
        ("stop", [b"a"]),
        ("stop", ["\ud800"]),
        ("stop", 3),
        ("stop_ids", [-1]),
        ("stop_ids", [2**31]),
        ("stop_ids", [True]),
        ("stop_ids", list(range(4097))),
        ("class_name", ""),
        ("class_name", "x" * 129),
        ("class_name", None),
        ("ignore_eos", 1),
        ("stop_at_deadline", "yes"),
        ("stop_at_deadline", True),  # without a deadline
    ]
)


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda v: str(type(v).__name__))
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(_core.InvalidArgument) as caught:
        _core.TaskSpec([1, 2], **{field: value})
    assert caught.value.field == field
    text = str(caught.value)
    assert text.startswith(f"{field}: got ") and ", expected " in text
    assert "\n" not in text and len(text) < 300


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        "text",
        b"bytes",
        3,
        None,
        [1.0],
        [True],
        ["1"],
        [-1],
        [2**31],
        [2**63],
        np.array([1.0]),
        np.zeros((2, 2), np.int32),
        np.array([-1]),
        np.array([True]),
    ],
    ids=repr,
)
def test_a_bad_prompt_is_named(prompt: object) -> None:
    with pytest.raises(_core.InvalidArgument) as caught:
        _core.TaskSpec(prompt)
    assert caught.value.field == "prompt"


def test_limits_are_accepted_and_read_back() -> None:
    good = {
        "max_tokens": 2**24,
        "utility": 0.0,
        "ttft_ms": 1e-3,
        "tpot_ms": 1e12,
        "deadline_ms": 1500.0,
        "class_name": "x" * 128,
        "temperature": 100.0,
        "top_k": 2**31 - 1,
        "top_p": 1e-9,
        "min_p": 1.0,
        "repetition_penalty": 0.01,
        "seed": 2**64 - 1,
        "logprobs": 100,
        "stop": ["é", "x" * 1024],
        "stop_ids": [0, 2**31 - 1],
        "ignore_eos": True,
        "stop_at_deadline": True,
        "arrival_s": 0.0,
        "true_output_tokens": 2**24,
    }
    task = _core.TaskSpec(np.array([5, 6], np.int64), **good)
    assert task.prompt == [5, 6]
    for field, value in good.items():
        got = getattr(task, field)
        assert got == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)


def test_defaults_are_the_documented_ones() -> None:
    task = _core.TaskSpec((np.int32(1), 2))
    assert (task.max_tokens, task.utility, task.class_name) == (256, 1.0, "default")
    assert task.ttft_ms is task.tpot_ms is task.deadline_ms is task.logprobs is task.arrival_s
    assert task.ttft_ms is None
    assert (task.temperature, task.top_k, task.top_p, task.min_p) == (0.0, 0, 1.0, 0.0)
    with pytest.raises(AttributeError):
        task.utility = 2.0
    with pytest.raises(TypeError):
        _core.TaskSpec([1], 5)
    with pytest.raises(TypeError):
        _core.TaskSpec([1], unknown=5)
