"""Every call of the CUDA runtime fails once, at the start, in the middle and at the end of what an
engine does: the error is a typed one that names the call, every task ends, nothing is leaked, and
the next engine works."""

from __future__ import annotations

import gc
import re
from typing import Any

import numpy as np
import pytest
from emulator import Emulator
from ops_module import ops
from random_policy import RandomPolicy
from reference import models, tiny

from slicellm import _core

if ops.cuda != "simt":
    pytest.skip("calls can be made to fail in the emulator only", allow_module_level=True)

LONG = 300  # tokens of a prompt
LATENCY = _core.LatencyModel.from_decode_table([1.0])
ALLOCATING = {"cudaMalloc", "cudaMallocHost", "cudaMallocManaged"}
FREEING = {
    "cudaEventDestroy",
    "cudaFree",
    "cudaFreeHost",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaStreamDestroy",
}
FUNCTIONS = [
    *sorted(ALLOCATING),
    *sorted(FREEING),
    "cudaEventCreateWithFlags",
    "cudaEventElapsedTime",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaFuncSetAttribute",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaMemGetInfo",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags",
    "cudaStreamEndCapture",
    "cudaStreamAttachMemAsync",
    "cudaStreamSynchronize",
    "cudaStreamWaitEvent",
    "launch",
]
# What fails while a step is recorded costs the record alone: the step is launched without it.
RECORDING = {"cudaGraphInstantiate", "cudaStreamBeginCapture", "cudaStreamEndCapture"}
WHILE_RECORDING = {"cudaFuncSetAttribute", "cudaSetDevice", "launch"}
# Of GPUs that share the host's memory.
INTEGRATED = {"cudaMallocManaged", "cudaStreamAttachMemAsync"}
# What a call is named in an error where it is part of something with a name of its own.
NAMES = {
    "cudaGetDeviceCount": "device",
    "cudaEventCreateWithFlags": "cudaEventCreate",
    "launch": "cudaGetLastError",
}


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture(autouse=True)
def _small_gpu(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.setenv("SLICELLM_SIMT_MEMORY", str(20 << 20))
    monkeypatch.setenv("SLICELLM_SIMT_INTEGRATED", "1" if function in INTEGRATED else "0")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = {**models.FAMILIES["llama"], "max_position_embeddings": 2 * LONG}
    directory = tmp_path_factory.mktemp("model")
    return str(tiny.write_directory(directory, config, tiny.weights(config)))


def task(index: int, prompt_len: int, **settings: Any) -> _core.TaskSpec:
    prompt = np.random.default_rng(index).integers(3, tiny.VOCAB, prompt_len).tolist()
    return _core.TaskSpec(prompt=prompt, max_tokens=4, ignore_eos=True, seed=index, **settings)


def serve(path: str) -> list[dict[str, Any]]:
    """The results of two engines on a model loaded for them: one takes what memory there is for KV
    and has a context that attention splits; one has so little that KV goes to the host and back,
    and tasks whose tokens the GPU and the host draw."""
    model = _core.Model.load(path, device="cuda", dtype="float16", threads=1)
    few = 5 * model.kv_block_bytes
    settings: list[dict[str, Any]] = [{}, {"temperature": 0.8, "top_p": 0.9}, {"logprobs": 1}, {}]
    results = []
    for tasks, options in (
        ([task(9, LONG)], {}),
        (
            [task(i, 14 + 4 * i, **s) for i, s in enumerate(settings)],
            {"kv_cache_bytes": few, "host_kv_bytes": few},
        ),
    ):
        engine = _core.Engine(model, RandomPolicy(3), LATENCY, **options)
        try:
            results += [handle.wait(600) for handle in engine.submit_all(tasks)]
        finally:
            engine.close()
    return results


def tokens_of(results: list[dict[str, Any]]) -> list[list[int]]:
    assert [(r["reason"], r["error"]) for r in results] == [("length", "")] * len(results)
    return [result["token_ids"] for result in results]


Clean = tuple[list[list[int]], dict[str, int]]


@pytest.fixture(scope="module")
def clean_runs() -> dict[bool, Clean]:
    return {}


@pytest.fixture
def clean(function: str, path: str, emulator: Emulator, clean_runs: dict[bool, Clean]) -> Clean:
    """The tokens of a run without faults on this kind of GPU, and how often it calls each
    function."""
    integrated = function in INTEGRATED
    if integrated not in clean_runs:
        emulator.fail("", 0)
        tokens = tokens_of(serve(path))
        gc.collect()
        clean_runs[integrated] = tokens, {name: emulator.calls(name) for name in FUNCTIONS}
    return clean_runs[integrated]


def places(calls: int) -> list[int]:
    return sorted({1, 2, calls // 2, calls} & set(range(1, calls + 1)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_call_that_fails(function: str, path: str, emulator: Emulator, clean: Clean) -> None:
    tokens, calls = clean
    assert calls[function] > 0
    gc.collect()
    before = emulator.held()
    for nth in places(calls[function]):
        emulator.fail(function, nth)
        sentence = ""
        try:
            results = serve(path)
        except _core.Error as error:
            sentence = str(error)
            kind = _core.ResourceError if function in ALLOCATING else _core.Error
            assert isinstance(error, kind)
        else:
            sentence = next((r["error"] for r in results if r["error"]), "")
            assert {r["reason"] for r in results} <= {"length", "error"}
        assert emulator.calls(function) >= nth, "the call was not reached"
        emulator.fail("", 0)
        unharmed = sentence == "" and tokens_of(results) == tokens
        results = []
        gc.collect()
        assert emulator.held() == before, (nth, sentence)
        closing = function == "cudaStreamSynchronize" and nth == calls[function]
        if function in FREEING or closing:  # nobody hears what it says, but a later call may tell
            assert sentence == "" or "unknown error" in sentence, nth
        elif function in ALLOCATING:
            assert "out of memory" in sentence, nth
        elif function in RECORDING:
            assert unharmed, (nth, sentence)
        elif function in WHILE_RECORDING and unharmed:
            pass
        else:
            assert re.match(NAMES.get(function, function), sentence), (nth, sentence)
            assert "unknown error" in sentence
    assert tokens_of(serve(path)) == tokens
