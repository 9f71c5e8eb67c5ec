"""The engine as Python sees it: handles, updates, faults, signals, many clients at once."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from random_policy import RandomPolicy

from slicellm import _core

LATENCY = _core.LatencyModel.from_decode_table([1.0])


@pytest.fixture(scope="module")
def model(tiny_llama: Path, device_name: str) -> _core.Model:
    return _core.Model.load(str(tiny_llama), device=device_name, threads=1)


def make_engine(model: _core.Model, policy: Any = "orca", **options: Any) -> _core.Engine:
    options = {"kv_cache_bytes": 64 * model.kv_block_bytes, **options}
    return _core.Engine(model, policy, LATENCY, **options)


@pytest.fixture
def engine(model: _core.Model) -> Iterator[_core.Engine]:
    engine = make_engine(model)
    yield engine
    engine.close()


def task(length: int = 8, **arguments: Any) -> _core.TaskSpec:
    prompt = arguments.pop("prompt", [1, 5, 9])
    return _core.TaskSpec(prompt, max_tokens=length, ignore_eos=True, **arguments)


class Asleep(_core.Policy):
    """Never runs a step."""

    def plan(self, view: _core.View) -> _core.StepPlan:
        return _core.StepPlan(wake_at=view.now + 0.01)


def test_results_and_times(engine: _core.Engine) -> None:
    before = engine.now()
    handle = engine.submit(task())
    result = handle.wait(30)
    assert handle.done and handle.id == result["id"]
    assert result["reason"] == "length" and result["error"] == "" and result["text"] == ""
    assert result["prompt_tokens"] == 3 and len(result["token_ids"]) == 8
    times = result["token_times"]
    assert before <= result["arrival"] <= times[0] and times == sorted(times)
    assert times[-1] == result["finish_time"] <= engine.now()
    assert handle.wait(0) == result  # again
    assert len(handle.take(0)["token_ids"]) == 8  # nothing was taken yet
    assert handle.take(0)["token_ids"] == [] and handle.take(0)["reason"] == "length"


def test_time_to_first_token_counts_from_the_scheduled_arrival(engine: _core.Engine) -> None:
    late = engine.now()
    past = engine.submit(task(1, arrival_s=0.0)).wait(30)
    assert past["arrival"] == 0.0 and past["token_times"][0] >= late
    begin = engine.now()
    future = engine.submit(task(1, arrival_s=begin + 0.05)).wait(30)
    assert future["arrival"] == begin + 0.05 <= future["token_times"][0]
    both = engine.submit_all([task(1, arrival_s=0.03), task(1)])
    first, second = both[1].wait(30), both[0].wait(30)
    assert second["arrival"] - first["arrival"] == pytest.approx(0.03)


def test_the_event_log_and_the_step_records(engine: _core.Engine) -> None:
    handles = [engine.submit(task(n)) for n in (1, 4, 7)]
    for handle in handles:
        handle.wait(30)
    events = engine.drain_events()
    for handle in handles:
        own = [(t, kind, value) for t, i, kind, value in events if i == handle.id]
        result = handle.wait(0)
        assert [kind for _, kind, _ in own] == [
            "arrive", "admit", "prefill", *["token"] * len(result["token_ids"]), "finish",
        ]  # fmt: skip
        assert [t for t, _, _ in own] == sorted(t for t, _, _ in own)
        assert [v for _, kind, v in own if kind == "token"] == result["token_ids"]
        assert own[2][2] == 3 and own[-1][2] == 2  # tokens of the chunk, length
    assert engine.drain_events() == []
    steps = engine.drain_steps()
    assert steps["prefill_tokens"].sum() == 9 and steps["decode_rows"].sum() == 0 + 3 + 6
    assert len(steps["start"]) == engine.stats()["steps"]
    assert (steps["duration"] > 0).all() and (steps["plan_seconds"] > 0).all()
    assert (steps["overhead_seconds"] > 0).all() and (steps["predicted"] > 0).all()
    assert engine.stats()["busy_seconds"] == pytest.approx(steps["duration"].sum())
    assert len(engine.drain_steps()["start"]) == 0


def test_events_may_be_left_out(model: _core.Model) -> None:
    engine = make_engine(model, record_events=False)
    engine.submit(task()).wait(30)
    assert engine.drain_events() == [] and len(engine.drain_steps()["start"]) == 0
    engine.close()


def test_an_engine_that_goes_away_on_its_own_thread(model: _core.Model) -> None:
    """As when the garbage collector finds it while a policy in Python runs."""
    engines: list[_core.Engine] = []

    class Forgets(_core.Policy):
        def plan(self, view: _core.View) -> _core.StepPlan:
            engines.clear()
            return _core.StepPlan(wake_at=view.now + 0.01)

    engines.append(make_engine(model, Forgets()))
    handle = engines[0].submit(task())
    assert handle.wait(30)["reason"] == "cancelled"


def test_all_tasks_are_accepted_or_none(model: _core.Model) -> None:
    engine = make_engine(model, Asleep(), max_queue=1 << 20)
    with pytest.raises(_core.ResourceError, match="class_name: got more than 65536"):
        engine.submit_all([task(class_name=f"{i}") for i in range(65537)])
    assert engine.wait_idle() is None and engine.stats()["live"] == 0
    engine.close()


def test_timeouts(model: _core.Model) -> None:
    engine = make_engine(model, Asleep())
    handle = engine.submit(task())
    begin = time.monotonic()
    assert handle.take(0.05)["reason"] == "none"
    with pytest.raises(_core.StateError, match=r"no end in time, expected its end within 0\.05 s"):
        handle.wait(0.05)
    assert time.monotonic() - begin >= 0.1
    assert engine.wait_updates(0.01) == []
    assert engine.cancel(handle.id)
    assert handle.wait(30)["reason"] == "cancelled"
    assert not engine.cancel(handle.id) and not engine.cancel(10**6)
    assert engine.wait_updates(5) == [handle.id]
    engine.wait_idle()
    engine.close()


def test_updates_come_once_and_end_with_the_handle(engine: _core.Engine) -> None:
    kept, dropped = engine.submit(task()), engine.submit(task())
    kept.wait(30), dropped.wait(30)
    del dropped
    gc.collect()
    assert engine.wait_updates(1) == [kept.id]
    assert engine.wait_updates(0) == []
    engine.close()
    with pytest.raises(_core.StateError):
        engine.wait_updates(1)


def test_closing_answers_everyone(model: _core.Model) -> None:
    engine = make_engine(model, Asleep())
    handles = engine.submit_all([task(), task(arrival_s=1000.0)])
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda h=h: results.append(h.wait()["reason"])) for h in handles
    ]
    threads.append(threading.Thread(target=lambda: results.append(engine.wait_updates(30))))
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    engine.close()
    for thread in threads:
        thread.join(10)
    assert results.count("cancelled") == 2 and len(results) == 3
    engine.close()
    with pytest.raises(_core.StateError, match="closed"):
        engine.submit(task())
    with pytest.raises(_core.StateError, match="closed"):
        engine.check_integrity()
    assert engine.stats()["live"] == 0


def test_deadlines_end_tasks_that_ask_for_it(model: _core.Model) -> None:
    engine = make_engine(model, Asleep())
    result = engine.submit(task(deadline_ms=30, stop_at_deadline=True)).wait(30)
    assert result["reason"] == "deadline" and result["token_ids"] == []
    assert 0.03 <= result["finish_time"] - result["arrival"] < 5
    engine.check_integrity()
    engine.close()


def test_what_can_never_fit_is_rejected_with_a_sentence(model: _core.Model) -> None:
    engine = make_engine(model, kv_cache_bytes=2 * model.kv_block_bytes, max_context=100)
    result = engine.submit(task(31)).wait(30)
    assert result["reason"] == "rejected" and result["token_ids"] == []
    assert result["error"] == (
        "prompt + max_tokens: got 34 tokens, expected at most what 2 KV blocks of 16 tokens hold"
    )
    assert engine.submit(task(98)).wait(30)["error"].endswith("at most 100 (max_context)")
    assert engine.submit(task(30)).wait(30)["reason"] == "length"
    kinds = Counter(kind for _, _, kind, _ in engine.drain_events())
    assert kinds["reject"] == 2 and kinds["finish"] == 1 and kinds["arrive"] == 3
    engine.close()


def test_a_full_queue_refuses(model: _core.Model) -> None:
    engine = make_engine(model, Asleep(), max_queue=2)
    engine.submit(task())
    with pytest.raises(_core.ResourceError, match="queue: got 3 live tasks"):
        engine.submit_all([task(), task()])
    engine.submit(task())
    engine.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_cache_bytes", -1),
        ("kv_cache_bytes", 1),
        ("kv_cache_bytes", 2**63),
        ("kv_cache_bytes", 1.5),
        ("host_kv_bytes", -2),
        ("max_rows", 0),
        ("max_rows", True),
        ("max_rows", 2**31),
        ("max_step_tokens", 0),
        ("max_step_tokens", 63),
        ("max_context", -1),
        ("max_context", 513),
        ("max_queue", 0),
        ("max_queue", "9"),
        ("token_bytes", "text"),
        ("token_bytes", ["text"]),
        ("token_bytes", b"bytes"),
        ("token_bytes", 3),
        ("eos_ids", [-1]),
        ("eos_ids", "2"),
        ("record_events", 1),
    ],
)
def test_bad_options_are_named(model: _core.Model, field: str, value: Any) -> None:
    with pytest.raises(_core.InvalidArgument) as caught:
        make_engine(model, **{field: value})
    assert caught.value.field == field


def test_bad_calls(engine: _core.Engine, model: _core.Model) -> None:
    with pytest.raises(TypeError, match="max_row"):
        make_engine(model, max_row=3)
    with pytest.raises(_core.InvalidArgument, match="policy"):
        make_engine(model, "no such policy")
    with pytest.raises(_core.InvalidArgument) as caught:
        engine.submit(task(prompt=[model.spec["vocab"]]))
    assert caught.value.field == "prompt"
    with pytest.raises(TypeError):
        engine.submit([1, 2, 3])
    assert engine.stats()["submitted"] == 0


class Faulty(_core.Policy):
    """Raises after some plans."""

    def __init__(self, plans: int) -> None:
        super().__init__()
        self.left = plans

    def plan(self, view: _core.View) -> _core.StepPlan:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of ideas")
        slot = view.live[0]
        if view.task(slot).ready_to_decode():
            return _core.StepPlan(decode=[slot])
        return _core.StepPlan(prefill=[(slot, view.task(slot).pending())])


def test_a_policy_that_raises_fails_its_tasks_and_says_so(model: _core.Model) -> None:
    engine = make_engine(model, Faulty(3))
    handles = engine.submit_all([task(), task(), task(arrival_s=500.0)])
    for handle in handles:
        result = handle.wait(30)
        assert result["reason"] == "error" and "out of ideas" in result["error"]
    assert len(handles[0].wait(0)["token_ids"]) == 3
    for call in (lambda: engine.submit(task()), engine.wait_idle, engine.inspect_policy):
        with pytest.raises(_core.StateError, match="out of ideas"):
            call()
    assert engine.stats()["free_blocks"] == 64
    engine.close()


def test_an_engine_dies_with_its_last_reference(model: _core.Model) -> None:
    """Without close(), with tasks live and a policy that needs the GIL."""
    policy = RandomPolicy(1)
    gone = weakref.ref(policy)
    engine = make_engine(model, policy)
    handles = engine.submit_all([task(200) for _ in range(5)])
    del engine, policy
    gc.collect()
    assert {h.wait(30)["reason"] for h in handles} <= {"cancelled", "length"}
    del handles
    gc.collect()
    assert gone() is None


def test_engines_may_share_a_model(tiny_llama: Path, device_name: str) -> None:
    """Two loops and a forward pass from a third thread, all at once on two device threads."""
    shared = _core.Model.load(str(tiny_llama), device=device_name, threads=2)
    engines = [make_engine(shared) for _ in range(2)]
    prompts = [[1, 5 + i, 9] for i in range(40)]
    handles = [[engine.submit(task(20, prompt=prompt)) for prompt in prompts] for engine in engines]
    logits = [shared.forward(prompt)[-1].argmax() for prompt in prompts]
    outputs = [[h.wait(60)["token_ids"] for h in each] for each in handles]
    assert outputs[0] == outputs[1]
    assert [ids[0] for ids in outputs[0]] == logits
    for engine in engines:
        engine.close()


def run_python(code: str, *arguments: str, interrupt_after: float = 0) -> tuple[int, str]:
    """Exit code and output of a Python program; with a Ctrl-C once it has printed "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdout is not None
    try:
        if interrupt_after:
            assert process.stdout.readline() == "ready\n"
            time.sleep(interrupt_after)
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output


