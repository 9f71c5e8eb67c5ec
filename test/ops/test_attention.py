"""Rotation, KV append and attention against float64, and the same bits however a task is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from ops_module import Array, assert_same_bits

from slicellm import InvalidArgument, Unsupported

BLOCK = 16
LARGEST = 65504.0


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int
    style: str = "half"
    rotary: int = 0  # 0: what the style has in its models
    window: int = 0
    bidirectional: bool = False
    kv: str = "float16"

    @property
    def turned(self) -> int:
        return self.rotary or (self.dim if self.style == "half" else self.dim // 2)

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim

    @property
    def scale(self) -> float:
        return float(np.float32(self.dim**-0.5))


LLAMA = Shape(8, 2, 128)
GLM2 = Shape(16, 1, 128, "interleaved")
GLM1 = Shape(2, 2, 64, "glm_2d", bidirectional=True)
SHAPES = [
    LLAMA,
    GLM2,
    Shape(3, 3, 64),
    Shape(14, 2, 64),
    Shape(6, 1, 80),
    Shape(4, 2, 96),
    Shape(20, 1, 32),
    Shape(4, 2, 16),
    Shape(4, 4, 8),
    Shape(2, 1, 20, "interleaved"),
    Shape(2, 2, 32, "interleaved", rotary=12),
    Shape(4, 2, 64, window=37),
    Shape(4, 1, 16, window=100),
]
QUANTIZED = [
    Shape(8, 2, 128, kv="int8"),
    Shape(4, 1, 64, "interleaved", kv="int8"),
    Shape(4, 2, 96, window=70, kv="int8"),
    Shape(3, 1, 80, kv="int8"),
    Shape(2, 2, 20, "interleaved", kv="int8"),
    Shape(4, 4, 8, kv="int8"),
]


def turns(shape: Shape, positions: int) -> tuple[Array, Array]:
    """Cosines and sines [positions, turned / 2], as the op gets them."""
    pairs = np.arange(shape.turned // 2)
    angles = np.arange(positions)[:, None] * 10000.0 ** (-2.0 * pairs / shape.turned)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class Task:
    """q, k and v of one task, and its KV blocks."""

    def __init__(self, shape: Shape, tokens: int, prompt: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.qkv = rng.standard_normal((tokens, shape.width)).astype(np.float32)
        self.qkv.reshape(-1)[::97] *= 3  # peaks in the softmax
        self.prompt = prompt
        self.blocks: list[int] = []


class Steps:
    """A device with a KV cache that was full of NaN, and the tasks whose blocks are in it."""

    def __init__(self, device: Any, shape: Shape, tasks: list[Task], seed: int = 1) -> None:
        self.device, self.shape = device, shape
        needed = [-(-len(task.qkv) // BLOCK) for task in tasks]
        total = sum(needed) + 3
        self.kv = device.kv(total, 2, shape.kv_heads, shape.dim, shape.kv, BLOCK)
        for block in range(total):
            self.kv.write(block, b"\xff" * self.kv.block_bytes)
        order = np.random.default_rng(seed).permutation(total).tolist()
        for task, count in zip(tasks, needed):
            task.blocks, order = order[:count], order[count:]
        cos, sin = turns(shape, max(len(task.qkv) for task in tasks))
        self.rope = device.rope(shape.style, shape.turned, cos, sin)
        self.past = {id(task): 0 for task in tasks}

    def step(self, *chunks: tuple[Task, int]) -> list[Array]:
        """The next tokens of some tasks; each task's rows of the result."""
        sequences, rows = [], []
        for task, count in chunks:
            past = self.past[id(task)]
            used = task.blocks[: -(-(past + count) // BLOCK)]
            sequences.append((past, count, task.prompt, used))
            rows.append(task.qkv[past : past + count])
            self.past[id(task)] += count
        out = self.device.attend(
            np.concatenate(rows),
            sequences,
            self.kv,
            1,
            self.shape.heads,
            self.shape.scale,
            self.rope,
            self.shape.window,
            self.shape.bidirectional,
        )
        return np.split(out, np.cumsum([count for _, count in chunks])[:-1])

    def run(self, task: Task, sizes: list[int]) -> Array:
        return np.concatenate([self.step((task, size))[0] for size in sizes])


def run_alone(device: Any, shape: Shape, task: Task, sizes: list[int], seed: int = 1) -> Array:
    return Steps(device, shape, [task], seed).run(task, sizes)


def cut(tokens: int, size: int) -> list[int]:
    return [size] * (tokens // size) + [tokens % size] * (tokens % size > 0)


# ---- the reference -------------------------------------------------------------------------------


def rotated(shape: Shape, x: Array, index: int, prompt: int) -> Array:
    """x [heads, dim] of token `index`, turned (Su et al., "RoFormer"), in float32 throughout: what
    is rounded to 16 bits after it shall fall on the same side."""
    cos, sin = turns(shape, index + 2)
    out, pairs = x.copy(), shape.turned // 2
    i = np.arange(pairs)

    def turn(a: Array, b: Array, position: int) -> None:
        out[:, a] = x[:, a] * cos[position] - x[:, b] * sin[position]
        out[:, b] = x[:, b] * cos[position] + x[:, a] * sin[position]

    if shape.style == "half":
        turn(i, i + pairs, index)
    elif shape.style == "interleaved":
        turn(2 * i, 2 * i + 1, index)
    else:  # the context ends before the last prompt token; [gMASK] is its last token
        inside = index < prompt - 1
        turn(i, i + pairs, index if inside else prompt - 2)
        half = shape.dim // 2
        turn(half + i, half + i + pairs, 0 if inside else index - (prompt - 2))
    return out


def half(x: Array) -> Array:
    return np.clip(x, -LARGEST, LARGEST).astype(np.float16).astype(np.float64)


def heads(shape: Shape, task: Task) -> tuple[Array, Array, Array]:
    """Queries, keys and values [n, heads, dim] after the rotation, float32."""
    x = task.qkv.reshape(len(task.qkv), -1, shape.dim)
    q, k, v = np.split(x, [shape.heads, shape.heads + shape.kv_heads], axis=1)
    q = np.stack([rotated(shape, q_i, i, task.prompt) for i, q_i in enumerate(q)])
    k = np.stack([rotated(shape, k_i, i, task.prompt) for i, k_i in enumerate(k)])
    assert q.dtype == k.dtype == v.dtype == np.float32
    return q, k, v


def attention(shape: Shape, task: Task, queries: Array, keys: Array, values: Array) -> Array:
    n = len(task.qkv)
    row, column = np.arange(n)[:, None], np.arange(n)[None]
    seen = column <= row
    if shape.bidirectional:
        seen |= (row < task.prompt - 1) & (column < task.prompt - 1)
    if shape.window:
        seen &= row - column < shape.window
    out = np.empty((n, shape.heads, shape.dim))
    for head in range(shape.heads):
        kv_head = head * shape.kv_heads // shape.heads
        scores = queries[:, head].astype(np.float64) @ keys[:, kv_head].T * shape.scale
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, head] = weights / weights.sum(1, keepdims=True) @ values[:, kv_head]
    return out.reshape(n, -1)


def reference(device: Any, shape: Shape, task: Task) -> Array:
    q, k, v = heads(shape, task)
    return attention(shape, task, q if device.name == "cpu" else half(q), half(k), half(v))


# ---- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(device: Any, shape: Shape) -> None:
    task = Task(shape, 301, 20, seed=shape.dim)
    got = run_alone(device, shape, task, [301])
    np.testing.assert_allclose(got, reference(device, shape, task), atol=1e-3, rtol=0)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 64, 65, 127, 255, 256, 257, 513])
