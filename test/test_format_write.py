"""Writers against the independent reader, and files that appear complete or not at all."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import flm_bytes
import numpy as np
import pytest
from flm_bytes import BFLOAT16, FLOAT16, FLOAT32, INT4_GROUP, INT4_NOZERO, INT8

from slicellm import IoError, Unsupported, _core

RNG = np.random.default_rng
TYPES = {
    "float32": FLOAT32,
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    "int8": INT8,
    "int4": INT4_NOZERO,
    "int4g8": INT4_GROUP,
    "int4g5": INT4_GROUP,
}
TOKENS = [(b"hi", 0, -1.5), ("\u2581\u4f60".encode(), 5, 0.0), (b"\xff", 2, 1.0), (b"", 3, 0.25)]


def weights(cols: int = 24) -> dict[str, _core.Weight]:
    """One matrix of each type, with rows on one side of zero, constant rows and rows of zeros."""
    out = {}
    for i, dtype in enumerate(TYPES):
        values = RNG(i).standard_normal((9, cols)).astype(np.float32)
        values[1], values[2] = np.abs(values[1]) + 1, -np.abs(values[2]) - 1
        values[3], values[4], values[5] = 0.3, -0.7, 0
        out[dtype] = _core.Weight.from_numpy(dtype, values).convert(dtype)
    return out


def write(path: Path, tensors: dict[str, _core.Weight], has_scores: bool = True) -> None:
    config = {"model_type": "llama", "name": "caf\u00e9", "peft_size": "1", "peft.a.r": "8"}
    specials = ["<s>", "</s>"] if has_scores else []
    names = list(tensors)
    _core.write_flm(str(path), config, TOKENS, has_scores, specials, names, tensors.__getitem__)


# ---- .flm ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("cols", [24, 23])
def test_flm_reads_back_independently(tmp_path: Path, cols: int) -> None:
    """fastllm's decoding (section for section, in float32) gives our grid to the last bit."""
    tensors = weights(cols)
    write(tmp_path / "model.flm", tensors)
    content = flm_bytes.read_flm(tmp_path / "model.flm")
    assert content.version == 2
    assert content.config == {
        "model_type": "llama",
        "name": "caf\u00e9",
        "tokenizer_use_score": "1",
        "tokenizer_has_special_tokens": "1",
    }  # no adapters: their section is not written
    assert content.tokens == TOKENS and content.specials == ["<s>", "</s>"]
    assert list(content.weights) == list(tensors)
    for name, weight in tensors.items():
        assert content.weights[name].code == TYPES[name]
        np.testing.assert_array_equal(content.weights[name].values, weight.decode())


@pytest.mark.parametrize("cols", [24, 23])
def test_flm_reads_back_with_our_reader(tmp_path: Path, cols: int) -> None:
    tensors = weights(cols)
    write(tmp_path / "model.flm", tensors, has_scores=False)
    file = _core.open_model_file(str(tmp_path / "model.flm"))
    assert not file.has_scores and file.special_tokens == []
    assert file.tokens == [(text, i, -float(at)) for at, (text, i, _) in enumerate(TOKENS)]
    for name, weight in tensors.items():
        copy = file.weight(name)
        assert (copy.dtype, copy.shape, copy.group_size) == (
            weight.dtype,
            weight.shape,
            weight.group_size,
        )
        np.testing.assert_array_equal(copy.scale, weight.scale)
        np.testing.assert_array_equal(copy.minimum, weight.minimum)
        np.testing.assert_array_equal(copy.decode(), weight.decode())


def test_constant_rows_have_a_range(tmp_path: Path) -> None:
    """A range of no width would make fastllm divide zero by zero."""
    write(tmp_path / "model.flm", {"int4": weights()["int4"]})
    data = (tmp_path / "model.flm").read_bytes()
    start = data.index(b"int4") + 4 + 12 + 4 + 4  # name, dimensions, type, axis
    pairs = np.frombuffer(data, "<f4", 18, start).reshape(9, 2)
    assert (pairs[:, 1] > pairs[:, 0]).all()
    assert (pairs[:, 0] <= 0).all() and (pairs[:, 1] >= 0).all()


def test_grid_that_no_range_gives_is_refused(tmp_path: Path) -> None:
    """A blob may hold any minimum; a .flm only multiples of the scale."""
    codes = np.arange(8).reshape(2, 4)
    low, scale = np.float32([[-1], [0.3]]), np.float32([[0.25], [0.25]])
    blob = flm_bytes.i32(1, 8) + flm_bytes.quantised_payload(codes, low, scale, INT4_NOZERO)
    (tmp_path / "config.json").write_text("{}")
    raw = flm_bytes.safetensors({"w": ("fastllm", (2, 4), blob)})
    (tmp_path / "model.safetensors").write_bytes(raw)
    weight = _core.open_model_file(str(tmp_path)).weight("w")
    with pytest.raises(Unsupported, match="w scales: got minimum 0.3.* with scale 0.25"):
        write(tmp_path / "model.flm", {"w": weight})
    assert not (tmp_path / "model.flm").exists()


