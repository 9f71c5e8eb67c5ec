"""Models in parts on device "cuda" (emulated, or a GPU with --device cuda) and on the CPU: near
exact arithmetic, and the same results however a task is scheduled."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import Emulator
from ops_module import assert_same_bits, ops
from random_policy import RandomPolicy
from reference import models, tiny
from reference.layers import Weights
from test_whole_models import BOUND, IDS, LATENCY, STEPS, assert_near, run, tasks

from slicellm import _core

FAMILIES = list(models.FAMILIES)
SPLITS = ["cuda=1,cpu=1", "cpu=1,cuda=1"]

Load = Callable[..., _core.Model]


@pytest.fixture(autouse=True)
def needs_cuda(request: pytest.FixtureRequest) -> None:
    if ops.cuda != "simt" and request.config.getoption("--device") != "cuda":
        pytest.skip("device cuda is neither emulated (SLICELLM_SIMT) nor asked for (--device cuda)")


def config_of(family: str, layers: int) -> dict[str, Any]:
    config = models.FAMILIES[family]
    key = "num_layers" if "num_layers" in config else "num_hidden_layers"
    return {**config, key: layers}


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """load(family, device, layers, dtype, **options)"""
    directory = tmp_path_factory.mktemp("families")

    def get(
        family: str, device: str, layers: int = 2, dtype: str = "float16", **options: Any
    ) -> _core.Model:
        path = directory / f"{family}-{layers}"
        if not path.exists():
            config = config_of(family, layers)
            tiny.write_directory(path, config, tiny.weights(config))
        return _core.Model.load(
            str(path), device=device, dtype=dtype, activation="float32", threads=1, **options
        )

    return get


@pytest.mark.parametrize(
    ("layers", "split"),
    [*((2, split) for split in SPLITS), (4, "cuda=1,cpu=2,cuda=1"), (4, "cpu=1,cuda=2,cpu=1")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_near_reference(family: str, layers: int, split: str, load: Load) -> None:
    """Against numpy float64 on the float16-rounded weights."""
    config = config_of(family, layers)
    tensors = {
        name: value.astype(np.float16) if models.is_linear(name, value) else value
        for name, value in models.with_own_head(config, tiny.weights(config)).items()
    }
    expected = models.logits(config, Weights(tensors), IDS, tiny.PROMPT)
    got = load(family, split, layers).forward(IDS, STEPS, tiny.PROMPT)
    assert_near(got, expected, BOUND["float16"])


@pytest.mark.parametrize("family", ["llama", "chatglm1"])
def test_parts_on_one_gpu_give_its_bits(family: str, load: Load) -> None:
    expected = load(family, "cuda").forward(IDS, STEPS, tiny.PROMPT)
    assert_same_bits(load(family, "cuda=1,cuda:0=1").forward(IDS, STEPS, tiny.PROMPT), expected)


@pytest.mark.parametrize("split", SPLITS)
def test_chunks_give_the_same_bits(split: str, load: Load) -> None:
    model = load("llama", split, dtype="int4g32")
    whole = model.forward(IDS)
    for chunk in (1, 7, 16, STEPS):
        assert_same_bits(model.forward(IDS, chunk), whole)


@pytest.mark.parametrize("loop", ["plain", "overlap"])
@pytest.mark.parametrize("split", SPLITS)
def test_schedules_give_the_same_bits(split: str, loop: str, load: Load) -> None:
    """Alone, together, and under a policy that cuts prompts, pauses, swaps to the host, drops and
    pads at random."""
    model = load("llama", split, dtype="int4g32")
    alone = [run(model, "orca", [task])[0] for task in tasks()]
    assert run(model, "orca", tasks(), loop=loop) == alone
    policy = RandomPolicy(3, padding=0.5)
    few = {"kv_cache_bytes": 8 * model.kv_block_bytes, "host_kv_bytes": 6 * model.kv_block_bytes}
    assert run(model, policy, tasks(), max_rows=5, max_step_tokens=48, loop=loop, **few) == alone
    assert policy.moves["swap_out"] > 0 and policy.moves["swap_in"] > 0, policy.moves


@pytest.mark.parametrize("split", SPLITS)
def test_drafts(split: str, load: Load) -> None:
    model = load("llama", split)
    specs = [
        {"prompt": [3, 1, 4], "max_tokens": 24, "ignore_eos": True, "seed": i, "temperature": t}
        for i, t in enumerate((0.0, 0.3))
    ]
    assert run(model, "orca", specs, prompt_lookup=5) == run(model, "orca", specs)


def test_types_that_a_part_lacks(load: Load) -> None:
    with pytest.raises(_core.Unsupported, match="kv_cache_dtype: got float32 on device cuda"):
        load("llama", "cpu=1,cuda=1", kv_cache_dtype="float32")
    with pytest.raises(_core.Unsupported, match="pack_cache: got device cuda"):
        load("llama", "cpu=1,cuda=1", pack_cache=True)
    with pytest.raises(_core.Unsupported, match=r'device: got "cuda:99"'):
        load("llama", "cpu=1,cuda:99=1")


# ---- memory, on an emulated GPU of any size ------------------------------------------------------
def on_gpu(model: _core.Model) -> list[int]:
    """Layers of the parts, a GPU's negative."""
    parts = re.findall(r"([0-9]+) layers? on ([^;]*)", model.device)
    return [-int(n) if "(cuda:0" in name else int(n) for n, name in parts]


