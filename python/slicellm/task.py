"""What goes into an engine (Task) and what comes out (Piece, Result)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ._core import TaskSpec
from .errors import InvalidArgument, make_error, show
from .model import Prompt, is_chat


@dataclass(frozen=True)
class Task:
    """A request: a prompt, what the answer is worth, and by when it is wanted.

    Targets are in milliseconds from the task's arrival; None is not judged. Bad values raise
    InvalidArgument at once.

    Attributes:
        prompt: text to be continued, chat messages ({"role": ..., "content": ...}), or token ids.
        utility: what it is worth to meet the targets; a real-time task typically 10-100 times
            another.
        ttft_ms: time to the first token.
        tpot_ms: mean time per token after the first.
        deadline_ms: time to the last token.
        max_tokens: most tokens of the answer.
        class_name: tasks of one class share statistics.
        temperature: 0 = the most likely token, always.
        top_k, top_p, min_p: what sampling is cut to: the k best tokens; the best of a total
            probability of p; those of at least min_p times the best one's probability.
        repetition_penalty: above 1 makes tokens that came before less likely.
        seed: same seed, same answer.
        logprobs: None; 0 = the log-probability of each token; k = also those of the k best.
        stop: texts that end the answer and are no part of it.
        stop_ids: token ids that do.
        ignore_eos: go on after the model's own end.
        stop_at_deadline: give up when the deadline passes.
    """

    prompt: Prompt
    utility: float = 1.0
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    deadline_ms: float | None = None
    max_tokens: int = 256
    class_name: str = "default"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    stop_at_deadline: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) and not is_chat(self.prompt):
            if isinstance(self.prompt, (bytes, Mapping)) or not hasattr(self.prompt, "__len__"):
                expected = "text, chat messages or token ids"
                raise make_error(InvalidArgument, "prompt", show(self.prompt), expected)
        self.core_spec([0])  # the core checks everything else

    def core_spec(self, ids: Sequence[int], arrival_s: float | None = None) -> TaskSpec:
        """The core's form of this task, with its prompt as token ids."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "prompt"}
        return TaskSpec(ids, **settings, arrival_s=arrival_s)


@dataclass(frozen=True)
class Piece:
    """What is new of an answer: text, and the tokens that came since the piece before.

    Text may lag behind the tokens: a character comes when it is complete, and what may become a
    stop string is held back.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float] | None = None


@dataclass(frozen=True)
class Result:
    """What became of a task.

    Attributes:
        text: the answer, without stop strings; "" if the model has no tokenizer.
        token_ids: its tokens.
        finish_reason: "stop" (the model or a stop string ended it), "length" (max_tokens),
            "deadline", "cancelled", "rejected" or "error".
        error: one sentence, for "rejected" and "error".
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that the prefix cache spared computing.
        ttft_ms: arrival to first token; None without tokens.
        tpot_ms: mean time per token after the first; None below two tokens.
        e2el_ms: arrival to last token; None without tokens.
        slo_met: it finished normally and held every target that the task declared.
        logprobs: log-probability of each token, if asked for.
        top_logprobs: for each token the best ones and theirs, if asked for.
        id: the task's number in its engine.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    error: str
    prompt_tokens: int
    cached_tokens: int
    ttft_ms: float | None
    tpot_ms: float | None
    e2el_ms: float | None
    slo_met: bool
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    id: int = -1


def make_result(task: Task, output: Mapping[str, Any]) -> Result:
    """A Result from what the core's `TaskHandle.wait` returns (times there are in seconds)."""
    times, arrival = output["token_times"], output["arrival"]
    ttft = tpot = e2el = None
    if times:
        ttft, e2el = (times[0] - arrival) * 1000, (times[-1] - arrival) * 1000
    if len(times) > 1:
        tpot = (times[-1] - times[0]) * 1000 / (len(times) - 1)
    reason = output["reason"]
    return Result(
        text=output["text"],
        token_ids=list(output["token_ids"]),
        finish_reason=reason,
        error=output["error"],
        prompt_tokens=output["prompt_tokens"],
        cached_tokens=output["cached_tokens"],
        ttft_ms=ttft,
        tpot_ms=tpot,
        e2el_ms=e2el,
        slo_met=reason in ("stop", "length")
        and _held(ttft, task.ttft_ms)
        and (tpot is None or _held(tpot, task.tpot_ms))  # no second token, nothing to be late
        and _held(e2el, task.deadline_ms),
        logprobs=list(output["logprobs"]) if task.logprobs is not None else None,
        top_logprobs=list(output["top_logprobs"]) if task.logprobs else None,
        id=output["id"],
    )


def _held(measured: float | None, target: float | None) -> bool:
    return target is None or (measured is not None and measured <= target)