@pytest.mark.parametrize(
    "name", ["llama-int4", "llama-int4g32", "llama-int8", "chatglm2-int4", "llamacpp-int8"]
)
def test_copies_of_other_writers_files_are_lossless(
    fixtures: Path, tmp_path: Path, name: str
) -> None:
    """torch2flm's and fastllm's own grids survive: the independent reader sees equal weights."""
    file = _core.open_model_file(str(fixtures / f"{name}.flm"))
    path = tmp_path / "copy.flm"
    names = file.names()
    arguments = (file.config, file.tokens, file.has_scores, file.special_tokens, names)
    _core.write_flm(str(path), *arguments, file.weight)
    source, copy = flm_bytes.read_flm(fixtures / f"{name}.flm"), flm_bytes.read_flm(path)
    assert copy.config == source.config and copy.tokens == source.tokens
    for weight_name, decoded in source.weights.items():
        np.testing.assert_array_equal(copy.weights[weight_name].values, decoded.values)


# ---- directories ---------------------------------------------------------------------------------
@pytest.mark.parametrize("shard_bytes", [1 << 30, 700, 1])
def test_directory_reads_back(tmp_path: Path, shard_bytes: int) -> None:
    tensors = weights(23)
    path = tmp_path / "new" / "model"
    _core.write_export_dir(str(path), list(tensors), tensors.__getitem__, shard_bytes=shard_bytes)
    files = sorted(p.name for p in path.iterdir())
    shards = sorted(path.glob("*.safetensors"))
    if shard_bytes == 1 << 30:
        assert files == ["model.safetensors"]
    else:
        count = len(shards)
        assert count == (7 if shard_bytes == 1 else 4)
        assert shards[1].name == f"model-00002-of-{count:05}.safetensors"
        index = json.loads((path / "model.safetensors.index.json").read_text())
        total = sum(
            p.stat().st_size - 8 - struct.unpack("<Q", p.read_bytes()[:8])[0] for p in shards
        )
        assert index["metadata"]["total_size"] == total
        assert sorted(index["weight_map"]) == sorted(tensors)
    (path / "config.json").write_text("{}")
    ours = _core.open_model_file(str(path))
    for shard in shards:
        for name, decoded in flm_bytes.read_safetensors(shard).items():
            weight = tensors.pop(name)
            assert decoded.code == TYPES[name]
            np.testing.assert_array_equal(decoded.values, weight.decode())
            np.testing.assert_array_equal(ours.weight(name).decode(), weight.decode())
            np.testing.assert_array_equal(ours.weight(name).scale, weight.scale)
    assert not tensors


def test_float_data_is_aligned(tmp_path: Path) -> None:
    """The header is padded with spaces to a multiple of 8, as the format allows."""
    tensors = weights()
    _core.write_export_dir(str(tmp_path), list(tensors), tensors.__getitem__)
    (length,) = struct.unpack("<Q", (tmp_path / "model.safetensors").read_bytes()[:8])
    assert length % 8 == 0


def test_one_file_replaces_shards_and_back(tmp_path: Path) -> None:
    """What an older export left must not hide the new one."""
    (tmp_path / "config.json").write_text("{}")
    for value, shard_bytes in ((1, 1), (2, 1 << 30), (3, 1)):
        array = np.full((2, 2), value, np.float32)
        _core.write_export_dir(
            str(tmp_path),
            ["a", "b"],
            lambda name, array=array: _core.Weight.from_numpy(name, array),
            shard_bytes=shard_bytes,
        )
        file = _core.open_model_file(str(tmp_path))
        assert all((file.weight(n).decode() == value).all() for n in "ab")


# ---- failures ------------------------------------------------------------------------------------
def broken(name: str) -> _core.Weight:
    if name == "int4":
        raise KeyboardInterrupt("stopped")
    return weights()[name]


def write_both(path: Path, weight: Callable[[str], _core.Weight]) -> list[Callable[[], None]]:
    names = list(TYPES)
    return [
        lambda: _core.write_flm(str(path / "model.flm"), {}, [], False, [], names, weight),
        lambda: _core.write_export_dir(str(path), names, weight, shard_bytes=1),
    ]


def test_an_error_leaves_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "model.flm").write_bytes(b"old")
    for write_it in write_both(tmp_path, broken):
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            write_it()
    assert os.listdir(tmp_path) == ["model.flm"]
    assert (tmp_path / "model.flm").read_bytes() == b"old"


def test_a_made_directory_goes_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _core.write_export_dir(str(tmp_path / "new"), ["int4"], broken)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    good = weights()
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "absent" / "model.flm", tmp_path):
        with pytest.raises(IoError):
            write(path, good)
    with pytest.raises(IoError):
        _core.write_export_dir(str(tmp_path / "file"), list(good), good.__getitem__)
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """A limit on file sizes makes writes fail as a full disk does."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    big = _core.Weight.from_numpy("w", np.zeros((600, 1000), np.float32))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        with pytest.raises(IoError, match="room to write the file"):
            write(tmp_path / "model.flm", {"w": big})
        with pytest.raises(IoError, match="room to write the file"):
            _core.write_export_dir(str(tmp_path / "dir"), ["w"], lambda name: big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_progress_counts_weights(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tensors = weights()
    arguments = ({}, [], False, [], list(tensors), tensors.__getitem__)
    _core.write_flm(str(tmp_path / "m.flm"), *arguments, lambda *at: seen.append(at))
    assert seen == [(i + 1, len(tensors)) for i in range(len(tensors))]
