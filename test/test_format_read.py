"""Readers of .flm files and directories against an independent numpy decoder."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import flm_bytes
import numpy as np
import pytest
from flm_bytes import (
    BFLOAT16,
    INT4,
    INT4_GROUP,
    INT4_NOZERO,
    INT8,
    Array,
    Decoded,
    Flm,
    bfloat16_bits,
    float_record,
    quantised_payload,
    record,
)

from slicellm import _core

FLM_FIXTURES = [
    *(f"chatglm1-{t}" for t in ("float16", "int4", "int8")),
    *(f"chatglm2-{t}" for t in ("float16", "int4", "int8")),
    *(f"llama-{t}" for t in ("float16", "float32", "int4", "int4g128", "int4g32", "int8")),
    *(f"llamacpp-{t}" for t in ("float16", "int4", "int8")),
    *(f"qwen2-{t}" for t in ("float16", "int4", "int4g64")),
    "qwen2cpp-float16",
]
EXPORT_FIXTURES = ["export_llama-float16", "export_llama-int4", "export_llama-int4g64"]
RNG = np.random.default_rng


def assert_decodes(weight: _core.Weight, expected: Decoded) -> None:
    """Equal to the last bit, but for int8 and int4 with zero: there our w = minimum + scale * code
    rounds once more than fastllm's w = scale * (code - zero)."""
    values = weight.decode()
    assert values.dtype == np.float32 and values.shape == expected.values.shape
    if expected.code in (INT8, INT4):
        tolerance = 2 * np.finfo(np.float32).eps * np.abs(expected.values).max()
        np.testing.assert_allclose(values, expected.values, rtol=0, atol=tolerance)
    else:
        np.testing.assert_array_equal(values, expected.values)


# ---- files written by fastllm --------------------------------------------------------------------
@pytest.mark.parametrize("name", FLM_FIXTURES)
def test_fixture(fixtures: Path, name: str) -> None:
    path = fixtures / f"{name}.flm"
    expected = flm_bytes.read_flm(path)
    file = _core.open_model_file(str(path))
    assert (file.kind, file.version, file.path) == ("flm", 2, str(path))
    assert file.config == expected.config
    assert file.special_tokens == expected.specials
    assert file.names() == list(expected.weights)
    assert [(text, i) for text, i, _ in file.tokens] == [(t, i) for t, i, _ in expected.tokens]
    if file.has_scores:
        assert [score for _, _, score in file.tokens] == [s for _, _, s in expected.tokens]
    else:  # without scores a token's is minus its place
        assert [score for _, _, score in file.tokens] == [-i for i in range(len(file.tokens))]
    for weight_name, decoded in expected.weights.items():
        assert weight_name in file
        assert_decodes(file.weight(weight_name), decoded)


@pytest.mark.parametrize("name", EXPORT_FIXTURES)
def test_export_fixture(fixtures: Path, name: str) -> None:
    path = fixtures / name
    expected = flm_bytes.read_safetensors(path / "model.safetensors")
    file = _core.open_model_file(str(path))
    assert file.kind == ("hf_dir" if name.endswith("float16") else "export_dir")
    assert file.config["num_attention_heads"] == "4" and file.config["rms_norm_eps"] == "1e-05"
    assert sorted(file.names()) == sorted(expected)
    for weight_name, decoded in expected.items():
        assert_decodes(file.weight(weight_name), decoded)


def test_one_model_in_two_formats(fixtures: Path) -> None:
    """The same weights as a directory and as a .flm: float16 is equal; int4 within the shift of the
    grid that torch2flm's stored maximum makes (at most one quantisation step)."""
    for dtype in ("float16", "int4"):
        directory = _core.open_model_file(str(fixtures / f"export_llama-{dtype}"))
        flm = _core.open_model_file(str(fixtures / f"llama-{dtype}.flm"))
        assert sorted(directory.names()) == sorted(flm.names())
        for name in flm.names():
            a, b = directory.weight(name), flm.weight(name)
            step = a.scale.max() if len(a.scale) else 0
            assert np.abs(a.decode() - b.decode()).max() <= step


# ---- what the fixtures lack ----------------------------------------------------------------------
def matrix(rows: int = 6, cols: int = 10, seed: int = 0) -> Array:
    return RNG(seed).standard_normal((rows, cols)).astype(np.float32)


def open_one(tmp_path: Path, payload_record: bytes, **sections: object) -> _core.ModelFile:
    flm = Flm(records=[payload_record], **sections)  # type: ignore[arg-type]
    return _core.open_model_file(str(flm.write(tmp_path / "model.flm")))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_versions(tmp_path: Path, version: int) -> None:
    values = matrix()
    tokens = [((104, 105), 7, 0.0), ((0xE2, 0x96, 0x81), 3, 0.0)]
    file = open_one(tmp_path, float_record("w", values), version=version, tokens=tokens)
    assert file.version == version
    assert file.config == ({} if version == 0 else {"model_type": "llama"})
    assert file.tokens == [(b"hi", 7, 0.0), ("\u2581".encode(), 3, -1.0)]
    np.testing.assert_array_equal(file.weight("w").decode(), values)


