"""Logits of tiny Llama, Mistral and Qwen2 models beside transformers' (recorded and live)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from reference import llama, tiny
from reference.layers import Weights
from reference.loading import decode_steps, load, relative_error

GOLDEN = Path(__file__).parent / "golden"
CASES = list(tiny.CASES)


class Golden:
    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as data:
            self.config: dict[str, Any] = json.loads(str(data["config"]))
            self.saved_config: dict[str, Any] = json.loads(str(data["saved_config"]))
            self.ids = [int(i) for i in data["ids"]]
            self.prompt = int(data["prompt"])
            self.logits = data["logits"]
            self.digest = str(data["weights_sha256"])
        self.weights = tiny.weights(self.config)


def test_weights_come_from_their_seed_unchanged() -> None:
    for name in CASES:
        golden = Golden(name)
        assert tiny.digest(golden.weights) == golden.digest, name
        assert golden.config == tiny.CASES[name]


@pytest.mark.parametrize("name", CASES)
def test_numpy_reference_equals_transformers(name: str) -> None:
    """Two independent references agree, and each variant differs from the plain model."""
    golden = Golden(name)
    logits = llama.logits(golden.config, Weights(golden.weights), golden.ids)
    assert relative_error(logits, golden.logits) < 1e-6  # transformers' angles are float32
    switches = {"rope_scaling": None, "sliding_window": None, "attention_bias": False}
    plain = {**golden.config, **switches}
    if plain != {**switches, **golden.config}:
        # Far above every bound used below, so a variant that is ignored cannot pass.
        tensors = golden.weights
        if golden.config.get("attention_bias"):
            tensors = {k: v for k, v in tensors.items() if not k.endswith("_proj.bias")}
        assert (
            relative_error(llama.logits(plain, Weights(tensors), golden.ids), golden.logits) > 1e-2
        )


@pytest.mark.parametrize("name", CASES)
def test_float32_within_1e_5_of_transformers(name: str, isa: str, tmp_path: Path) -> None:
    golden = Golden(name)
    path = tiny.write_directory(tmp_path, golden.config, golden.weights)
    model = load(path, isa, dtype="float32", kv_cache_dtype="float32")
    logits = model.forward(golden.ids, decode_steps(golden.prompt, len(golden.ids)))
    assert relative_error(logits, golden.logits) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_configuration_as_transformers_saves_it(name: str, tmp_path: Path) -> None:
    """transformers 5 writes rope_parameters instead of rope_theta and rope_scaling."""
    golden = Golden(name)
    assert "rope_parameters" in golden.saved_config
    path = tiny.write_directory(tmp_path, golden.saved_config, golden.weights)
    model = load(path, dtype="float32", kv_cache_dtype="float32")
    logits = model.forward(golden.ids, decode_steps(golden.prompt, len(golden.ids)))
    assert relative_error(logits, golden.logits) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_configuration_as_torch2flm_saves_it(name: str, tmp_path: Path) -> None:
    """fastllm's converter writes each value with Python's str(): nested ones become literals."""
    golden = Golden(name)
    text = {key: str(value) for key, value in golden.saved_config.items()}
    assert text["rope_parameters"].startswith("{'")
    path = tiny_models.write_flm(tmp_path / "model.flm", text, [], golden.weights)
    model = load(path, kv_cache_dtype="float32")
    logits = model.forward(golden.ids, decode_steps(golden.prompt, len(golden.ids)))
    assert relative_error(logits, golden.logits) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_float16_weights_within_1e_3_of_transformers(name: str, isa: str, tmp_path: Path) -> None:
    """The reference keeps its float32 weights; ours round every linear layer to float16.

    Against the same rounded weights, only float32 arithmetic is left: 1e-5.
    """
    golden = Golden(name)
    path = tiny.write_directory(tmp_path, golden.config, golden.weights)
    model = load(path, isa, kv_cache_dtype="float32")  # auto is float16
    logits = model.forward(golden.ids, decode_steps(golden.prompt, len(golden.ids)))
    assert relative_error(logits, golden.logits) < 1e-3
    rounded = {
        key: value.astype(np.float16).astype(np.float32) if value.ndim == 2 else value
        for key, value in golden.weights.items()
        if "embed_tokens" not in key
    }
    table = golden.weights["model.embed_tokens.weight"]  # read in place, as the file has it
    rounded["model.embed_tokens.weight"] = table
    if golden.config["tie_word_embeddings"]:
        rounded["lm_head.weight"] = table.astype(np.float16)
    reference = llama.logits(golden.config, Weights(rounded), golden.ids)
    assert relative_error(logits, reference) < 1e-5


@pytest.mark.parametrize("name", ["llama", "mistral_window", "qwen2", "llama_yarn"])
def test_float16_kv_cache_effect(name: str, tmp_path: Path) -> None:
    """Measured on these models: a float16 cache moves logits by 2.6e-4 to 3.8e-4 of their norm."""
    golden = Golden(name)
    path = tiny.write_directory(tmp_path, golden.config, golden.weights)
    model = load(path, dtype="float32", kv_cache_dtype="float16")
    logits = model.forward(golden.ids, decode_steps(golden.prompt, len(golden.ids)))
    assert 1e-6 < relative_error(logits, golden.logits) < 1e-3


def test_live_transformers(tmp_path: Path) -> None:
    """transformers loads the very directory that we load; other seeds and lengths than recorded."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for number, name in enumerate(("llama_biases", "mistral_window", "qwen2_tied", "llama_llama3")):
        config = tiny.CASES[name]
        tensors, ids = tiny.weights(config, seed=50 + number), tiny.token_ids(seed=9, count=50)
        path = tiny.write_directory(tmp_path / name, config, tensors)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0].numpy()
        ours = load(path, dtype="float32", kv_cache_dtype="float32").forward(ids)
        assert relative_error(ours, expected) < 1e-5, name
