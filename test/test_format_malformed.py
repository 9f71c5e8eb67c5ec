"""Damaged and hostile files: each gives one sentence naming the field, and its sound twin opens."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flm_bytes
import numpy as np
import pytest
from flm_bytes import (
    FLOAT16,
    FLOAT32,
    INT4,
    INT4_GROUP,
    INT4_NOZERO,
    INT8,
    Flm,
    float_record,
    i32,
    quantised_payload,
    record,
    text,
)

from slicellm import Error, FormatError, IoError, Unsupported, _core

ONES = np.ones((2, 3), np.float32)
CODES = np.arange(8).reshape(2, 4)
LOW, HIGH = np.float32([[-1], [-2]]), np.float32([[1], [3]])
GROUP_LOW, GROUP_HIGH = np.repeat(LOW, 2, axis=1), np.repeat(HIGH, 2, axis=1)
KINDS = (FormatError, IoError, Unsupported)
BIG = 2**31 - 1


def sound(**changes: Any) -> Flm:
    """A file with every section and every kind of record."""
    sections: dict[str, Any] = {
        "kv": [("model_type", "llama"), ("hidden_size", "3")],
        "adapters": [("lora", [("r", "8")])],
        "tokens": [((104, 105), 0, -1.0), ((0xC3, 0xA9), 1, 0.5)],
        "scores": True,
        "specials": ["<s>"],
        "records": [
            float_record("f32", ONES),
            float_record("f16", ONES.astype(np.float16)),
            record("i8", (2, 4), INT8, quantised_payload(CODES, LOW, HIGH, INT8)),
            record("i4", (2, 4), INT4_NOZERO, quantised_payload(CODES, LOW, HIGH, INT4_NOZERO)),
            record("i4g", (2, 4), INT4_GROUP, group_payload()),
        ],
    }
    sections.update(changes)
    return Flm(**sections)


def group_payload(groups: int = 2, group: int = 2, axis: int = 0) -> bytes:
    pairs = flm_bytes.pairs_bytes(GROUP_LOW, GROUP_HIGH)
    return i32(axis, groups, group) + pairs + flm_bytes.nibbles(CODES)


def replace(path: Path, data: bytes) -> None:
    """File systems are slow to empty a file and write it again."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def read_all(path: Path) -> None:
    """Opens a model and decodes every tensor."""
    file = _core.open_model_file(str(path))
    for name in file.names():
        file.weight(name).decode()


def check_refused(path: Path, field: str, kinds: tuple[type[Error], ...] = KINDS) -> None:
    with pytest.raises(kinds) as caught:
        read_all(path)
    error = caught.value
    message = str(error)
    assert field in error.field, message
    assert message == f"{error.field}: got {error.value}, expected {error.expected}"
    assert message.isprintable() and message.isascii() and "\n" not in message


def test_the_sound_file_opens(tmp_path: Path) -> None:
    read_all(sound().write(tmp_path / "model.flm"))


def one(*payload_record: Any) -> Flm:
    return sound(records=[record(*payload_record)])


def int8_record(low: float, high: float) -> Flm:
    pair = np.float32([[low], [0]]), np.float32([[high], [1]])
    return one("w", (2, 4), INT8, quantised_payload(CODES, *pair, INT8))