def test_context_lengths(device: Any, tokens: int) -> None:
    """The last token by itself, at the edges of blocks, units and splits."""
    shape = Shape(4, 2, 32)
    task = Task(shape, tokens, 1, seed=tokens)
    sizes = [tokens - 1, 1] if tokens > 1 else [1]
    got = run_alone(device, shape, task, sizes)
    np.testing.assert_allclose(got, reference(device, shape, task), atol=1e-3, rtol=0)


@pytest.mark.parametrize("prompt", [2, 3, 40, 90])
def test_prompt_that_sees_both_ways(device: Any, prompt: int) -> None:
    task = Task(GLM1, 100, prompt, seed=prompt)
    got = run_alone(device, GLM1, task, [prompt, 1, 100 - prompt - 1])
    np.testing.assert_allclose(got, reference(device, GLM1, task), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [*SHAPES, *QUANTIZED], ids=str)
def test_chunking_changes_no_bit(device: Any, shape: Shape) -> None:
    tokens = 280
    task = Task(shape, tokens, 20, seed=3)
    whole = run_alone(device, shape, task, [tokens])
    for size in (16, 17, 100):
        assert_same_bits(run_alone(device, shape, task, cut(tokens, size), seed=size), whole)
    start = tokens - 20
    ones = run_alone(device, shape, task, [start] + [1] * 20, seed=5)
    assert_same_bits(ones, whole)
    threes = run_alone(device, shape, task, [start] + cut(20, 3), seed=6)
    assert_same_bits(threes, whole)


@pytest.mark.parametrize("shape", [Shape(4, 2, 32), Shape(16, 1, 32), GLM1], ids=str)
def test_neighbours_change_no_bit(device: Any, shape: Shape) -> None:
    """Prefill chunks and decode rows of five tasks in the same steps."""
    lengths = [270, 40, 300, 17, 90]
    tasks = [Task(shape, n, n - 10, seed=n) for n in lengths]
    alone = [run_alone(device, shape, task, [n - 10] + [1] * 10) for task, n in zip(tasks, lengths)]
    steps = Steps(device, shape, tasks, seed=9)
    rows: list[list[Array]] = [[] for _ in tasks]
    for number in range(15):  # one more task joins in each step
        running = [i for i, n in enumerate(lengths) if i <= number and len(rows[i]) < 11]
        chunks = [(tasks[i], lengths[i] - 10 if not rows[i] else 1) for i in running]
        for i, out in zip(running, steps.step(*chunks)):
            rows[i].append(out)
    for parts, expected in zip(rows, alone):
        assert_same_bits(np.concatenate(parts), expected)


