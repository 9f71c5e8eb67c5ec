"""ChatGLM2-6B and ChatGLM3-6B (Zeng et al. 2024, "ChatGLM: a family of large language models")."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layers import Array, Weights, attend, causal, rms_norm, rotate_neighbours, silu


def logits(
    config: dict[str, Any],
    w: Weights,
    ids: list[int],
    base_scale: float = 1.0,
    position_scale: float = 1.0,
) -> Array:
    """Logits [len(ids), vocab]. The long variants' rope_ratio multiplies the base (ChatGLM3,
    GLM-4) or divides positions (ChatGLM2-6B-32K)."""
    n, heads = len(ids), config["num_attention_heads"]
    groups, dim = config["multi_query_group_num"], config["kv_channels"]
    eps = config["layernorm_epsilon"]
    rotated = dim // 2
    freq = (10000.0 * base_scale) ** (-np.arange(0, rotated, 2) / rotated)
    angles = np.arange(n)[:, None] / position_scale * freq
    q_rows, kv_rows = heads * dim, groups * dim

    def rotate(x: Array) -> Array:
        turned = rotate_neighbours(x[..., :rotated], angles)
        return np.concatenate([turned, x[..., rotated:]], axis=-1)

    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{layer}."
        h = rms_norm(x, w[at + "input_layernorm.weight"], eps)
        mixed = w.linear(h, at + "self_attention.query_key_value")
        q, k, v = np.split(mixed, [q_rows, q_rows + kv_rows], axis=-1)
        q, k = rotate(q.reshape(n, heads, dim)), rotate(k.reshape(n, groups, dim))
        attended = attend(q, k, v.reshape(n, groups, dim), causal(n), dim**-0.5)
        x = x + w.linear(attended, at + "self_attention.dense")
        h = rms_norm(x, w[at + "post_attention_layernorm.weight"], eps)
        gate, up = np.split(w.linear(h, at + "mlp.dense_h_to_4h"), 2, axis=-1)
        x = x + w.linear(silu(gate) * up, at + "mlp.dense_4h_to_h")
    x = rms_norm(x, w["transformer.encoder.final_layernorm.weight"], eps)
    return w.linear(x, "transformer.output_layer")
