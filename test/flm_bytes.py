"""An independent writer and reader of .flm and safetensors for tests: numpy and struct only.

Written from the description of the formats, without the project's own code, so that both can be
held against each other. The writer also writes what is wrong on purpose.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FLOAT32, BFLOAT16, INT8, INT4, FLOAT16, INT4_NOZERO, INT4_GROUP = 0, 1, 3, 4, 7, 8, 9
BITS = {INT8: 8, INT4: 4, INT4_NOZERO: 4, INT4_GROUP: 4}


def i32(*values: int) -> bytes:
    """Little-endian int32s; values beyond are cut to 32 bits."""
    return b"".join(struct.pack("<I", value & 0xFFFFFFFF) for value in values)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return i32(len(data)) + data


# ---- payloads ------------------------------------------------------------------------------------
def nibbles(codes: Array) -> bytes:
    """4-bit codes, two a byte, the first in the high half."""
    flat = codes.astype(np.uint8).ravel()
    flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
    return bytes((flat[0::2] << 4 | flat[1::2]).tobytes())


def bfloat16_bits(array: Array) -> Array:
    """float32 cut to its upper half: exact for values that have few bits."""
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def pairs_bytes(low: Array, high: Array) -> bytes:
    return bytes(np.stack([low.ravel(), high.ravel()], axis=-1).astype("<f4").tobytes())


def quantised_payload(codes: Array, low: Array, high: Array, code: int, group: int = 0) -> bytes:
    """What follows the type code. `low`, `high`: [rows] or [rows, groups]."""
    layout = i32(0) if code != INT4_GROUP else i32(0, low.shape[1], group)
    data = codes.astype(np.uint8).tobytes() if code == INT8 else nibbles(codes)
    return layout + pairs_bytes(low, high) + data


def record(name: str | bytes, dims: Sequence[int], code: int, payload: bytes) -> bytes:
    return text(name) + i32(len(dims), *dims, code) + payload


def float_record(name: str, array: Array) -> bytes:
    code = {"float32": FLOAT32, "float16": FLOAT16}[array.dtype.name]
    return record(name, array.shape, code, array.tobytes())


# ---- whole files ---------------------------------------------------------------------------------
@dataclass
class Flm:
    """The sections of a .flm. Counts are right unless given in `counts`."""

    version: int = 2
    kv: list[tuple[str | bytes, str | bytes]] = field(
        default_factory=lambda: [("model_type", "llama")]
    )
    adapters: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    tokens: list[tuple[Sequence[int], int, float]] = field(default_factory=list)  # ints, id, score
    scores: bool = False
    specials: list[str | bytes] | None = None
    records: list[bytes] = field(default_factory=list)
    tail: bytes = b""
    counts: dict[str, int] = field(default_factory=dict)  # "kv", "tokens", "specials", "records"

    def parts(self) -> list[bytes]:
        """The file cut at every boundary of a section or an item."""
        kv = list(self.kv)
        if self.adapters and "peft_size" not in dict(kv):
            kv.append(("peft_size", str(len(self.adapters))))
        if self.scores:
            kv.append(("tokenizer_use_score", "1"))
        if self.specials is not None:
            kv.append(("tokenizer_has_special_tokens", "1"))
        out = [i32(self.version)]
        if self.version >= 1:
            out.append(i32(self.counts.get("kv", len(kv))))
            for key, value in kv:
                out += [text(key), text(value)]
            for name, items in self.adapters:
                out += [text(name), i32(len(items))]
                for key, value in items:
                    out += [text(key), text(value)]
        out.append(i32(self.counts.get("tokens", len(self.tokens))))
        for ints, token_id, score in self.tokens:
            out += [i32(len(ints), *ints), i32(token_id)]
            if self.scores:
                out.append(struct.pack("<f", score))
        if self.specials is not None:
            out.append(i32(self.counts.get("specials", len(self.specials))))
            out += [text(item) for item in self.specials]
        out.append(i32(self.counts.get("records", len(self.records))))
        out += self.records
        return [*out, self.tail] if self.tail else out

    def bytes(self) -> bytes:
        return b"".join(self.parts())

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def safetensors(
    tensors: Mapping[str, tuple[str, Sequence[int], bytes]], header: bytes | None = None
) -> bytes:
    """name -> (dtype, shape, data); `header` overrides the JSON."""
    entries: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += raw
    json_bytes = json.dumps(entries).encode() if header is None else header
    return struct.pack("<Q", len(json_bytes)) + json_bytes + data


# ---- reading -------------------------------------------------------------------------------------
@dataclass
class Decoded:
    code: int
    values: Array  # float32


def decode_min_max(codes: Array, low: Array, high: Array, code: int, group: int) -> Array:
    """fastllm's loader in float32: the grid is derived again from the stored range."""
    levels = np.float32(2 ** BITS[code] - 1)
    low = np.minimum(low, np.float32(0))
    high = np.maximum(high, np.float32(0))
    scale = ((high - low) / levels).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        zero = np.float32(0) - low / scale
    zero = np.where(scale > 0, np.floor(np.abs(zero) + np.float32(0.5)) * np.sign(zero), 0)
    zero = np.clip(zero, 0, levels).astype(np.float32)
    column = np.arange(codes.shape[1]) // group
    scale, zero = scale[:, column], zero[:, column]
    if code in (INT8, INT4):
        return (scale * (codes.astype(np.float32) - zero)).astype(np.float32)
    return ((-scale * zero) + scale * codes.astype(np.float32)).astype(np.float32)


