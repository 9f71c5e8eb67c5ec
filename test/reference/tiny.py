"""Tiny model configurations and weights that a seed gives again, bit for bit, on any machine.

Weights come from Philox's raw 64-bit stream, which numpy keeps stable (its distributions it does
not), turned into uniform floats by exact arithmetic. So the golden files hold no weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .layers import Array

VOCAB = 101
PROMPT, STEPS = 12, 32  # tokens of the prompt, teacher-forced decode steps

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 60,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN2 = {
    **LLAMA,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
MISTRAL = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "head_dim": 20,
    "sliding_window": None,
}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, **values}}


# What transformers computes golden logits of.
CASES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama_mha": {**LLAMA, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4},
    "llama_head_dim": {
        **LLAMA,
        "hidden_size": 45,
        "intermediate_size": 51,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 14,
    },
    "llama_biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama_tied": {**LLAMA, "tie_word_embeddings": True},
    "llama_linear": {**LLAMA, **rope("linear", factor=3.0)},
    # The trained context ends within the decode steps.
    "llama_dynamic": {**LLAMA, "max_position_embeddings": 24, **rope("dynamic", factor=2.0)},
    "llama_llama3": {
        **LLAMA,
        **rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    },
    "llama_yarn": {
        **LLAMA,
        **rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0),
    },
    "llama_yarn_mscale": {
        **LLAMA,
        **rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            mscale=1.0,
            mscale_all_dim=0.6,
        ),
    },
    "mistral": MISTRAL,
    "mistral_window": {**MISTRAL, "sliding_window": 9},
    "qwen2": QWEN2,
    "qwen2_tied": {**QWEN2, "tie_word_embeddings": True, "num_key_value_heads": 3},
    "qwen2_window": {
        **QWEN2,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
}

# What the numpy references of ChatGLM compute; heads of an uncommon size.
CHATGLM1: dict[str, Any] = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "vocab_size": VOCAB,
    "hidden_size": 60,
    "inner_hidden_size": 72,
    "num_layers": 2,
    "num_attention_heads": 3,
    "layernorm_epsilon": 1e-5,
    "max_sequence_length": 64,
    "position_encoding_2d": True,
    "gmask_token_id": 5,
    "bos_token_id": 6,
    "eos_token_id": 2,
}
CHATGLM2: dict[str, Any] = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "padded_vocab_size": VOCAB,
    "hidden_size": 60,
    "ffn_hidden_size": 72,
    "num_layers": 2,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 20,
    "layernorm_epsilon": 1e-5,
    "seq_length": 64,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "rmsnorm": True,
    "post_layer_norm": True,
    "eos_token_id": 2,
}


class Stream:
    """Uniform floats with a given standard deviation from a counter-based bit stream."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.Philox(key=seed)

    def matrix(self, rows: int, cols: int, scale: float = 1.0) -> Array:
        return self.uniform((rows, cols), scale / math.sqrt(cols))

    def uniform(self, shape: tuple[int, ...], deviation: float, mean: float = 0.0) -> Array:
        raw = self.bits.random_raw(math.prod(shape)) >> np.uint64(40)  # 24 bits: exact in float32
        unit = raw.astype(np.float64) / 2**23 - 1
        return (mean + unit * deviation * math.sqrt(3)).reshape(shape).astype(np.float32)


