"""Random models of a shape, from the same numbers for every engine.

slicellm reads float16 safetensors, llama.cpp GGUF (the package gguf writes it), ONNX Runtime GenAI
and CTranslate2 what their own converters make of the safetensors (in the environments of those
packages, with torch and transformers).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "tinyllama-1.1b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face names and shapes of all weights."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, out in (("q", hidden), ("k", key_width), ("v", key_width)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (out, hidden)
            if config["model_type"] == "qwen2":
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (out,)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[layer + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.down_proj.weight"] = (hidden, inner)
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
    return shapes


def make_tensor(name: str, shape: tuple[int, ...], seed: int) -> Any:
    """float16 numbers that depend on name and seed alone: norms near 1, the rest near 0."""
    rng = np.random.default_rng([seed, *name.encode()])
    values = rng.standard_normal(shape, np.float32) * 0.02
    return (values + 1 if name.endswith("norm.weight") else values).astype(np.float16)


def write_safetensors(directory: Path, config: dict[str, Any], seed: int) -> None:
    """config.json and model.safetensors, as Hugging Face lays them out."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = tensor_shapes(config)
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(make_tensor(name, shape, seed).tobytes())
    (directory / "config.json").write_text(json.dumps(config, indent=1))


def gguf_name(name: str) -> str:
    """The name that llama.cpp gives a weight."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inside = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    stem, kind = name.rsplit(".", 1)
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{inside[part]}.{kind}"


def pairs_together(weight: Any, heads: int) -> Any:
    """Rows of q or k so that rotated pairs are neighbours, as llama.cpp wants them for `llama`."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, config: dict[str, Any], seed: int, kind_name: str) -> None:
    """The same weights for llama.cpp; matrices, embedding and head included, in one GGUF type."""
    import gguf

    matrix_type = gguf.GGMLQuantizationType[kind_name]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, shape in tensor_shapes(config).items():
        values = make_tensor(name, shape, seed)
        if config["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
            values = pairs_together(values, heads if "q_proj" in name else kv_heads)
        kind = matrix_type if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(values.astype(np.float32), kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(directory: Path, words: int) -> None:
    """The words w0, w1, ...: what converters ask for. Some are left out, as converters may add
    words of their own."""
    vocabulary = {f"w{i}": i for i in range(words - 100)}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    steps = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    (directory / "tokenizer.json").write_text(json.dumps({**tokenizer, **steps, "model": model}))
    special = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w2", "pad_token": "w0"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def convert_genai(python: str, source: Path, target: Path, site: str) -> None:
    """int4 with groups of 32, head included, int8 activations (accuracy level 4)."""
    command = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o"]
    command += [str(target), "-m", source.name, "-p", "int4", "-e", "cpu"]
    command += ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]
    run_converter(command, site)


def convert_ctranslate2(python: str, source: Path, target: Path, site: str) -> None:
    """int8 with a scale per row."""
    code = (
        "import sys; from ctranslate2.converters import TransformersConverter as T; "
        "T(sys.argv[1]).convert(sys.argv[2], quantization='int8')"
    )
    run_converter([python, "-c", code, str(source), str(target)], site)


def run_converter(command: list[str], site: str) -> None:
    """Runs it with `site`, a folder of packages (torch, transformers), beside its own."""
    environment = dict(os.environ, PYTHONPATH=site) if site else None
    subprocess.run(command, env=environment, check=True, capture_output=True)
