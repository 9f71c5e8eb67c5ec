"""What the engine holds of a GPU's memory: within vram_limit at all times and within gpu_mem_ratio
once it has its KV, also when tasks want more, and as much as its statistics say."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from emulator import Emulator
from ops_module import ops
from reference import models, tiny

import slicellm
from slicellm import _core

if ops.cuda != "simt":
    pytest.skip("what is held is known of the emulator", allow_module_level=True)

MEMORY = 10 << 20  # of the emulated GPU
LATENCY = _core.LatencyModel.from_decode_table([1.0])
STEP, CONTEXT = 32, 8192  # tokens of the largest step, of the longest task


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, emulator: Emulator) -> Iterator[None]:
    monkeypatch.setenv("SLICELLM_SIMT_MEMORY", str(MEMORY))
    gc.collect()
    assert emulator.held().device_bytes == 0
    emulator.fail("", 0)
    yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = {**models.FAMILIES["llama"], "max_position_embeddings": CONTEXT}
    directory = tmp_path_factory.mktemp("model")
    return str(tiny.write_directory(directory, config, tiny.weights(config)))


def load(path: str, **options: Any) -> _core.Model:
    return _core.Model.load(path, device="cuda", dtype="float16", threads=1, **options)


def make_engine(model: _core.Model, **options: Any) -> _core.Engine:
    options = {"max_rows": 4, "max_step_tokens": STEP, "host_kv_bytes": 0, **options}
    return _core.Engine(model, "vllm", LATENCY, **options)


def run(engine: _core.Engine, tasks: int, prompt: int, output: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    specs = [
        _core.TaskSpec(
            prompt=rng.integers(3, tiny.VOCAB, prompt).tolist(), max_tokens=output, ignore_eos=True
        )
        for _ in range(tasks)
    ]
    results = [handle.wait(600) for handle in engine.submit_all(specs)]
    engine.check_integrity()
    assert [(r["reason"], r["error"]) for r in results] == [("length", "")] * tasks
    return [result["token_ids"] for result in results]


@pytest.fixture(scope="module")
def weights(path: str, emulator: Emulator) -> int:
    """Bytes that the loaded model holds."""
    model = load(path)
    held = emulator.held().device_bytes
    assert model.device_bytes == held > model.weight_bytes
    return held


def test_limit_is_kept(path: str, weights: int, emulator: Emulator) -> None:
    limit = weights + (3 << 20)
    model = load(path, vram_limit=limit)
    engine = make_engine(model)
    run(engine, 4, 70, 8)
    stats = engine.stats()
    assert stats["device_bytes"] == emulator.held().device_bytes == model.device_bytes
    engine.close()
    assert limit * 0.7 < emulator.peak() <= limit
    del engine, stats
    gc.collect()
    assert model.device_bytes < emulator.peak()


def test_tasks_that_outgrow_the_limit(path: str, weights: int, emulator: Emulator) -> None:
    """They take turns, by the policy's rule, with the tokens that they have with more memory."""
    with_room = make_engine(load(path))
    expected = run(with_room, 4, 30, 90)
    with_room.close()
    del with_room
    gc.collect()
    emulator.fail("", 0)
    limit = weights + (3 << 20)
    model = load(path, vram_limit=limit)
    engine = make_engine(model, kv_cache_bytes=14 * model.kv_block_bytes)
    assert run(engine, 4, 30, 90) == expected
    assert engine.stats()["total_blocks"] == 14  # of the 32 that four tasks of 120 tokens want
    engine.close()
    assert emulator.peak() <= limit


def test_weights_that_do_not_fit(path: str, weights: int, emulator: Emulator) -> None:
    with pytest.raises(
        _core.ResourceError,
        match=rf"vram_limit: got {weights - 1} bytes, of which \d+ are held, expected room for \d+ "
        r"more \(weights\)",
    ):
        load(path, vram_limit=weights - 1)
    gc.collect()
    assert emulator.held().device_bytes == 0
    load(path, vram_limit=weights)


def test_no_room_for_a_block(path: str, weights: int) -> None:
    model = load(path, vram_limit=weights + 4096)
    with pytest.raises(
        _core.ResourceError,
        match=rf"kv_cache_bytes: got \d+ free of {MEMORY} bytes at gpu_mem_ratio 0.9 and {weights} "
        rf"held at vram_limit {weights + 4096}, expected room for a KV block of \d+ bytes beside",
    ):
        make_engine(model)
    with pytest.raises(_core.ResourceError, match="vram_limit: got .* more \\(kv_cache\\)"):
        make_engine(model, kv_cache_bytes=1 << 20)


