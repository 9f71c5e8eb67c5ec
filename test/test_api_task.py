"""The Python package: tasks and how their results are judged."""

from __future__ import annotations

from typing import Any

import pytest

from slicellm import InvalidArgument, Task
from slicellm.task import make_result


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(f, v) for f in ("ttft_ms", "tpot_ms", "deadline_ms") for v in (
            0, -1, float("nan"), float("inf"), 1e13, "50", True, [1])],
        *[("utility", v) for v in (-1, float("nan"), float("inf"), "1", None, True)],
        *[("max_tokens", v) for v in (0, -1, 1 << 31, 1 << 63, 1.5, "5", True, None)],
        *[("temperature", v) for v in (-0.1, float("nan"), "0", True)],
        *[("top_k", v) for v in (-1, 1 << 31, 0.5, "1")],
        *[("top_p", v) for v in (0, -1, 1.1, float("nan"), "1")],
        *[("min_p", v) for v in (-0.1, 1.1, float("nan"))],
        *[("repetition_penalty", v) for v in (0, -1, float("nan"), float("inf"))],
        *[("seed", v) for v in (-1, 1 << 64, 1.0, "1", True)],
        *[("logprobs", v) for v in (-1, 101, 1 << 31, 0.5, True)],
        *[("stop", v) for v in ("end", [1], ["\ud800"], [""], 5)],
        *[("stop_ids", v) for v in ([-1], [1 << 31], ["a"], 5)],
        *[("ignore_eos", v) for v in (1, "true", None)],
        *[("stop_at_deadline", v) for v in (1, "true")],
        *[("class_name", v) for v in (5, None)],
        *[("prompt", v) for v in (None, 5, b"text", {"role": "user"})],
    ],
)  # fmt: skip
def test_bad_task_fields(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: got .* expected ") as caught:
        Task(**{"prompt": "hi", field: value})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_unknown_task_fields() -> None:
    with pytest.raises(TypeError, match="tpot"):
        Task("hi", tpot=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("times", "reason", "targets", "met"),
    [
        ([1.5, 1.6, 1.7], "stop", {}, True),
        ([1.5, 1.6, 1.7], "stop", {"ttft_ms": 501, "tpot_ms": 101, "deadline_ms": 701}, True),
        ([1.5, 1.6, 1.7], "length", {"ttft_ms": 499}, False),
        ([1.5, 1.6, 1.7], "stop", {"tpot_ms": 99}, False),
        ([1.5, 1.6, 1.7], "stop", {"deadline_ms": 699}, False),
        ([1.5, 1.6, 1.7], "cancelled", {}, False),
        ([1.5], "stop", {"tpot_ms": 1}, True),  # no second token: TPOT counts as met
        ([], "stop", {"tpot_ms": 1}, True),
        ([], "stop", {"ttft_ms": 1000}, False),
        ([], "rejected", {}, False),
    ],
)
def test_results_by_hand(
    times: list[float], reason: str, targets: dict[str, float], met: bool
) -> None:
    """Arrival at 1 s; times and targets written out."""
    output = {
        "id": 3, "reason": reason, "error": "", "arrival": 1.0, "finish_time": 2.0,
        "prompt_tokens": 4, "cached_tokens": 0,
        "token_ids": [7] * len(times), "token_times": times,
        "logprobs": [-1.0] * len(times), "top_logprobs": [[]] * len(times), "text": "x",
    }  # fmt: skip
    result = make_result(Task("hi", **targets), output)
    assert result.slo_met is met
    assert result.ttft_ms == (pytest.approx(500) if times else None)
    assert result.tpot_ms == (pytest.approx(100) if len(times) > 1 else None)
    assert result.e2el_ms == (pytest.approx(1000 * (times[-1] - 1)) if times else None)
    assert result.logprobs is None and result.top_logprobs is None
