"""The Python package: streams, and clients in threads and under asyncio."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from typing import Any

import pytest
from api_cases import LATENCY, LONG, PROMPT, finishes, greedy

from slicellm import Engine, Model, Result, Task


# ---- streams -------------------------------------------------------------------------------------
def test_stream_is_generate(engine: Engine) -> None:
    task = Task(PROMPT, max_tokens=40, ignore_eos=True, logprobs=0)
    whole = engine.generate(task)
    stream = engine.stream(task)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [i for piece in pieces for i in piece.token_ids] == whole.token_ids
    assert [x for piece in pieces for x in piece.logprobs or []] == whole.logprobs
    assert stream.result().text == whole.text
    assert list(stream) == []


def test_leaving_a_loop_cancels(engine: Engine) -> None:
    for _ in engine.stream(LONG):
        break
    gc.collect()
    engine.wait_idle()
    with engine.stream(LONG) as stream:
        next(iter(stream))
    assert stream.result().finish_reason == "cancelled"
    stream = engine.stream(LONG)
    stream.close()
    stream.close()
    assert stream.result().finish_reason == "cancelled"
    assert sorted(finishes(engine).values()) == [1, 1, 1]
    assert engine.stats()["live"] == 0


def test_an_exception_in_a_loop_cancels(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), engine.stream(LONG) as stream:
        for _ in stream:
            raise ZeroDivisionError
    assert stream.result().finish_reason == "cancelled"


def test_cancel(engine: Engine) -> None:
    stream = engine.stream(LONG)
    next(stream)
    assert engine.cancel(stream.id)
    result = stream.result()
    assert result.finish_reason == "cancelled" and 1 <= len(result.token_ids) < 100_000
    assert not engine.cancel(stream.id) and not engine.cancel(10**9)


# ---- clients in threads --------------------------------------------------------------------------
def test_threads_share_an_engine(engine: Engine) -> None:
    model = engine.model
    expected = {k: greedy(model, [1, k], 5) for k in range(8)}
    wrong: list[Any] = []

    def client(k: int) -> None:
        for n in range(20):
            if n % 4 == 3:
                next(engine.stream(LONG))
                continue
            result = engine.generate([1, k], max_tokens=5, ignore_eos=True)
            if result.token_ids != expected[k]:
                wrong.append(result)

    clients = [threading.Thread(target=client, args=(k,)) for k in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    gc.collect()
    engine.wait_idle()
    assert not wrong
    assert set(finishes(engine).values()) == {1}
    assert engine.stats()["submitted"] == engine.stats()["finished"] == 160


def test_two_thousand_tasks(patient_model: Model) -> None:
    """8 threads and 8 asyncio clients generate, stream and cancel on one engine: none is lost."""
    model = patient_model
    expected = {k: greedy(model, [1, k], 12) for k in range(8)}
    engine = Engine(model, "slice", latency=LATENCY, record_events=True, max_rows=32)
    outcomes: list[tuple[str, bool]] = []  # finish reason, tokens are a prefix of the right ones

    def note(k: int, result: Result) -> None:
        right = result.token_ids == expected[k][: len(result.token_ids)]
        outcomes.append((result.finish_reason, right))

    def task(rng: random.Random, k: int, cancelled: bool) -> Task:
        tokens = 100_000 if cancelled else rng.randint(1, 12)
        return Task([1, k], rng.choice([1, 100]), tpot_ms=50, max_tokens=tokens, ignore_eos=True)

    def thread_client(number: int) -> None:
        rng = random.Random(number)
        for n in range(125):
            k, kind = rng.randrange(8), n % 4
            made = task(rng, k, kind == 3)
            if kind == 0:
                note(k, engine.generate(made))
                continue
            stream = engine.stream(made)
            if kind == 3:
                for _ in range(rng.randint(0, 3)):
                    next(stream)
                stream.close()
            elif kind == 2:
                assert sum(len(p.token_ids) for p in stream) == made.max_tokens
            note(k, stream.result())

    async def asyncio_client(number: int) -> None:
        rng = random.Random(100 + number)
        for n in range(125):
            k, kind = rng.randrange(8), n % 4
            made = task(rng, k, kind == 3)
            if kind < 2:
                note(k, await engine.agenerate(made))
                continue
            stream = engine.astream(made)
            async for _ in stream:
                if kind == 3 and rng.random() < 0.5:
                    await stream.aclose()
            note(k, stream.result())

    async def asyncio_clients() -> None:
        await asyncio.gather(*(asyncio_client(n) for n in range(8)))

    threads = [threading.Thread(target=thread_client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    asyncio.run(asyncio_clients())
    for thread in threads:
        thread.join()
    engine.wait_idle()
    stats = engine.stats()
    assert len(outcomes) == stats["submitted"] == stats["finished"] == 2000
    assert all(right for reason, right in outcomes if reason == "length")
    assert Counter(reason for reason, _ in outcomes) == {"length": 1504, "cancelled": 496}
    assert len(finishes(engine)) == 2000 and set(finishes(engine).values()) <= {1}
    engine.core.check_integrity()
    engine.close()


# ---- asyncio -------------------------------------------------------------------------------------
def test_asyncio_clients(engine: Engine) -> None:
    expected = {k: greedy(engine.model, [1, k], 8) for k in range(10)}

    async def one(k: int) -> bool:
        if k % 3 == 0:
            tokens = []
            async for piece in engine.astream([1, k % 10], max_tokens=8, ignore_eos=True):
                tokens += piece.token_ids
        else:
            tokens = (await engine.agenerate([1, k % 10], max_tokens=8, ignore_eos=True)).token_ids
        return tokens == expected[k % 10]

    async def clients() -> list[bool]:
        return await asyncio.gather(*(one(k) for k in range(200)))

    assert all(asyncio.run(clients()))
    assert all(asyncio.run(clients()))  # in another event loop
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("slicellm-updates") == 1


def test_cancelled_asyncio_task_cancels(engine: Engine) -> None:
    async def main() -> None:
        waiting = asyncio.create_task(engine.agenerate(LONG))
        while engine.stats()["steps"] < 3:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.agenerate(LONG), 0.05)

    asyncio.run(main())
    engine.wait_idle()
    assert set(finishes(engine).values()) == {1}
    assert engine.stats()["live"] == 0


def test_leaving_an_async_loop_cancels(engine: Engine) -> None:
    async def main() -> str:
        async for _ in engine.astream(LONG):
            break
        async with engine.astream(LONG) as stream:
            async for _ in stream:
                break
        return stream.result().finish_reason

    assert asyncio.run(main()) == "cancelled"
    gc.collect()
    engine.wait_idle()
    assert set(finishes(engine).values()) == {1}


def test_closing_the_engine_ends_asyncio_clients(patient_model: Model) -> None:
    engine = Engine(patient_model, "orca", latency=LATENCY)

    async def main() -> list[str]:
        waiting = [asyncio.create_task(engine.agenerate(LONG)) for _ in range(5)]
        stream = engine.astream(LONG)
        await stream.__anext__()
        await asyncio.sleep(0.01)  # all have submitted their tasks
        engine.close()
        assert [piece async for piece in stream][1:] == []
        return [(await task).finish_reason for task in waiting]

    assert asyncio.run(main()) == ["cancelled"] * 5
    assert not engine._updates._waiters


def test_stream_dropped_in_a_locked_section(engine: Engine) -> None:
    """The garbage collector may run anywhere, also where its thread holds the lock of updates."""

    async def main() -> None:
        stream = engine.astream(LONG)

        def drop() -> None:
            with engine._updates._lock:
                stream.close()

        thread = threading.Thread(target=drop, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    asyncio.run(main())
    engine.wait_idle()
    assert set(finishes(engine).values()) == {1}


def test_event_loop_is_not_blocked(engine: Engine) -> None:
    """While tasks run, the loop goes on."""

    async def main() -> None:
        waiting = [asyncio.create_task(engine.agenerate(LONG)) for _ in range(16)]
        while engine.stats()["steps"] < 100:
            await asyncio.sleep(0.001)
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(main())