FLM_CASES: dict[str, tuple[Flm | bytes, str]] = {
    "empty file": (b"", "model.flm"),
    "one byte": (b"\x02", "version"),
    "version 3": (sound(version=3), "version"),
    "version -1": (sound(version=-1), "version"),
    "no .flm at all": (b"<!DOCTYPE html><html></html>", "version"),
    "GGUF": (b"GGUF" + bytes(100), "model file"),
    "PyTorch zip": (b"PK\x03\x04" + bytes(100), "model file"),
    "kv count -1": (sound(counts={"kv": -1}), "config count"),
    "kv count 2^31-1": (sound(counts={"kv": BIG}), "config count"),
    "kv count one too many": (sound(counts={"kv": 4}, adapters=[], scores=False), "config"),
    "kv key twice": (sound(kv=[("a", "1"), ("a", "2")]), "config"),
    "kv key length -1": (i32(2, 1, -1) + bytes(64), "config key"),
    "kv key length 2^31-1": (i32(2, 1, BIG) + bytes(64), "config key"),
    "kv key no UTF-8": (sound(kv=[(b"\xff\xfe", "1")]), "config key[0]"),
    "kv value no UTF-8": (sound(kv=[("a", b"\xc0\x80")]), 'config "a"'),
    "peft_size no number": (sound(kv=[("peft_size", "many")]), "peft_size"),
    "peft_size negative": (sound(kv=[("peft_size", "-1")]), "peft_size"),
    "peft_size absurd": (sound(kv=[("peft_size", str(2**62))]), "peft_size"),
    "adapter key twice": (
        sound(adapters=[("lora", [("r", "8"), ("r", "9")])]),
        'adapter "lora"',
    ),
    "vocabulary count -1": (sound(counts={"tokens": -1}), "vocabulary count"),
    "vocabulary count 2^31-1": (sound(counts={"tokens": BIG}), "vocabulary count"),
    "token byte 256": (sound(tokens=[((256,), 0, 0.0)]), "token[0]"),
    "token byte -129": (sound(tokens=[((-129,), 0, 0.0)]), "token[0]"),
    "token length 2^31-1": (Flm(kv=[]).parts()[0] + i32(0, 1, BIG, 0, 0), "token[0]"),
    "token id negative": (sound(tokens=[((65,), -2, 0.0)]), "token[0] id"),
    "token score NaN": (sound(tokens=[((65,), 0, float("nan"))]), "token[0] score"),
    "special count -5": (sound(counts={"specials": -5}), "special token count"),
    "special no UTF-8": (sound(specials=[b"\xed\xa0\x80"]), "special token[0]"),
    "weight count -1": (sound(counts={"records": -1}), "weight count"),
    "weight count 2^31-1": (sound(counts={"records": BIG}), "weight count"),
    "weight count one too few": (sound(counts={"records": 4}), "end of file"),
    "bytes at the end": (sound(tail=b"\x00"), "end of file"),
    "weight name no UTF-8": (
        sound(records=[record(b"\xe2\x28", (1,), 0, bytes(4))]),
        "weight name",
    ),
    "weight name twice": (sound(records=[float_record("w", ONES)] * 2), "weights"),
    "no dimensions": (one("w", (), FLOAT32, bytes(4)), "w dimensions"),
    "9 dimensions": (one("w", (1,) * 9, FLOAT32, bytes(4)), "w dimensions"),
    "2^31-1 dimensions": (sound(records=[text("w") + i32(BIG) + bytes(64)]), "w dimensions"),
    "zero dimension": (one("w", (0, 4), FLOAT32, bytes(16)), "w shape"),
    "negative dimension": (one("w", (-1, 4), FLOAT32, bytes(16)), "w shape"),
    "both dimensions negative": (one("w", (-2, -2), FLOAT32, bytes(16)), "w shape"),
    "elements beyond the file": (one("w", (1 << 16, 1 << 15), FLOAT32, bytes(16)), "w data"),
    "elements near 2^62": (one("w", (BIG, BIG), FLOAT32, bytes(16)), "w shape"),
    "elements beyond 2^64": (one("w", (BIG, BIG, BIG), FLOAT32, bytes(16)), "w shape"),
    "elements wrap to 0": (one("w", (1 << 16,) * 4, FLOAT16, bytes(16)), "w shape"),
    "elements wrap to 4": (one("w", (1 << 30, 1 << 30, 16, 4), FLOAT16, bytes(16)), "w shape"),
    "unknown type 77": (one("w", (2, 2), 77, bytes(16)), "w data type"),
    "negative type": (one("w", (2, 2), -1, bytes(16)), "w data type"),
    "type fp8": (one("w", (2, 2), 10, bytes(16)), "w data type"),
    "type of ggml": (one("w", (2, 2), 10001, bytes(16)), "w data type"),
    "axis 1": (one("w", (2, 4), INT8, i32(1) + bytes(100)), "w axis"),
    "axis 2^31-1": (one("w", (2, 4), INT8, i32(BIG) + bytes(100)), "w axis"),
    "int8 vector": (one("w", (4,), INT8, i32(0) + bytes(100)), "w axis"),
    "int4 without its scales": (one("w", (1 << 20, 4), INT4, i32(0) + bytes(100)), "w scales"),
    "no groups": (one("w", (2, 4), INT4_GROUP, group_payload(groups=0)), "w groups"),
    "groups 2^31-1": (one("w", (2, 4), INT4_GROUP, group_payload(groups=BIG)), "w groups"),
    "too few groups": (one("w", (2, 4), INT4_GROUP, group_payload(groups=1)), "w groups"),
    "group size 0": (one("w", (2, 4), INT4_GROUP, group_payload(group=0)), "w group size"),
    "group size negative": (one("w", (2, 4), INT4_GROUP, group_payload(group=-2)), "w group size"),
    "group size 2^31-1": (one("w", (2, 4), INT4_GROUP, group_payload(group=BIG)), "w groups"),
    "minimum NaN": (int8_record(float("nan"), 1), "w scales"),
    "maximum NaN": (int8_record(-1, float("nan")), "w scales"),
    "maximum infinite": (int8_record(-1, float("inf")), "w scales"),
    "range overflows": (int8_record(-3e38, 3e38), "w scales"),
}


