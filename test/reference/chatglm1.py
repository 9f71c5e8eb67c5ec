"""ChatGLM-6B (GLM: Du et al. 2022, and the GLM-130B paper's post-norm and two-dimensional RoPE)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .layers import (
    Array,
    Weights,
    attend,
    causal,
    gelu_tanh,
    layer_norm,
    rotate_half_split,
)


def positions(n: int, prompt_len: int) -> tuple[Array, Array]:
    """The two position numbers of each token: place in the text, and place in the answer.

    The prompt ends with [gMASK] and the start token. Text tokens count up and are at answer place
    0; the start token and the answer stay at the mask's place and count up from 1.
    """
    index = np.arange(n)
    answer = np.maximum(index - (prompt_len - 1) + 1, 0)
    text = np.where(answer > 0, prompt_len - 2, index)
    return text, answer


def logits(config: dict[str, Any], w: Weights, ids: list[int], prompt_len: int) -> Array:
    """Logits [len(ids), vocab]; the first prompt_len ids are the prompt with its two last marks."""
    n, heads, layers = len(ids), config["num_attention_heads"], config["num_layers"]
    hidden = config["hidden_size"]
    dim = hidden // heads
    eps = config["layernorm_epsilon"]
    alpha = math.sqrt(2 * layers)
    # Everyone sees the whole text; the answer (from the start token on) is causal.
    visible = causal(n) | (np.arange(n)[None, :] < prompt_len - 1)
    freq = 10000.0 ** (-np.arange(0, dim // 2, 2) / (dim // 2))
    text, answer = (p[:, None] * freq for p in positions(n, prompt_len))

    def rotate(x: Array) -> Array:
        first, second = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate(
            [rotate_half_split(first, text), rotate_half_split(second, answer)], axis=-1
        )

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, w[name + ".weight"], w[name + ".bias"], eps)

    x = w["transformer.word_embeddings.weight"][ids]
    for layer in range(layers):
        at = f"transformer.layers.{layer}."
        h = norm(x, at + "input_layernorm")
        mixed = w.linear(h, at + "attention.query_key_value").reshape(n, heads, 3, dim)
        q, k, v = rotate(mixed[:, :, 0]), rotate(mixed[:, :, 1]), mixed[:, :, 2]
        attended = attend(q, k, v, visible, dim**-0.5)
        x = alpha * h + w.linear(attended, at + "attention.dense")
        h = norm(x, at + "post_attention_layernorm")
        inner = gelu_tanh(w.linear(h, at + "mlp.dense_h_to_4h"))
        x = alpha * h + w.linear(inner, at + "mlp.dense_4h_to_h")
    x = norm(x, "transformer.final_layernorm")
    return w.linear(x, "lm_head")
