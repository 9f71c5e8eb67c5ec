"""The pieces the reference models share; float64 throughout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weight + bias


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attend(q: Array, k: Array, v: Array, visible: Array, scale: float) -> Array:
    """q [n, heads, d], k and v [n, kv_heads, d], visible [n, n] bool -> [n, heads * d]."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    scores = np.where(visible[None], scores, -np.inf)
    return np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(len(q), -1)


def causal(n: int, window: int | None = None) -> Array:
    """visible[i, j]: token i sees token j; with a window, only the last `window` of them."""
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    return (distance >= 0) & (distance < (window or n))


def rotate_half_split(x: Array, angles: Array, gain: float = 1.0) -> Array:
    """Rotates pairs (i, i + d/2) of x [n, heads, d] by angles [n, d/2]."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = gain * np.cos(angles)[:, None], gain * np.sin(angles)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotate_neighbours(x: Array, angles: Array) -> Array:
    """Rotates pairs (2i, 2i + 1) of x [n, heads, d] by angles [n, d/2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = a * cos - b * sin, b * cos + a * sin
    return out


class Weights:
    """Named tensors as float64, with the linear layer's rule.

    `disturb(x, name)` may replace a linear layer's input, to model what an engine does to it.
    """

    def __init__(
        self,
        tensors: dict[str, Array],
        disturb: Callable[[Array, str], Array] | None = None,
    ) -> None:
        self.tensors = tensors
        self.disturb = disturb

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name].astype(np.float64)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def linear(self, x: Array, name: str) -> Array:
        if self.disturb:
            x = self.disturb(x, name)
        y = x @ self[name + ".weight"].T
        return y + self[name + ".bias"] if name + ".bias" in self else y