@pytest.mark.parametrize("case", FLM_CASES)
def test_malformed_flm(tmp_path: Path, case: str) -> None:
    content, field = FLM_CASES[case]
    path = tmp_path / "model.flm"
    path.write_bytes(content if isinstance(content, bytes) else content.bytes())
    check_refused(path, field)


def test_cut_at_every_boundary(tmp_path: Path) -> None:
    parts = sound().parts()
    path = tmp_path / "model.flm"
    for count in range(len(parts)):
        replace(path, b"".join(parts[:count]))
        check_refused(path, "")


def test_cut_anywhere(tmp_path: Path) -> None:
    data = sound().bytes()
    path = tmp_path / "model.flm"
    for length in range(len(data)):
        replace(path, data[:length])
        check_refused(path, "")


def test_any_byte_changed(tmp_path: Path) -> None:
    """A changed byte gives other content or a typed error, nothing else."""
    data = sound().bytes()
    path = tmp_path / "model.flm"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        replace(path, bytes(damaged))
        try:
            read_all(path)
        except KINDS:
            refused += 1
    assert 300 < refused < 1900


# ---- safetensors ---------------------------------------------------------------------------------
def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def headed(header: Any, data: bytes = bytes(8)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def blob(payload: bytes, shape: tuple[int, ...] = (2, 4)) -> bytes:
    return flm_bytes.safetensors({"w": ("fastllm", shape, payload)})


def deep(depth: int) -> bytes:
    return b'{"__metadata__":' + b"[" * depth + b"]" * depth + b"}"


INT4_BLOB = i32(1, INT4_NOZERO) + quantised_payload(CODES, LOW, HIGH, INT4_NOZERO)
SAFETENSORS_CASES: dict[str, tuple[bytes, str]] = {
    "shorter than a length": (b"\x01\x00", "header length"),
    "header length 2^64-1": (b"\xff" * 8 + bytes(64), "header length"),
    "header length 2^63": (struct.pack("<Q", 1 << 63) + bytes(64), "header length"),
    "header length 2^32": (struct.pack("<Q", 1 << 32) + bytes(64), "header length"),
    "header past the file": (struct.pack("<Q", 3) + b"{}", "header length"),
    "header empty": (headed(b""), "header"),
    "header no JSON": (headed(b"hello"), "header"),
    "header an array": (headed([]), "header"),
    "header cut": (headed(b'{"w":{"dtype":"F32"'), "header"),
    "header with a trailing comma": (headed(b'{"a":{},}'), "header"),
    "header with two values": (headed(b"{} {}"), "header"),
    "header no UTF-8": (headed(b'{"\xff":{}}'), "header"),
    "header with half a surrogate": (headed(rb'{"\ud800":{}}'), "header"),
    "header with a control character": (headed(b'{"a\nb":{}}'), "header"),
    "header nested 65 deep": (headed(deep(65)), "header"),
    "header nested 100000 deep": (headed(deep(100000)), "header"),
    "tensor twice": (headed(b'{"w":%b,"w":%b}' % ((json.dumps(entry()).encode(),) * 2)), "header"),
    "entry a number": (headed({"w": 1}), "w"),
    "no dtype": (headed({"w": {"shape": [2], "data_offsets": [0, 8]}}), "w"),
    "no shape": (headed({"w": {"dtype": "F32", "data_offsets": [0, 8]}}), "w"),
    "no offsets": (headed({"w": {"dtype": "F32", "shape": [2]}}), "w"),
    "dtype a number": (headed({"w": entry(dtype=32)}), "w dtype"),  # type: ignore[arg-type]
    "dtype unknown": (headed({"w": entry(dtype="F33")}), "w dtype"),
    "shape a number": (headed({"w": entry(shape=2)}), "w shape"),
    "9 dimensions": (headed({"w": entry(shape=[1] * 8 + [2])}), "w shape"),
    "shape with a fraction": (headed({"w": entry(shape=[2.5])}), "w shape"),
    "shape negative": (headed({"w": entry(shape=[-2])}), "w shape"),
    "shape zero": (headed({"w": entry(shape=[0], offsets=[0, 0])}, b""), "w shape"),
    "shape 2^64": (headed({"w": entry(shape=[1 << 64])}), "w shape"),
    "shape 2^63": (headed({"w": entry(shape=[1 << 63])}), "w shape"),
    "shape overflows to 2": (headed({"w": entry(shape=[1 << 31, 1 << 31, 4, 2])}), "w shape"),
    "three offsets": (headed({"w": entry(offsets=[0, 4, 8])}), "w data_offsets"),
    "offsets backwards": (headed({"w": entry(offsets=[8, 0])}), "w data_offsets"),
    "offset negative": (headed({"w": entry(offsets=[-8, 0])}), "w data_offsets"),
    "offset 2^64-1": (headed({"w": entry(offsets=[0, (1 << 64) - 1])}), "w data"),
    "offset past the file": (headed({"w": entry(shape=[4], offsets=[0, 16])}), "w data"),
    "data shorter than the shape": (headed({"w": entry(shape=[3])}), "w data_offsets"),
    "data longer than the shape": (headed({"w": entry(shape=[1])}), "w data_offsets"),
    "gap before": (headed({"w": entry(shape=[1], offsets=[4, 8])}), "w data_offsets"),
    "gap between": (
        headed({"a": entry(shape=[1], offsets=[0, 4]), "b": entry(offsets=[8, 16])}, bytes(16)),
        "b data_offsets",
    ),
    "overlap": (
        headed({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
        "b data_offsets",
    ),
    "bytes after": (headed({"w": entry()}, bytes(9)), "end of file"),
    "blob too short": (blob(i32(1)), "w data type"),
    "blob version 0": (blob(i32(0, 8)), "w blob version"),
    "blob version 2": (blob(i32(2, 14)), "w blob version"),
    "blob with a byte too many": (blob(INT4_BLOB + b"\0"), "w data"),
    "blob with a byte too few": (blob(INT4_BLOB[:-1]), "w data"),
    "blob of another shape": (blob(INT4_BLOB, (2, 6)), "w data"),
    "blob of floats": (blob(i32(1, FLOAT32) + bytes(32)), "w data type"),
    "blob of fp8": (blob(i32(1, 10) + bytes(32)), "w data type"),
    "blob scale infinite": (
        blob(i32(1, 8) + quantised_payload(CODES, LOW, HIGH * np.inf, INT4_NOZERO)),
        "w scales",
    ),
}


def write_directory(path: Path, weights: bytes | None, config: bytes = b"{}") -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_bytes(config)
    if weights is not None:
        (path / "model.safetensors").write_bytes(weights)
    return path


def test_the_sound_directories_open(tmp_path: Path) -> None:
    for twin in (headed({"w": entry()}), blob(INT4_BLOB), headed(deep(63), b""), headed({}, b"")):
        read_all(write_directory(tmp_path, twin))


@pytest.mark.parametrize("case", SAFETENSORS_CASES)
def test_malformed_safetensors(tmp_path: Path, case: str) -> None:
    content, field = SAFETENSORS_CASES[case]
    check_refused(write_directory(tmp_path, content), field)


# ---- directories ---------------------------------------------------------------------------------
def sharded(weight_map: Any) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        write_directory(path, None)
        (path / "a.safetensors").write_bytes(headed({"w": entry()}))
        (path / "b.safetensors").write_bytes(headed({"w": entry()}))
        index = path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map} if weight_map is not None else {}))

    return make