def llama_weights(config: Mapping[str, Any], seed: int) -> dict[str, Array]:
    """Weights of LLAMA, MISTRAL and QWEN2 configurations, by Hugging Face's names."""
    s = Stream(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    q, kv = heads * dim, config["num_key_value_heads"] * dim
    qkv_bias = bool(config.get("attention_bias")) or config["model_type"] == "qwen2"
    out_bias, mlp_bias = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    out = {"model.embed_tokens.weight": s.uniform((config["vocab_size"], hidden), 1.0)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        out[at + "input_layernorm.weight"] = s.uniform((hidden,), 0.2, 1.0)
        out[at + "post_attention_layernorm.weight"] = s.uniform((hidden,), 0.2, 1.0)
        for name, rows, cols, bias in (
            ("self_attn.q_proj", q, hidden, qkv_bias),
            ("self_attn.k_proj", kv, hidden, qkv_bias),
            ("self_attn.v_proj", kv, hidden, qkv_bias),
            ("self_attn.o_proj", hidden, q, out_bias),
            ("mlp.gate_proj", inner, hidden, mlp_bias),
            ("mlp.up_proj", inner, hidden, mlp_bias),
            ("mlp.down_proj", hidden, inner, mlp_bias),
        ):
            out[f"{at}{name}.weight"] = s.matrix(rows, cols)
            if bias:
                out[f"{at}{name}.bias"] = s.uniform((rows,), 0.3)
    out["model.norm.weight"] = s.uniform((hidden,), 0.2, 1.0)
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = s.matrix(config["vocab_size"], hidden, 3.0)
    return out


def chatglm1_weights(config: Mapping[str, Any], seed: int) -> dict[str, Array]:
    s = Stream(seed)
    hidden, inner = config["hidden_size"], config["inner_hidden_size"]
    out = {"transformer.word_embeddings.weight": s.uniform((config["vocab_size"], hidden), 1.0)}

    def norm(name: str) -> None:
        out[name + ".weight"] = s.uniform((hidden,), 0.2, 1.0)
        out[name + ".bias"] = s.uniform((hidden,), 0.2)

    for layer in range(config["num_layers"]):
        at = f"transformer.layers.{layer}."
        norm(at + "input_layernorm")
        norm(at + "post_attention_layernorm")
        for name, rows, cols in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", inner, hidden),
            ("mlp.dense_4h_to_h", hidden, inner),
        ):
            out[f"{at}{name}.weight"] = s.matrix(rows, cols)
            out[f"{at}{name}.bias"] = s.uniform((rows,), 0.3)
    norm("transformer.final_layernorm")
    out["lm_head.weight"] = s.matrix(config["vocab_size"], hidden, 3.0)
    return out


def chatglm2_weights(config: Mapping[str, Any], seed: int) -> dict[str, Array]:
    s = Stream(seed)
    hidden, inner, dim = config["hidden_size"], config["ffn_hidden_size"], config["kv_channels"]
    q = config["num_attention_heads"] * dim
    rows = q + 2 * config["multi_query_group_num"] * dim
    vocab = config["padded_vocab_size"]
    out = {"transformer.embedding.word_embeddings.weight": s.uniform((vocab, hidden), 1.0)}
    for layer in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{layer}."
        out[at + "input_layernorm.weight"] = s.uniform((hidden,), 0.2, 1.0)
        out[at + "self_attention.query_key_value.weight"] = s.matrix(rows, hidden)
        out[at + "self_attention.query_key_value.bias"] = s.uniform((rows,), 0.3)
        out[at + "self_attention.dense.weight"] = s.matrix(hidden, q)
        out[at + "post_attention_layernorm.weight"] = s.uniform((hidden,), 0.2, 1.0)
        out[at + "mlp.dense_h_to_4h.weight"] = s.matrix(2 * inner, hidden)
        out[at + "mlp.dense_4h_to_h.weight"] = s.matrix(hidden, inner)
    out["transformer.encoder.final_layernorm.weight"] = s.uniform((hidden,), 0.2, 1.0)
    out["transformer.output_layer.weight"] = s.matrix(vocab, hidden, 3.0)
    return out


def weights(config: Mapping[str, Any], seed: int = 1) -> dict[str, Array]:
    """float32 weights of any configuration above."""
    if config["model_type"] != "chatglm":
        return llama_weights(config, seed)
    return (chatglm2_weights if "kv_channels" in config else chatglm1_weights)(config, seed)


def token_ids(seed: int = 1, count: int = PROMPT + STEPS) -> list[int]:
    raw = np.random.Philox(key=seed + 1000).random_raw(count)
    return [int(x) for x in raw % np.uint64(VOCAB)]


def digest(tensors: Mapping[str, Array]) -> str:
    """A hash of names and values: golden files record it, so that a drifted stream is noticed."""
    h = hashlib.sha256()
    for name, array in tensors.items():
        h.update(name.encode() + array.tobytes())
    return h.hexdigest()


def to_bfloat16(array: Array) -> Array:
    """float32 to the upper 16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_directory(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Array], dtype: str = "F32"
) -> Path:
    """A Hugging Face directory: config.json and one safetensors file of F32, F16 or BF16."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(dict(config)))
    header: dict[str, Any] = {}
    data, offset = [], 0
    for name, array in tensors.items():
        stored = array if dtype == "F32" else array.astype(np.float16)
        raw = (to_bfloat16(array) if dtype == "BF16" else stored).tobytes()
        end = offset + len(raw)
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, end]}
        data.append(raw)
        offset = end
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    return path
