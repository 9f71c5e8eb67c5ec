"""Calibrations kept in the cache, and engines that make their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slicellm import Engine, InvalidArgument, Model, calibration


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLICELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_calibration_is_kept(model: Model, cache: Path) -> None:
    calls: list[tuple[int, int]] = []
    latency = calibration.latency_model(
        model, seconds=0.3, progress=lambda done, total: calls.append((done, total))
    )
    assert calls and latency.decode_step_ms(1) > 0
    (path,) = cache.iterdir()
    assert path == calibration.cache_file(model) and model.fingerprint in path.name
    calls.clear()
    again = calibration.latency_model(model, progress=lambda *call: calls.append(call))
    assert not calls, "it came from the cache"
    assert json.loads(again.to_json()) == json.loads(latency.to_json())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b"null"])
def test_corrupt_cache_is_measured_again(model: Model, cache: Path, data: bytes) -> None:
    path = calibration.cache_file(model)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    latency = calibration.latency_model(model, seconds=0.2)
    assert latency.decode_step_ms(1) > 0
    assert calibration.load_cached(path) is not None
    assert [p.name for p in cache.iterdir()] == [path.name], "no temporary file is left"


def test_engine_calibrates_by_itself(model: Model, cache: Path) -> None:
    calibration.latency_model(model, seconds=0.2)
    with Engine(model) as engine:
        assert engine.generate("the", max_tokens=2).token_ids


def test_unwritable_cache(model: Model, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.write_text("a file where the directory should be")
    assert calibration.latency_model(model, seconds=0.2).decode_step_ms(1) > 0
    assert "calibration not kept" in capsys.readouterr().err


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLICELLM_CACHE", "/own")
    assert calibration.cache_directory() == Path("/own")
    monkeypatch.delenv("SLICELLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert calibration.cache_directory() == Path("/xdg/slicellm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert calibration.cache_directory() == tmp_path / ".cache" / "slicellm"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "5", True, 1e9])
def test_bad_calibration_time(model: Model, cache: Path, seconds: Any) -> None:
    with pytest.raises(InvalidArgument, match="seconds: got"):
        calibration.latency_model(model, seconds=seconds)