def links_out(path: Path) -> None:
    write_directory(path, None)
    outside = path.parent / "outside"
    outside.write_bytes(headed({"w": entry()}))
    (path / "model.safetensors").symlink_to(outside)


def with_config(config: bytes) -> Callable[[Path], object]:
    return lambda path: write_directory(path, headed({"w": entry()}), config)


def with_file(name: str, keep_config: bool = True) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        write_directory(path, None)
        (path / name).write_bytes(b"data")
        if not keep_config:
            (path / "config.json").unlink()

    return make


def config_link(path: Path) -> None:
    write_directory(path, headed({"w": entry()}))
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("/etc/hostname")


DIRECTORY_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda path: None, "model"),
    "no files": (lambda path: path.mkdir(), "model directory"),
    "no weights": (lambda path: write_directory(path, None), "model directory"),
    "PyTorch .bin": (with_file("pytorch_model.bin"), "model directory"),
    "PyTorch .pt alone": (with_file("model.pt", keep_config=False), "model directory"),
    "GGUF inside": (with_file("model.gguf"), "model directory"),
    "config no JSON": (with_config(b"{"), "config.json"),
    "config an array": (with_config(b"[]"), "config.json"),
    "config with NaN": (with_config(b'{"a": NaN}'), "config.json"),
    "config a link out": (config_link, "config.json"),
    "AWQ": (
        with_config(b'{"quantization_config": {"quant_method": "awq"}}'),
        "quantization_config",
    ),
    "quantised by an unnamed method": (
        with_config(b'{"quantization_config": {"bits": 4}}'),
        "quantization_config",
    ),
    "GPTQ": (
        with_config(b'{"quantization_config": {"quant_method": "gptq"}}'),
        "quantization_config",
    ),
    "weights a link out": (links_out, "model.safetensors"),
    "no weight_map": (sharded(None), "model.safetensors.index.json"),
    "weight_map a list": (sharded([]), "weight_map"),
    "shard a number": (sharded({"w": 1}), "weight_map"),
    "shard outside": (sharded({"w": "../a.safetensors"}), "file name"),
    "shard absolute": (sharded({"w": "/etc/passwd"}), "file name"),
    "shard hidden": (sharded({"w": ".."}), "file name"),
    "shard missing": (sharded({"w": "c.safetensors"}), "c.safetensors"),
    "shard without the tensor": (sharded({"v": "a.safetensors"}), "weight_map"),
    "tensor in two shards": (
        sharded({"w": "a.safetensors", "v": "b.safetensors"}),
        "b.safetensors",
    ),
}


@pytest.mark.parametrize("case", DIRECTORY_CASES)
def test_malformed_directory(tmp_path: Path, case: str) -> None:
    make, field = DIRECTORY_CASES[case]
    path = tmp_path / "model"
    make(path)
    check_refused(path, field)


def test_ways_out_are_named(tmp_path: Path) -> None:
    with_file("pytorch_model.bin")(tmp_path)
    with pytest.raises(Unsupported, match="safetensors .*transformers.* save_pretrained"):
        _core.open_model_file(str(tmp_path))


def test_sound_shards_open(tmp_path: Path) -> None:
    path = tmp_path / "model"
    sharded({"w": "a.safetensors"})(path)
    read_all(path)


def test_not_readable(tmp_path: Path) -> None:
    check_refused(tmp_path / "absent.flm", "model", (IoError,))


def test_weight_that_is_not_there(tmp_path: Path) -> None:
    file = _core.open_model_file(str(sound().write(tmp_path / "model.flm")))
    with pytest.raises(FormatError, match='weight: got no tensor "absent"'):
        file.weight("absent")
