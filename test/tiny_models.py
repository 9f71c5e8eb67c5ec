"""Tiny models for tests, written from the format's description without the project's own writer."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

Token = tuple[bytes, int, float]
Array = npt.NDArray[Any]

FLM_DTYPES = {"float32": 0, "float16": 7}
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16"}

# Enough repeated words for a few hundred merges.
CORPUS = """
the value of the object is a class name and the name of the class is the value
a box that keeps a promise per request answers in time or says so at once
return the number of tokens in the prompt and the time of the first token
if the deadline has passed the task ends and the others go on with their steps
each step runs one forward pass of the model over a batch of rows and chunks
x = [1, 2, 3, 45, 678] ; y = f(x) + 90 ; print("hello, world!") # done
Describe your ideal vacation. Include the destination, one activity, and why you chose it.
"""


def train_sentencepiece(vocab: int = 400, model_type: str = "bpe", **options: Any) -> bytes:
    """A sentencepiece model of CORPUS, as Llama's: byte fallback and no normalisation."""
    out = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": vocab,
        "character_coverage": 1.0,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    settings.update(options)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.strip().splitlines()), model_writer=out, **settings
    )
    return out.getvalue()


def vocabulary(model: bytes) -> list[Token]:
    """(bytes, id, score) of each piece of a sentencepiece model."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(sp.id_to_piece(i).encode(), i, sp.get_score(i)) for i in range(sp.get_piece_size())]


def flm_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<i", len(data)) + data


def write_flm(
    path: Path,
    config: Mapping[str, str],
    tokens: Iterable[Token],
    weights: Mapping[str, Array],
    special_tokens: Iterable[str] = (),
    use_score: bool = True,
    version: int = 2,
) -> Path:
    """A .flm with float32 and float16 weights; version 0 has no configuration."""
    config, tokens, special = dict(config), list(tokens), list(special_tokens)
    if use_score and tokens:
        config["tokenizer_use_score"] = "1"
    if special:
        config["tokenizer_has_special_tokens"] = "1"
    out = [struct.pack("<i", version)]
    if version > 0:
        out.append(struct.pack("<i", len(config)))
        for key, value in config.items():
            out += [flm_string(key), flm_string(value)]
    out.append(struct.pack("<i", len(tokens)))
    for text, token_id, score in tokens:
        out.append(struct.pack(f"<i{len(text)}i", len(text), *text))
        out.append(struct.pack("<i", token_id))
        if use_score:
            out.append(struct.pack("<f", score))
    if special:
        out.append(struct.pack("<i", len(special)))
        out += [flm_string(text) for text in special]
    out.append(struct.pack("<i", len(weights)))
    for name, array in weights.items():
        out.append(flm_string(name))
        out.append(struct.pack(f"<{array.ndim + 1}i", array.ndim, *array.shape))
        out += [struct.pack("<i", FLM_DTYPES[array.dtype.name]), array.tobytes()]
    path.write_bytes(b"".join(out))
    return path


def write_safetensors(path: Path, weights: Mapping[str, Array]) -> None:
    header, data, offset = {}, [], 0
    for name, array in weights.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        data.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def llama_config(
    vocab: int, layers: int = 2, hidden: int = 64, positions: int = 512
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }


def llama_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Random weights with Hugging Face's names: float16 matrices, float32 norms."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def matrix(rows: int, cols: int, scale: float = 1.0) -> Array:
        return (rng.standard_normal((rows, cols)) * scale / np.sqrt(cols)).astype(np.float16)

    def norm() -> Array:
        return (1 + 0.1 * rng.standard_normal(hidden)).astype(np.float32)

    vocab = config["vocab_size"]
    weights = {"model.embed_tokens.weight": matrix(vocab, hidden).astype(np.float32)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights[at + "input_layernorm.weight"] = norm()
        for name, rows, cols in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            weights[f"{at}{name}.weight"] = matrix(rows, cols)
        weights[at + "post_attention_layernorm.weight"] = norm()
    weights["model.norm.weight"] = norm()
    weights["lm_head.weight"] = matrix(vocab, hidden, scale=4.0)
    return weights


def make_llama_flm(path: Path, seed: int = 0, positions: int = 512) -> Path:
    """A two-layer llama with a sentencepiece BPE vocabulary (about 400 pieces)."""
    tokens = vocabulary(train_sentencepiece())
    config = llama_config(len(tokens), positions=positions)
    text = {key: str(value) for key, value in config.items()}
    text["tokenizer_add_dummy_prefix"] = "True"
    text["tokenizer_remove_extra_whitespaces"] = "False"
    return write_flm(path, text, tokens, llama_weights(config, seed))


def make_llama_directory(path: Path, seed: int = 0, positions: int = 512) -> Path:
    """The same model as a Hugging Face directory with its tokenizer and a chat template."""
    path.mkdir(parents=True, exist_ok=True)
    model = train_sentencepiece()
    config = llama_config(len(vocabulary(model)), positions=positions)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.model").write_bytes(model)
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = {
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": template,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    write_safetensors(path / "model.safetensors", llama_weights(config, seed))
    return path