def stored(device: Any, steps: Steps, task: Task) -> tuple[Array, Array]:
    """Codes [K and V, n, kv_heads, dim] and scales [K and V, n, kv_heads] in layer 1, as kv_cache.h
    and the device's kv_storage.h lay them out."""
    shape, n = steps.shape, len(task.qkv)
    matrix = BLOCK * (shape.dim + 2)
    codes = np.empty((2, len(task.blocks) * BLOCK, shape.kv_heads, shape.dim))
    scales = np.empty((2, len(task.blocks) * BLOCK, shape.kv_heads), np.float16)
    for i, block in enumerate(task.blocks):
        data = np.frombuffer(steps.kv.read(block), np.uint8).reshape(2, shape.kv_heads, 2, matrix)
        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        for head in range(shape.kv_heads):
            for kind in range(2):
                part = data[1, head, kind]
                bytes_ = part[: BLOCK * shape.dim]
                if device.name != "cpu":
                    matrix_codes = bytes_.reshape(BLOCK, shape.dim).astype(np.float64) - 128
                elif kind == 0:
                    matrix_codes = bytes_.view(np.int8).reshape(shape.dim, BLOCK).T
                else:
                    matrix_codes = bytes_.view(np.int8).reshape(BLOCK, shape.dim)
                codes[kind, rows, head] = matrix_codes
                scales[kind, rows, head] = part[BLOCK * shape.dim :].view(np.float16)
    return codes[:, :n], scales[:, :n]


@pytest.mark.parametrize("shape", QUANTIZED, ids=str)
def test_int8_kv(device: Any, shape: Shape) -> None:
    task = Task(shape, 280, 20, seed=4)
    steps = Steps(device, shape, [task])
    got = steps.run(task, [100, 179, 1])
    q, k, v = heads(shape, task)
    decoded = []
    for x, codes, scales in zip((k, v), *stored(device, steps, task)):
        expected_scales = (np.abs(x).max(-1) / np.float32(127)).astype(np.float16)
        assert np.array_equal(scales, expected_scales)
        wide = expected_scales.astype(np.float32)[..., None]
        assert np.array_equal(codes, np.clip(np.rint(x / wide), -127, 127))
        decoded.append(codes * wide.astype(np.float64))
    if device.name != "cpu":
        q, decoded[1] = half(q), half(decoded[1])
    expected = attention(shape, task, q, decoded[0], decoded[1])
    np.testing.assert_allclose(got, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kv", ["float16", "int8"])
def test_large_and_zero_values(device: Any, kv: str) -> None:
    shape = Shape(2, 1, 32, kv=kv)
    task = Task(shape, 70, 20, seed=1)
    task.qkv[3] = 0
    task.qkv[10, ::5] = 1e6  # beyond float16
    task.qkv[20] *= -300
    task.qkv[40] *= 1e-7
    got = run_alone(device, shape, task, [50] + [1] * 20)
    assert np.isfinite(got).all()
    assert_same_bits(run_alone(device, shape, task, [70]), got)


@pytest.mark.parametrize("kv", ["float16", "int8"])
def test_blocks_move_through_host_memory(device: Any, kv: str) -> None:
    shape = Shape(4, 2, 64, kv=kv)
    task, other = Task(shape, 80, 20, seed=1), Task(shape, 80, 20, seed=2)
    whole = run_alone(device, shape, task, [70, 10])
    steps = Steps(device, shape, [task, other])
    first = steps.step((task, 70))[0]
    for i, block in enumerate(task.blocks):
        steps.kv.write(other.blocks[i], steps.kv.read(block))
        steps.kv.write(block, b"\xff" * steps.kv.block_bytes)
    task.blocks = other.blocks
    assert_same_bits(np.concatenate([first, steps.step((task, 10))[0]]), whole)


def test_layouts_that_the_device_lacks(device: Any) -> None:
    if device.name == "cpu":
        with pytest.raises(InvalidArgument, match="kv_cache_dtype: got bfloat16"):
            device.kv(4, 1, 1, 64, "bfloat16")
        return
    with pytest.raises(Unsupported, match="kv_cache_dtype: got float32"):
        device.kv(4, 1, 1, 64, "float32")
    with pytest.raises(Unsupported, match="block_tokens: got 32"):
        device.kv(4, 1, 1, 64, "float16", 32)
    for dim in (130, 63):
        with pytest.raises(Unsupported, match=f"head_dim: got {dim}"):
            device.kv(4, 1, 1, dim)