def test_bfloat16(tmp_path: Path) -> None:
    bits = np.array([[0x3F80, 0xBF00, 0x0001, 0x7F7F], [0x0000, 0x8000, 0x4049, 0xC2C8]], np.uint16)
    file = open_one(tmp_path, record("w", bits.shape, BFLOAT16, bits.tobytes()))
    weight = file.weight("w")
    assert weight.dtype == "bfloat16"
    expected = [[1.0, -0.5, 2.0**-133, 255 * 2.0**120], [0.0, -0.0, 3.140625, -100.0]]
    np.testing.assert_array_equal(weight.decode(), np.array(expected, np.float32))
    np.testing.assert_array_equal(bfloat16_bits(weight.decode()), bits)


@pytest.mark.parametrize("code", [INT8, INT4, INT4_NOZERO])
@pytest.mark.parametrize("cols", [10, 7])
def test_per_row(tmp_path: Path, code: int, cols: int) -> None:
    """All ranges a file may hold: around zero, on one side of it, of no width. Odd columns make
    rows begin inside a byte."""
    low = np.array([[-1.5], [0.5], [-3.0], [0.0], [0.0], [-2.0]], np.float32)
    high = np.array([[2.5], [3.0], [-1.0], [0.0], [1.0], [0.0]], np.float32)
    codes = RNG(1).integers(0, 2 ** flm_bytes.BITS[code], (6, cols))
    payload = quantised_payload(codes, low, high, code)
    weight = open_one(tmp_path, record("w", codes.shape, code, payload)).weight("w")
    assert weight.dtype == ("int8" if code == INT8 else "int4") and weight.group_size == cols
    expected = flm_bytes.decode_min_max(codes, low, high, code, cols)
    assert_decodes(weight, Decoded(code, expected))
    assert np.all(weight.decode()[3] == 0)


@pytest.mark.parametrize("cols, group", [(10, 4), (7, 3), (8, 8), (5, 16), (6, 1)])
def test_groups(tmp_path: Path, cols: int, group: int) -> None:
    """Short last groups, groups longer than a row, groups of one."""
    groups = -(-cols // group)
    low = -np.abs(RNG(2).standard_normal((5, groups))).astype(np.float32)
    high = np.abs(RNG(3).standard_normal((5, groups))).astype(np.float32)
    codes = RNG(4).integers(0, 16, (5, cols))
    payload = quantised_payload(codes, low, high, INT4_GROUP, group)
    weight = open_one(tmp_path, record("w", codes.shape, INT4_GROUP, payload)).weight("w")
    assert weight.group_size == group and len(weight.scale) == 5 * groups
    expected = flm_bytes.decode_min_max(codes, low, high, INT4_GROUP, group)
    assert_decodes(weight, Decoded(INT4_GROUP, expected))


def test_hand_computed_int4(tmp_path: Path) -> None:
    """min -1, max 2: scale 0.2, zero 5; code 0xF is the high nibble of the first byte."""
    payload = flm_bytes.i32(0) + struct.pack("<ff", -1, 2) + bytes([0xF0, 0x5A])
    weight = open_one(tmp_path, record("w", (1, 4), INT4_NOZERO, payload)).weight("w")
    np.testing.assert_allclose(weight.decode(), [[2.0, -1.0, 0.0, 1.0]], atol=1e-6)


def test_row_of_zeros_written_by_torch2flm(tmp_path: Path) -> None:
    """torch2flm divides zero by zero there and stores (NaN, 0); the row is still zeros."""
    low, high = np.array([[np.nan], [-1.0]]), np.array([[0.0], [2.0]])
    codes = np.full((2, 4), 9)
    payload = quantised_payload(codes, low, high, INT4_NOZERO)
    values = open_one(tmp_path, record("w", (2, 4), INT4_NOZERO, payload)).weight("w").decode()
    assert np.all(values[0] == 0)
    np.testing.assert_allclose(values[1], 0.8, rtol=1e-6)


def test_adapters(tmp_path: Path) -> None:
    adapters = [("default", [("r", "8"), ("lora_alpha", "32")]), ("other", [])]
    file = open_one(tmp_path, float_record("w", matrix()), adapters=adapters)
    assert file.config["peft_size"] == "2"
    assert file.config["peft.default.r"] == "8"
    assert file.config["peft.default.lora_alpha"] == "32"
    assert "w" in file


def test_token_bytes_may_be_sign_extended(tmp_path: Path) -> None:
    tokens = [((0xE4 - 256, 0xBD - 256, 0xA0 - 256), 1, -0.5), ((), 2, 1.0)]
    file = open_one(
        tmp_path, float_record("w", matrix()), tokens=tokens, scores=True, specials=["<s>", ""]
    )
    assert file.tokens == [("你".encode(), 1, -0.5), (b"", 2, 1.0)]
    assert file.special_tokens == ["<s>", ""] and file.has_scores


def test_no_tokens_and_no_weights(tmp_path: Path) -> None:
    file = _core.open_model_file(str(Flm().write(tmp_path / "model.flm")))
    assert file.tokens == [] and file.names() == []


# ---- directories ---------------------------------------------------------------------------------
def write_directory(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model.safetensors").write_bytes(flm_bytes.safetensors(tensors))


def test_config_is_flattened_and_generation_config_wins(tmp_path: Path) -> None:
    write_directory(tmp_path, {})
    config = {
        "model_type": "llama",
        "eos_token_id": 2,
        "rope_scaling": {"type": "linear", "factor": 2.0, "deep": {"er": True}},
        "sliding_window": None,
        "architectures": ["LlamaForCausalLM"],
        "rms_norm_eps": 1e-05,
        "empty": {},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7], "top_p": 0.8}')
    assert _core.open_model_file(str(tmp_path)).config == {
        "model_type": "llama",
        "eos_token_id": "[2, 7]",
        "rope_scaling.type": "linear",
        "rope_scaling.factor": "2.0",
        "rope_scaling.deep.er": "true",
        "sliding_window": "null",
        "architectures": '["LlamaForCausalLM"]',
        "rms_norm_eps": "1e-05",
        "top_p": "0.8",
    }


def test_float_dtypes_and_others(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0, 0.25]], np.float32)
    write_directory(
        tmp_path,
        {
            "a": ("F32", (1, 3), values.tobytes()),
            "b": ("F16", (1, 3), values.astype(np.float16).tobytes()),
            "c": ("BF16", (3,), bfloat16_bits(values).tobytes()),
            "d": ("I64", (2,), bytes(16)),
        },
    )
    file = _core.open_model_file(str(tmp_path))
    assert file.kind == "hf_dir" and file.names() == ["a", "b", "c", "d"]
    for name in "abc":
        np.testing.assert_array_equal(file.weight(name).decode().ravel(), values.ravel())
    with pytest.raises(_core.Unsupported, match="d dtype.*I64"):
        file.weight("d")