def test_workspace_that_does_not_fit(path: str, weights: int, emulator: Emulator) -> None:
    """KV of a given size may leave no room for a step: its tasks end with the error, nothing leaks,
    and a smaller engine works."""
    model = load(path, vram_limit=weights + 200 * 2560)
    engine = make_engine(model, kv_cache_bytes=199 * model.kv_block_bytes)
    held = emulator.held()
    handles = [engine.submit(_core.TaskSpec(prompt=[3, 4, 5], max_tokens=4)) for _ in range(3)]
    results = [handle.wait(60) for handle in handles]
    assert {r["reason"] for r in results} == {"error"}
    assert all("vram_limit: got" in r["error"] and "more (" in r["error"] for r in results)
    engine.close()
    del engine, handles
    gc.collect()
    assert emulator.held().device_bytes < held.device_bytes
    engine = make_engine(model, kv_cache_bytes=8 * model.kv_block_bytes)
    run(engine, 2, 8, 4)
    engine.close()


def test_warmed_up(path: str, emulator: Emulator) -> None:
    """What steps take on their way is there before the first task."""
    model = load(path)
    seen: list[tuple[int, int]] = []

    def calls() -> list[int]:
        names = ("cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost")
        return [emulator.calls(name) for name in names]

    engine = make_engine(
        model,
        kv_cache_bytes=16 * model.kv_block_bytes,
        warm_up=True,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 5) for i in range(6)]  # a prefill, 1, 2 and twice 4 rows
    before = calls()
    run(engine, 4, 30, 5)
    assert calls() == before
    engine.close()
    cold = make_engine(load(path), kv_cache_bytes=16 * model.kv_block_bytes)
    before = calls()
    run(cold, 4, 30, 5)
    assert calls() != before  # as it is otherwise
    cold.close()


@pytest.mark.parametrize("ratio", [0.7, 0.9, None])
def test_ratio(path: str, emulator: Emulator, ratio: float | None) -> None:
    engine = make_engine(load(path, gpu_mem_ratio=ratio))
    run(engine, 4, 70, 8)
    engine.close()
    share = emulator.peak() / MEMORY
    assert (ratio or 0.9) - 0.2 < share <= (ratio or 0.9)


def test_ratio_that_weights_exceed(path: str, weights: int) -> None:
    with pytest.raises(_core.ResourceError, match="at gpu_mem_ratio 0.01, expected room"):
        make_engine(load(path, gpu_mem_ratio=0.01))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vram_limit": 0}, "vram_limit: got 0, expected a size such as"),
        ({"vram_limit": "lots"}, "vram_limit: got 'lots'"),
        ({"vram_limit": 1.5}, "vram_limit: got 1.5"),
        ({"gpu_mem_ratio": 0}, "gpu_mem_ratio: got 0, expected a share above 0, at most 1"),
        ({"gpu_mem_ratio": 1.1}, "gpu_mem_ratio: got 1.1"),
        ({"gpu_mem_ratio": float("nan")}, "gpu_mem_ratio: got nan"),
    ],
)
def test_wrong_values(path: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(slicellm.InvalidArgument, match=sentence):
        slicellm.load(path, device="cuda", **options)


def test_sizes_as_texts(path: str) -> None:
    with pytest.raises(slicellm.ResourceError, match="vram_limit: got 65536 bytes"):
        slicellm.load(path, device="cuda", vram_limit="64KiB")


def test_nothing_pinned_is_left_of_the_load(path: str, emulator: Emulator) -> None:
    model = load(path)
    assert emulator.calls("cudaMallocHost") > 0 and emulator.held().pinned_bytes == 0
    assert emulator.calls("cudaMallocManaged") == 0
    del model


def test_gpu_that_shares_the_hosts_memory(
    path: str, weights: int, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are packed where the GPU reads them; there is nothing to copy."""
    model = load(path)
    copies = emulator.calls("cudaMemcpyAsync")
    engine = make_engine(model, kv_cache_bytes=16 * model.kv_block_bytes)
    expected = run(engine, 3, 40, 6)
    engine.close()
    del engine, model
    gc.collect()
    monkeypatch.setenv("SLICELLM_SIMT_INTEGRATED", "1")
    emulator.fail("", 0)
    model = load(path)
    assert emulator.calls("cudaMallocHost") == 0
    assert emulator.calls("cudaMallocManaged") == emulator.calls("cudaStreamAttachMemAsync") > 0
    assert emulator.calls("cudaMemcpyAsync") <= 2 < copies  # the rotary table's
    engine = make_engine(model)  # half of what is free, and no more
    assert run(engine, 3, 40, 6) == expected
    engine.close()
    assert engine.stats()["total_blocks"] * model.kv_block_bytes <= (MEMORY - weights) / 2
