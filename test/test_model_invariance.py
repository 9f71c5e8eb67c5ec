"""A token's logits are the same bits however its prompt is cut and on however many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from reference import models, tiny
from reference.loading import decode_steps, load

from slicellm import _core

IDS = tiny.token_ids()
DIVISIBLE = [name for name in models.FAMILIES if name != "chatglm1"]


@pytest.fixture
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = models.FAMILIES[request.param]
    return tiny.write_directory(tmp_path, config, tiny.weights(config))


@pytest.mark.parametrize("dtype", ["float16", "int4g32"])
@pytest.mark.parametrize("directory", DIVISIBLE, indirect=True)
def test_chunks_and_threads(directory: Path, dtype: str, isa: str) -> None:
    whole = load(directory, isa, dtype=dtype, threads=1).forward(IDS)
    for threads in (1, 2, 4):
        model = load(directory, isa, dtype=dtype, threads=threads)
        for chunk in (0, 1, 3, 7, 16, decode_steps(tiny.PROMPT, len(IDS))):
            logits = model.forward(IDS, chunk)
            assert np.array_equal(logits.view(np.uint32), whole.view(np.uint32)), (threads, chunk)


@pytest.mark.parametrize("dtype", ["float16", "int4g32"])
@pytest.mark.parametrize("directory", ["chatglm1"], indirect=True)
def test_chatglm1_recompute(directory: Path, dtype: str, isa: str) -> None:
    """Its prompt comes in one step; what follows may be decoded, or computed again with the prompt
    in one step of any length, for the same bits."""
    prompt, n = tiny.PROMPT, len(IDS)
    model = load(directory, isa, dtype=dtype, threads=1)
    decoded = model.forward(IDS, decode_steps(prompt, n), prompt)
    for threads in (1, 2, 4):
        model = load(directory, isa, dtype=dtype, threads=threads)
        for steps in ([n], [prompt + 5] + [1] * (n - prompt - 5), [prompt, 7, n - prompt - 7]):
            logits = model.forward(IDS, steps, prompt)
            assert np.array_equal(logits.view(np.uint32), decoded.view(np.uint32)), steps


@pytest.mark.parametrize("directory", ["chatglm1"], indirect=True)
def test_chatglm1_refuses_a_cut_prompt(directory: Path) -> None:
    model = load(directory)
    assert model.spec["prefill_divisible"] is False
    for chunk in (1, 5, [tiny.PROMPT - 1, 1]):
        with pytest.raises(_core.InvalidArgument, match="whole prompt of 12 tokens in one step"):
            model.forward(IDS[: tiny.PROMPT], chunk)


@pytest.mark.parametrize("directory", ["llama"], indirect=True)
def test_calls_from_several_threads(directory: Path) -> None:
    """They wait for each other: same bits as one after the other."""
    model = load(directory, dtype="int4")
    prompts = [IDS[i : i + 20] for i in range(8)]
    alone = [model.forward(ids) for ids in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(model.forward, prompts), alone):
                assert np.array_equal(got, expected)


@pytest.mark.parametrize("directory", ["llama"], indirect=True)
def test_fingerprint(directory: Path, tmp_path: Path) -> None:
    """Equal for equal models, different for whatever changes speed."""
    first = load(directory)
    assert first.fingerprint == load(directory).fingerprint
    config = models.FAMILIES["llama"]
    moved = tiny.write_directory(tmp_path / "elsewhere", config, tiny.weights(config))
    assert first.fingerprint == load(moved).fingerprint
    others = [
        load(directory, dtype="int8").fingerprint,
        load(directory, dtype="int4").fingerprint,
        load(directory, dtype="int4g32").fingerprint,
        load(directory, dtype="int8", activation="float32").fingerprint,
        load(directory, threads=1).fingerprint,
        load(directory, kv_cache_dtype="float32").fingerprint,
        load(directory, "portable").fingerprint,
        load(
            tiny.write_directory(
                tmp_path / "other", {**config, "rope_theta": 5e5}, tiny.weights(config)
            )
        ).fingerprint,
    ]
    assert len({first.fingerprint, *others}) == 1 + len(others)


@pytest.mark.parametrize("directory", list(models.FAMILIES), indirect=True)
def test_progress(directory: Path) -> None:
    """Bytes of the matrices, rising to their sum."""
    calls: list[tuple[int, int]] = []
    load(directory, dtype="int4", progress=lambda done, total: calls.append((done, total)))
    done = [d for d, _ in calls]
    assert done == sorted(done) and len(set(done)) > 5
    assert {total for _, total in calls} == {done[-1]}
    size = (directory / "model.safetensors").stat().st_size
    assert 0.9 * size < done[-1] <= 1.2 * size  # a tied embedding is read twice


@pytest.mark.parametrize("directory", ["llama"], indirect=True)
def test_progress_may_fail(directory: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        load(directory, progress=stop)


@pytest.mark.parametrize("directory", ["llama"], indirect=True)
def test_model_properties(directory: Path) -> None:
    model = load(directory, threads=2)
    assert model.threads == 2 and "2 threads" in model.device
    assert model.spec["family"] == "llama" and model.spec["eos_ids"] == [2]
    assert model.spec["vocab"] == tiny.VOCAB and model.spec["head_dim"] == 20
    # K and V, 2 layers, 1 head of 20, 16 tokens, 2 bytes.
    assert model.kv_block_bytes == 2 * 2 * 1 * 20 * 16 * 2
    config = models.FAMILIES["llama"]
    matrices = sum(
        value.size for name, value in tiny.weights(config).items() if models.is_linear(name, value)
    )
    assert 2 * matrices <= model.weight_bytes < 4 * matrices  # float16, padded to tiles
    assert model.file.kind == "hf_dir" and model.file.config["model_type"] == "llama"