def test_blobs_of_every_type(tmp_path: Path) -> None:
    """8 and 9 store exact scales; 3 and 4 store ranges."""
    codes = RNG(5).integers(0, 16, (4, 6))
    low = -np.abs(RNG(6).standard_normal((4, 2))).astype(np.float32)
    second = np.abs(RNG(7).standard_normal((4, 2))).astype(np.float32)
    tensors = {}
    for code in (INT8, INT4, INT4_NOZERO, INT4_GROUP):
        pairs = (low, second) if code == INT4_GROUP else (low[:, :1], second[:, :1])
        blob = flm_bytes.i32(1, code) + quantised_payload(codes, *pairs, code, 3)
        tensors[f"w{code}"] = ("fastllm", (4, 6), blob)
    write_directory(tmp_path, tensors)
    file = _core.open_model_file(str(tmp_path))
    assert file.kind == "export_dir"
    for name, decoded in flm_bytes.read_safetensors(tmp_path / "model.safetensors").items():
        assert_decodes(file.weight(name), decoded)
    exact = low[:, [0, 0, 0, 1, 1, 1]] + second[:, [0, 0, 0, 1, 1, 1]] * codes.astype(np.float32)
    np.testing.assert_array_equal(file.weight("w9").decode(), exact.astype(np.float32))


def test_sharded(tmp_path: Path) -> None:
    write_directory(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    index = {}
    for shard, names in (("a.safetensors", "xy"), ("b.safetensors", "z")):
        tensors = {n: ("F32", (2,), np.float32([ord(n), 1]).tobytes()) for n in names}
        (tmp_path / shard).write_bytes(flm_bytes.safetensors(tensors))
        index.update(dict.fromkeys(names, shard))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    file = _core.open_model_file(str(tmp_path))
    assert file.names() == ["x", "y", "z"]
    assert [file.weight(n).decode()[0] for n in "xyz"] == [ord(n) for n in "xyz"]


def test_links_into_a_download_cache(tmp_path: Path) -> None:
    """huggingface-hub's cache: snapshots/<commit>/<file> are links into blobs/."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0f1e"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_directory(blobs, {"w": ("F32", (1,), np.float32([3]).tobytes())})
    for name in ("config.json", "model.safetensors"):
        (blobs / name).rename(blobs / f"hash-{name}")
        (snapshot / name).symlink_to(f"../../blobs/hash-{name}")
    assert _core.open_model_file(str(snapshot)).weight("w").decode() == 3
