"""Text in the loop: bytes to UTF-8 and stop strings, against Python's own decoder."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicellm import _core

LATENCY = _core.LatencyModel.from_decode_table([1.0])
PROMPT = [1, 17, 200, 31, 9]
LENGTH = 12


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> _core.Model:
    return _core.Model.load(str(tiny_llama), threads=1)


@pytest.fixture(scope="module")
def tokens(model: _core.Model) -> list[int]:
    """Distinct tokens that the model produces, so that tests may give each the bytes they like."""
    result = generate(model, [], [], repetition_penalty=100.0)["token_ids"]
    assert len(set(result)) == LENGTH
    return result


def generate(
    model: _core.Model, token_bytes: list[bytes], stop: list[str], **arguments: Any
) -> dict[str, Any]:
    engine = _core.Engine(
        model, "orca", LATENCY, kv_cache_bytes=8 * model.kv_block_bytes, token_bytes=token_bytes
    )
    task = _core.TaskSpec(PROMPT, max_tokens=LENGTH, stop=stop, ignore_eos=True, **arguments)
    handle = engine.submit(task)
    parts = []
    while True:  # as a streaming caller sees it
        part = handle.take(30)
        parts.append(part)
        if part["reason"] != "none":
            break
    whole = handle.wait(0)
    engine.close()
    assert "".join(p["text"] for p in parts) == whole["text"]
    assert sum((p["token_ids"] for p in parts), []) == whole["token_ids"]
    return whole


def table(model: _core.Model, tokens: list[int], pieces: list[bytes]) -> list[bytes]:
    result = [b"?"] * model.spec["vocab"]
    for token, piece in zip(tokens, pieces):
        result[token] = piece
    return result


def reference(pieces: list[bytes], stop: list[str]) -> tuple[str, int, bool]:
    """Text, tokens used, whether a stop string ended it. The first end of any stop string decides;
    of those that end there, the longest is cut."""

    def cut(text: str) -> str | None:
        for end in range(1, len(text) + 1):
            hits = [s for s in stop if text[:end].endswith(s)]
            if hits:
                return text[: end - max(map(len, hits))]
        return None

    for used in range(1, len(pieces) + 1):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decided = decoder.decode(b"".join(pieces[:used]))
        kept, _ = decoder.getstate()
        if kept[:1] == b"\xed" and kept[1:] >= b"\xa0":
            # The start of a surrogate, which Python keeps for `surrogatepass`: no character can
            # begin so.
            decided += kept.decode("utf-8", "replace")
        text = cut(decided)
        if text is not None:
            return text, used, True
    text = b"".join(pieces).decode("utf-8", "replace")
    trimmed = cut(text)
    return text if trimmed is None else trimmed, len(pieces), False


ALPHABET = ["a", "b", "ab", "é", "€", "𝄞", "\ufffd", " "]
byte_pieces = st.one_of(
    st.sampled_from([*(c.encode() for c in ALPHABET), b""]),
    st.binary(max_size=3),
    st.sampled_from([b"\xe2", b"\x82", b"\xac", b"\xf0\x9d", b"\x84\x9e", b"\xed\xa0", b"\xc0"]),
)
stops = st.lists(st.text("ab é€𝄞\ufffd", min_size=1, max_size=4), max_size=3)


@settings(max_examples=250, deadline=None)
@given(pieces=st.lists(byte_pieces, min_size=LENGTH, max_size=LENGTH), stop=stops)
def test_bytes_and_stop_strings(
    model: _core.Model, tokens: list[int], pieces: list[bytes], stop: list[str]
) -> None:
    text, used, stopped = reference(pieces, stop)
    result = generate(model, table(model, tokens, pieces), stop, repetition_penalty=100.0)
    assert result["text"] == text
    assert result["token_ids"] == tokens[:used]  # nothing is computed beyond the end
    assert result["reason"] == ("stop" if stopped else "length")


def test_text_is_held_back_until_it_is_certain(model: _core.Model, tokens: list[int]) -> None:
    """Text of each take: what may begin a stop string, or is half a character, waits."""
    pieces = [b"a", b"\xe2\x82", b"\xac", b"S", b"T", b"x", b"S", b"T", b"O", b"P", b"y", b"z"]
    engine = _core.Engine(
        model,
        OneAtATime(),
        LATENCY,
        kv_cache_bytes=8 * model.kv_block_bytes,
        token_bytes=table(model, tokens, pieces),
    )
    task = _core.TaskSpec(
        PROMPT, max_tokens=LENGTH, stop=["STOP"], ignore_eos=True, repetition_penalty=100.0
    )
    handle = engine.submit(task)
    got, ids = [], []
    while True:
        part = handle.take(30)
        got.append((len(part["token_ids"]), part["text"]))
        ids += part["token_ids"]
        if part["reason"] != "none":
            break
    engine.close()
    assert part["reason"] == "stop" and ids == tokens[:10]
    texts = []  # by token, where takes fell between tokens
    for count, text in got:
        texts += [""] * (count - 1) + [text] if count else []
    # One step takes 20 ms, so that each take sees one token.
    assert texts == ["a", "", "€", "", "", "STx", "", "", "", ""]


class OneAtATime(_core.Policy):
    """Waits 20 ms before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.due = 0.0

    def plan(self, view: _core.View) -> _core.StepPlan:
        if not view.live:
            return _core.StepPlan()
        if view.now < self.due:
            return _core.StepPlan(wake_at=self.due)
        slot = view.live[0]
        task = view.task(slot)
        if task.ready_to_decode():
            return _core.StepPlan(decode=[slot])
        return _core.StepPlan(prefill=[(slot, task.pending())])

    def commit(
        self, plan: _core.StepPlan, duration: float, token_slots: list[int], view: _core.View
    ) -> None:
        self.due = view.now + 0.02


