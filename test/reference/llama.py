"""Llama, Mistral and Qwen2 (Touvron et al. 2023; Jiang et al. 2023; Qwen team 2024)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .layers import Array, Weights, attend, causal, rms_norm, rotate_half_split, silu


def angles(config: dict[str, Any], n: int, dim: int) -> tuple[Array, float]:
    """Rotation angles [n, dim/2] and the factor on cosines and sines, for a sequence that was
    produced token by token."""
    theta = config.get("rope_theta", 10000.0)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    freq = theta ** (-np.arange(0, dim, 2) / dim)
    position = np.arange(n, dtype=np.float64)[:, None]
    if kind == "default":
        return position * freq, 1.0
    factor = scaling["factor"]
    context = config["max_position_embeddings"]
    if kind == "linear":  # Chen et al. 2023
        return position / factor * freq, 1.0
    if kind == "dynamic":  # the base of a sequence that ends at this position
        length = np.maximum(position + 1, context)
        stretch = factor * length / context - (factor - 1)
        base = theta * stretch ** (dim / (dim - 2))
        return position * base ** (-np.arange(0, dim, 2) / dim), 1.0
    context = scaling.get("original_max_position_embeddings", context)
    turns = context * freq / (2 * math.pi)  # over the trained context
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return position * (keep * freq + (1 - keep) * freq / factor), 1.0
    if kind == "yarn":  # Peng et al. 2023: dimensions by their turns, rounded outwards

        def dimension(rotations: float) -> float:
            return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low_dim = max(math.floor(dimension(scaling.get("beta_fast") or 32)), 0)
        high_dim = min(math.ceil(dimension(scaling.get("beta_slow") or 1)), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low_dim) / max(high_dim - low_dim, 0.001), 0, 1)

        def gain(mscale: float) -> float:
            return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0

        attention = scaling.get("attention_factor")
        if attention is None:
            attention = gain(1)
            if scaling.get("mscale") and scaling.get("mscale_all_dim"):
                attention = gain(scaling["mscale"]) / gain(scaling["mscale_all_dim"])
        return position * (ramp * freq / factor + (1 - ramp) * freq), attention
    raise ValueError(f"rope type {kind}")


def logits(config: dict[str, Any], w: Weights, ids: list[int]) -> Array:
    """Logits [len(ids), vocab] of every token."""
    n, heads = len(ids), config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    dim = config.get("head_dim") or config["hidden_size"] // heads
    eps = config["rms_norm_eps"]
    window = config.get("sliding_window")
    full_layers = 0
    if config["model_type"] == "qwen2":
        full_layers = config.get("max_window_layers", 28)
        window = window if config.get("use_sliding_window") else None
    turn, gain = angles(config, n, dim)
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        visible = causal(n, window if layer >= full_layers else None)
        h = rms_norm(x, w[at + "input_layernorm.weight"], eps)
        q, k, v = (w.linear(h, f"{at}self_attn.{name}_proj") for name in "qkv")
        q = rotate_half_split(q.reshape(n, heads, dim), turn, gain)
        k = rotate_half_split(k.reshape(n, kv_heads, dim), turn, gain)
        v = v.reshape(n, kv_heads, dim)
        attended = attend(q, k, v, visible, dim**-0.5)
        x = x + w.linear(attended, at + "self_attn.o_proj")
        h = rms_norm(x, w[at + "post_attention_layernorm.weight"], eps)
        gated = silu(w.linear(h, at + "mlp.gate_proj")) * w.linear(h, at + "mlp.up_proj")
        x = x + w.linear(gated, at + "mlp.down_proj")
    x = rms_norm(x, w["model.norm.weight"], eps)
    tied = config.get("tie_word_embeddings") and "lm_head.weight" not in w
    return w.linear(x, "model.embed_tokens" if tied else "lm_head")