@pytest.fixture
def gpu_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    if ops.cuda != "simt":
        pytest.skip("the emulator's memory can be set")
    return lambda size: monkeypatch.setenv("SLICELLM_SIMT_MEMORY", str(size))


WIDE = {
    **tiny.LLAMA,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def test_auto(gpu_memory: Callable[[int], None], tmp_path: Path) -> None:
    """The more memory the GPU has, the more of the last layers are there. A layer has 4 * 256 * 256
    + 3 * 256 * 512 weights and keys and values of 64 tokens, 2 * 64 * 256, all of two bytes."""
    path = str(tiny.write_directory(tmp_path / "wide", WIDE, tiny.weights(WIDE)))
    layer = 2 * (4 * 256**2 + 3 * 256 * 512 + 2 * 64 * 256)
    least, most = 8 << 20, 64 << 20  # bytes of a GPU that gets no layer, and of one with them all
    share = 0.9  # gpu_mem_ratio

    def load(memory: int) -> _core.Model:
        gc.collect()
        gpu_memory(memory)
        return _core.Model.load(path, device="auto", threads=1)

    assert "cuda" not in load(least).device and on_gpu(load(most)) == []
    while most - least > layer / 10:
        middle = (least + most) // 2
        least, most = (least, middle) if "cuda" in load(middle).device else (middle, most)
    found = [on_gpu(load(int(most + (more + 0.5) * layer / share))) for more in (0, 1, 4)]
    assert found == [[5, -1], [4, -2], [1, -5]]
    gc.collect()
    gpu_memory(64 << 20)
    model = _core.Model.load(path, device="auto", threads=1)
    assert "cuda:0" in model.device and ";" not in model.device
    assert model.device == _core.Model.load(path, device="cuda", threads=1).device


def test_auto_without_a_driver(load: Load) -> None:
    if ops.cuda != "simt":
        pytest.skip("calls can be made to fail in the emulator only")
    cpu = load("llama", "cpu").device
    emulator = Emulator()
    emulator.fail("cudaGetDeviceCount", 1)
    assert load("llama", "auto").device == cpu
    emulator.fail("", 0)
    assert load("llama", "auto").device == load("llama", "cuda").device


def test_memory_for_kv_when_no_size_is_given(
    gpu_memory: Callable[[int], None], tmp_path: Path
) -> None:
    """The GPU's memory bounds the blocks of a model that has a layer there, and twice that of one
    with half as many layers there."""
    config = {**WIDE, "max_position_embeddings": 1 << 16}
    path = str(tiny.write_directory(tmp_path / "wide", config, tiny.weights(config)))
    gpu_memory(160 << 20)  # what a step takes is the smaller part
    options = {"max_step_tokens": 256, "max_context": 8192, "host_kv_bytes": 0}
    totals = []
    for device in ("cpu=5,cuda=1", "cpu=4,cuda=2"):
        model = _core.Model.load(path, device=device, threads=1)
        engine = _core.Engine(model, "orca", LATENCY, **options)
        totals.append(engine.stats()["total_blocks"])
        engine.close()
        del engine, model
        gc.collect()
    one_layer = 2 * 16 * 256 * 2  # bytes of a block
    assert 0.4 * 160 * 2**20 / one_layer < totals[0] < 0.9 * 160 * 2**20 / one_layer
    assert 0.4 < totals[1] / totals[0] < 0.5


@pytest.mark.parametrize(
    "function", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize", "launch"]
)
@pytest.mark.parametrize("split", SPLITS)
def test_a_call_that_fails(
    split: str, function: str, gpu_memory: Callable[[int], None], load: Load
) -> None:
    """In a part, or between two: a typed error, nothing leaked, and the next engine works."""
    gpu_memory(8 << 20)
    emulator = Emulator()

    def serve() -> list[Any]:
        model = load("llama", split)
        policy = RandomPolicy(3)
        few = {
            "kv_cache_bytes": 8 * model.kv_block_bytes,
            "host_kv_bytes": 6 * model.kv_block_bytes,
        }
        engine = _core.Engine(model, policy, LATENCY, **few)
        try:
            handles = engine.submit_all([_core.TaskSpec(**spec) for spec in tasks()])
            return [handle.wait(120) for handle in handles]
        finally:
            engine.close()

    gc.collect()
    before = emulator.held()
    emulator.fail("", 0)
    tokens = [result["token_ids"] for result in serve()]
    calls = emulator.calls(function)
    for nth in sorted({1, calls // 2, 3 * calls // 4, calls}):
        emulator.fail(function, nth)
        try:
            results = serve()
        except _core.Error as error:
            sentence = str(error)
        else:
            sentence = next((r["error"] for r in results if r["error"]), "")
            assert {r["reason"] for r in results} <= {"length", "error"}
        assert emulator.calls(function) >= nth
        emulator.fail("", 0)
        results = []
        gc.collect()
        assert emulator.held() == before
        assert "out of memory" in sentence or "unknown error" in sentence, (nth, sentence)
    assert [result["token_ids"] for result in serve()] == tokens