def test_end_of_sequence_and_stop_ids(model: _core.Model, tokens: list[int]) -> None:
    pieces = [chr(ord("a") + i).encode() for i in range(LENGTH)]
    bytes_of = table(model, tokens, pieces)
    result = generate(
        model, bytes_of, [], repetition_penalty=100.0, stop_ids=[tokens[7], tokens[4]]
    )
    assert (result["text"], result["token_ids"]) == ("abcd", tokens[:5])
    assert result["reason"] == "stop"
    engine = _core.Engine(
        model,
        "orca",
        LATENCY,
        kv_cache_bytes=8 * model.kv_block_bytes,
        token_bytes=bytes_of,
        eos_ids=[tokens[3]],
    )
    task = _core.TaskSpec(PROMPT, max_tokens=LENGTH, repetition_penalty=100.0)
    result = engine.submit(task).wait(30)
    assert (result["text"], result["token_ids"]) == ("abc", tokens[:4])
    task = _core.TaskSpec(PROMPT, max_tokens=6, repetition_penalty=100.0, ignore_eos=True)
    result = engine.submit(task).wait(30)
    assert (result["text"], result["reason"]) == ("abcdef", "length")
    engine.close()


class Dies(_core.Policy):
    """Runs three steps and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def plan(self, view: _core.View) -> _core.StepPlan:
        (slot,) = view.live
        if self.steps == 3:
            raise RuntimeError("no more")
        if view.task(slot).ready_to_decode():
            return _core.StepPlan(decode=[slot])
        return _core.StepPlan(prefill=[(slot, len(PROMPT))])

    def commit(self, *_: Any) -> None:
        self.steps += 1


def test_text_that_waited_for_a_stop_string_is_told_when_the_engine_fails(
    model: _core.Model, tokens: list[int]
) -> None:
    engine = _core.Engine(
        model,
        Dies(),
        LATENCY,
        kv_cache_bytes=8 * model.kv_block_bytes,
        token_bytes=table(model, tokens, [b"a", b"b", b"EN"]),
    )
    spec = _core.TaskSpec(
        PROMPT, max_tokens=LENGTH, stop=["END"], ignore_eos=True, repetition_penalty=100.0
    )
    result = engine.submit(spec).wait(30)
    assert result["reason"] == "error" and result["token_ids"] == tokens[:3]
    assert result["text"] == "abEN"
