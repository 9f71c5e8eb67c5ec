"""The Python package: models, their text, and what loading refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_cases import LATENCY, greedy

import slicellm
from slicellm import Engine, InvalidArgument, Model


def test_forward(model: Model) -> None:
    logits = model.forward([1, 5, 9, 300])
    assert logits.shape == (4, model.spec["vocab"]) and logits.dtype == np.float32
    np.testing.assert_array_equal(model.forward([1, 5, 9, 300], chunk=1), logits)
    np.testing.assert_array_equal(model.forward(np.array([1, 5, 9, 300])), logits)


def test_model_facts(model: Model, tiny_llama: Path) -> None:
    assert (model.spec["layers"], model.spec["kv_heads"], model.spec["head_dim"]) == (2, 2, 16)
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # K and V, layers, heads, size, bytes
    assert Model(tiny_llama, threads=1, kv_cache_dtype="float32").kv_bytes_per_token == 512
    int8 = Model(tiny_llama, threads=1, kv_cache_dtype="int8")
    assert int8.kv_bytes_per_token == 2 * 2 * 2 * (16 + 2)  # codes and a float16 scale
    assert int8.core.kv_block_bytes == 16 * int8.kv_bytes_per_token
    assert model.threads == 1 and model.weight_bytes > 100_000
    assert str(tiny_llama) in repr(model)
    assert len(model.token_bytes) == model.spec["vocab"]


def test_text(model: Model) -> None:
    ids = model.encode("the value")
    assert ids[0] == 1 and model.decode(ids) == "the value"
    assert model.encode([7, 8]) == model.encode(np.array([7, 8], np.int32)) == [7, 8]
    chat = model.encode([{"role": "user", "content": "the value"}])
    assert model.decode(chat) == "[INST] the value [/INST]"


def test_directory_quantised_on_load(tiny_llama_dir: Path, model: Model) -> None:
    plain = slicellm.load(tiny_llama_dir, threads=1)
    np.testing.assert_array_equal(plain.forward([1, 2, 3]), model.forward([1, 2, 3]))
    small = slicellm.load(tiny_llama_dir, dtype="int4g32", threads=1)
    assert small.weight_bytes < plain.weight_bytes
    assert small.fingerprint != plain.fingerprint
    chat = small.encode([{"role": "user", "content": "hi"}])
    assert small.decode(chat) == "user: hi\nassistant:"  # the directory's own template


def test_model_without_tokenizer(fixtures: Path) -> None:
    model = slicellm.load(fixtures / "chatglm2-float16.flm", threads=1)
    with Engine(model, "orca", latency=LATENCY) as engine:
        with pytest.raises(InvalidArgument, match="tokenizer: got none .* --tokenizer DIR"):
            engine.generate("hello")
        result = engine.generate([1, 300, 17], max_tokens=4, ignore_eos=True)
    assert result.text == "" and result.token_ids == greedy(model, [1, 300, 17], 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "/no/such/model"}, "model: got .*expected"),
        ({"path": ""}, "model: got '', expected a path"),
        ({"path": 5}, "model: got 5, expected a path"),
        ({"path": "a\0b"}, "model: got .* expected a path"),
        ({"path": "model.gguf"}, "model: got 'model.gguf', .*GGUF comes later"),
        ({"dtype": "fp8"}, "dtype: got .*fp8"),
        ({"dtype": "int5"}, "dtype: got .*int5"),
        ({"dtype": 4}, "dtype: got 4, expected"),
        ({"device": "cuda:99"}, 'device: got "cuda:99", expected'),
        ({"device": "cuda0"}, 'device: got "cuda0", expected cpu, numa, cuda or cuda:<number>'),
        (
            {"vram_limit": "6GiB"},
            "vram_limit: got 6442450944 bytes, expected none with device .cpu",
        ),
        ({"gpu_mem_ratio": 0.9}, "gpu_mem_ratio: got 0.9.*, expected none with device .cpu"),
        ({"threads": 0}, "threads: got 0, expected 1 to 1024"),
        ({"threads": True}, "threads: got True"),
        ({"threads": "2"}, "threads: got '2'"),
        ({"threads": 1 << 40}, "threads: got"),
        ({"activation": "int3"}, "activation|atype"),
        ({"kv_cache_dtype": "bfloat16"}, "kv_cache_dtype: got bfloat16 .*float16 or int8"),
    ],
)
def test_bad_model_arguments(tiny_llama_dir: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(slicellm.Error, match=message) as caught:
        Model(**{"path": tiny_llama_dir, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "ids", [[], [-1], [400], [1 << 31], [1 << 70], [1.0], ["1"], [True], "12", None, 5, [[1]]]
)
def test_bad_ids(model: Model, ids: Any) -> None:
    with pytest.raises(InvalidArgument, match="ids: got .* expected"):
        model.forward(ids)
    with pytest.raises(InvalidArgument, match="ids: got .* expected"):
        model.forward(np.ones((2, 2), np.int64))


def test_bad_chunk(model: Model) -> None:
    for chunk in (-1, 1.5, "1", True):
        with pytest.raises(InvalidArgument, match="chunk: got"):
            model.forward([1, 2], chunk)  # type: ignore[arg-type]