# A shell's background job inherits an ignored SIGINT, and Python then leaves it ignored.
SETUP = """
import signal, sys
from slicellm import _core
signal.signal(signal.SIGINT, signal.default_int_handler)
class Asleep(_core.Policy):
    def plan(self, view):
        return _core.StepPlan(wake_at=view.now + 0.01)
model = _core.Model.load(sys.argv[1], threads=1)
engine = _core.Engine(model, Asleep(), _core.LatencyModel.from_decode_table([1.0]),
                      kv_cache_bytes=8 * model.kv_block_bytes)
handle = engine.submit(_core.TaskSpec([1, 2], max_tokens=9))
"""


@pytest.mark.parametrize(
    "call", ["handle.wait()", "handle.take()", "engine.wait_idle()", "engine.wait_updates(1e9)"]
)
def test_ctrl_c_ends_a_wait(tiny_llama: Path, call: str) -> None:
    code = SETUP + (
        "print('ready', flush=True)\n"
        f"try:\n    {call}\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    assert run_python(code, str(tiny_llama), interrupt_after=0.2) == (0, "interrupted\n")


def test_the_interpreter_may_end_with_an_open_engine(tiny_llama: Path) -> None:
    code = SETUP + "import builtins\nbuiltins.kept = engine\nprint('end')\n"
    assert run_python(code, str(tiny_llama)) == (0, "end\n")


@pytest.mark.cpu_only  # of handles and threads; device cuda has its own soak, test/ops/test_soak.py
def test_many_threads_and_asyncio_clients_lose_nothing(model: _core.Model) -> None:
    """2,000 tasks from 8 threads and an event loop with 100 coroutines; some are cancelled."""
    alone = make_engine(model)
    prompts = [[1, 5 + i % 50, i % 7] for i in range(350)]
    expected = [alone.submit(task(6, prompt=p)).wait(30)["token_ids"] for p in prompts]
    alone.close()

    engine = make_engine(model, "orca", max_rows=16)
    outcomes: list[tuple[int, str]] = []
    failures: list[str] = []

    def judge(number: int, result: dict[str, Any], ids: list[int], may_cancel: bool) -> None:
        outcomes.append((result["id"], result["reason"]))
        whole = expected[number % len(expected)]
        good = ids == whole if result["reason"] == "length" else ids == whole[: len(ids)]
        if not good or (result["reason"] != "length" and not may_cancel):
            failures.append(f"{number}: {result['reason']} {ids} {whole}")

    def client(first: int) -> None:
        for number in range(first, first + 125):
            handle = engine.submit(task(6, prompt=prompts[number % len(prompts)]))
            cancel = number % 5 == 0
            if number % 3 == 0 or cancel:  # stream, perhaps cancelling after a token
                ids: list[int] = []
                while True:
                    part = handle.take()
                    ids += part["token_ids"]
                    if part["reason"] != "none":
                        break
                    if cancel:
                        engine.cancel(handle.id)
                judge(number, part, ids, cancel)
            else:
                result = handle.wait()
                judge(number, result, result["token_ids"], False)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        waiting: dict[int, asyncio.Event] = {}

        def dispatch() -> None:  # one thread for all coroutines
            try:
                while True:
                    for i in engine.wait_updates(0.5):
                        loop.call_soon_threadsafe(lambda i=i: waiting[i].set())
            except _core.StateError:
                pass

        async def coroutine(first: int) -> None:
            for number in range(first, first + 10):
                handle = engine.submit(task(6, prompt=prompts[number % len(prompts)]))
                event = waiting[handle.id] = asyncio.Event()
                event.set()
                ids: list[int] = []
                cancel = number % 7 == 0
                while True:
                    await event.wait()
                    event.clear()
                    part = handle.take(0)
                    ids += part["token_ids"]
                    if part["reason"] != "none":
                        break
                    if cancel and ids:
                        engine.cancel(handle.id)
                judge(number, part, ids, cancel)

        dispatcher = threading.Thread(target=dispatch)
        dispatcher.start()
        await asyncio.gather(*(coroutine(1000 + 10 * i) for i in range(100)))
        await asyncio.to_thread(lambda: [t.join() for t in threads])
        engine.wait_idle()
        engine.check_integrity()
        engine.close()
        dispatcher.join(10)

    threads = [threading.Thread(target=client, args=(125 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    asyncio.run(asyncio.wait_for(serve(), 120))
    assert failures == []
    assert len(outcomes) == len({i for i, _ in outcomes}) == 2000
    stats = engine.stats()
    assert stats["finished"] == stats["submitted"] == 2000 and stats["live"] == 0
    assert stats["free_blocks"] == stats["total_blocks"]
    finished = [i for _, i, kind, _ in engine.drain_events() if kind == "finish"]
    assert sorted(finished) == sorted(i for i, _ in outcomes)