def unpack_nibbles(data: bytes, count: int) -> Array:
    raw = np.frombuffer(data, np.uint8)
    return np.stack([raw >> 4, raw & 15], axis=-1).ravel()[:count]


class Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count : self.at]

    def i32(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def text(self) -> bytes:
        return self.take(self.i32())


def decode_payload(cursor: Cursor, code: int, dims: Sequence[int], blob: bool = False) -> Array:
    count = math.prod(dims)
    if code == FLOAT32:
        return np.frombuffer(cursor.take(4 * count), "<f4").reshape(dims)
    if code == FLOAT16:
        return np.frombuffer(cursor.take(2 * count), "<f2").astype(np.float32).reshape(dims)
    if code == BFLOAT16:
        bits = np.frombuffer(cursor.take(2 * count), "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(dims)
    assert cursor.i32() == 0
    groups, group = 1, dims[1]
    if code == INT4_GROUP:
        groups, group = cursor.i32(), cursor.i32()
    pairs = np.frombuffer(cursor.take(8 * dims[0] * groups), "<f4").reshape(dims[0], groups, 2)
    if code == INT8:
        codes = np.frombuffer(cursor.take(count), np.uint8)
    else:
        codes = unpack_nibbles(cursor.take((count + 1) // 2), count)
    codes = codes.reshape(dims)
    if blob and code in (INT4_NOZERO, INT4_GROUP):
        column = np.arange(dims[1]) // group
        low, scale = pairs[:, column, 0], pairs[:, column, 1]
        return (low + scale * codes.astype(np.float32)).astype(np.float32)
    return decode_min_max(codes, pairs[:, :, 0], pairs[:, :, 1], code, group)


@dataclass
class FlmContent:
    version: int
    config: dict[str, str]
    tokens: list[tuple[bytes, int, float | None]]
    specials: list[str]
    weights: dict[str, Decoded]


def read_flm(path: Path) -> FlmContent:
    cursor = Cursor(path.read_bytes())
    version = cursor.i32()
    config: dict[str, str] = {}
    for _ in range(cursor.i32() if version >= 1 else 0):
        key = cursor.text().decode()
        config[key] = cursor.text().decode()
    assert "peft_size" not in config
    tokens: list[tuple[bytes, int, float | None]] = []
    for _ in range(cursor.i32()):
        piece = bytes(cursor.i32() & 0xFF for _ in range(cursor.i32()))
        token_id = cursor.i32()
        score = None
        if config.get("tokenizer_use_score") == "1":
            score = float(struct.unpack("<f", cursor.take(4))[0])
        tokens.append((piece, token_id, score))
    specials = []
    if config.get("tokenizer_has_special_tokens") == "1":
        specials = [cursor.text().decode() for _ in range(cursor.i32())]
    weights = {}
    for _ in range(cursor.i32()):
        name = cursor.text().decode()
        dims = [cursor.i32() for _ in range(cursor.i32())]
        code = cursor.i32()
        weights[name] = Decoded(code, decode_payload(cursor, code, dims))
    assert cursor.at == len(cursor.data)
    return FlmContent(version, config, tokens, specials, weights)


def read_safetensors(path: Path) -> dict[str, Decoded]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    codes = {"F32": FLOAT32, "F16": FLOAT16, "BF16": BFLOAT16}
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        cursor = Cursor(body[begin:end])
        blob = entry["dtype"] == "fastllm"
        if blob:
            assert cursor.i32() == 1
        code = cursor.i32() if blob else codes[entry["dtype"]]
        out[name] = Decoded(code, decode_payload(cursor, code, entry["shape"], blob))
        assert cursor.at == end - begin
    return out
