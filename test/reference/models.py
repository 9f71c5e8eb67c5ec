"""The reference of whatever family a configuration is of."""

from __future__ import annotations

from typing import Any

from . import chatglm1, chatglm2, llama, tiny
from .layers import Array, Weights

# One configuration a family, and the linear layers' common parts of its tensor names.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": tiny.CASES["llama_biases"],
    "mistral": tiny.CASES["mistral_window"],
    "llama_odd": tiny.CASES["llama_head_dim"],
    "qwen2": tiny.CASES["qwen2"],
    "qwen2_tied": tiny.CASES["qwen2_tied"],
    "chatglm1": tiny.CHATGLM1,
    "chatglm2": tiny.CHATGLM2,
}


def logits(config: dict[str, Any], w: Weights, ids: list[int], prompt: int) -> Array:
    if config["model_type"] != "chatglm":
        return llama.logits(config, w, ids)
    if "kv_channels" in config:
        return chatglm2.logits(config, w, ids)
    return chatglm1.logits(config, w, ids, prompt)


def is_linear(name: str, tensor: Array) -> bool:
    """Whether a tensor is a linear layer's matrix (what a dtype applies to)."""
    return tensor.ndim == 2 and "embed" not in name


def with_own_head(config: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Array]:
    """Tied embeddings as two tensors, so that the head can have its own dtype."""
    if not config.get("tie_word_embeddings"):
        return tensors
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
