"""Profiles: what ships, what a belief is, files that are wrong, and the roofline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import table_machine

from slicellm._core import InvalidArgument
from slicellm.bench import profiles
from slicellm.bench.profiles import Profile, decode_step, load_profile, parse_profile
from slicellm.bench.roofline import Hardware, Shape, parse_shape, roofline_profile
from slicellm.bench.tasks import WorkloadTask
from slicellm.cli.profiles import _weighted_quantiles
from slicellm.simulation import simulate

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (
    "datacenter-vllm",
    "jetson-orin-llama3-8b-int4",
    "rtx4060ti-chatglm2-6b-int4",
    "rtx6000ada-mistral-7b",
)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_say_what_is_published_and_what_is_ours(name: str) -> None:
    assert name in profiles.names()
    profile = load_profile(name)
    assert profile.name == name
    text = " ".join(profile.provenance.values())
    assert "ours" in text and ("published" in text or "data sheet" in text)
    for part in ("kv", "jitter", "max_rows"):
        assert part in profile.provenance
    assert profile.truth().decode_step_ms(1) > 0


def test_shipped_profiles_are_those_that_the_tool_writes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "make_profiles"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    written = sorted(path.stem for path in tmp_path.iterdir())
    assert written == sorted(SHIPPED)
    for name in written:
        new, shipped = (
            parse_profile((folder / f"{name}.json").read_text())
            for folder in (tmp_path, ROOT / "python" / "slicellm" / "profiles")
        )
        for step in (decode_step(1, 0), decode_step(15, 300), profiles.chunk_step(700)):
            old_ms, new_ms = shipped.truth().predict_ms(*step)[0], new.truth().predict_ms(*step)[0]
            assert new_ms == pytest.approx(old_ms, rel=1e-6)


def test_published_tables_as_they_are() -> None:
    slice_gpu = load_profile("rtx4060ti-chatglm2-6b-int4").truth()
    table = [14, 27, 38, 50, 60, 72, 83, 125, 126, 123, 124, 125, 126, 123, 124]
    assert [slice_gpu.decode_step_ms(b) for b in range(1, 16)] == pytest.approx(table)
    assert slice_gpu.predict_ms(100, 1, prefill_tokens=100)[0] == pytest.approx(60)  # 20 + 40
    big = load_profile("datacenter-vllm").truth()
    published = {1: 37.65, 8: 38.18, 16: 48.84, 50: 49.09, 60: 54.01, 75: 62.0, 100: 64.74}
    assert [big.decode_step_ms(b) for b in published] == pytest.approx(list(published.values()))
    assert big.decode_step_ms(12) == pytest.approx((38.18 + 48.84) / 2)
    slai = load_profile("rtx6000ada-mistral-7b").truth()
    steps = {64: 22.7, 128: 24.1, 256: 28.8, 384: 37.8, 512: 46.5, 768: 57.1, 1024: 74.7}
    for budget, ms in steps.items():
        assert slai.predict_ms(budget, 1)[0] == pytest.approx(ms, rel=0.05)


def test_files_survive_a_round_trip(tmp_path: Path) -> None:
    profile = table_machine([10.0, 12.5], jitter=0.125, provenance={"latency": "ours: é"})
    path = tmp_path / "p.json"
    path.write_text(profile.to_json(), encoding="utf-8")
    assert load_profile(str(path)) == profile


def test_residuals_survive_and_are_drawn_with_their_own_mean(tmp_path: Path) -> None:
    machine = table_machine([10.0] * 64, residuals=(0.5, 1.0, 2.5))
    path = tmp_path / "p.json"
    path.write_text(machine.to_json(), encoding="utf-8")
    assert load_profile(str(path)) == machine
    tasks = [WorkloadTask(0.0, 1, 4000, 4000)]
    run = simulate(tasks, "orca", machine, seed=3)
    assert run.steps is not None
    factors = run.steps["duration"][1:] / 0.010  # decode steps
    # Half of the draws lie evenly in [0.5, 1], half in [1, 2.5]: mean (0.75 + 1.75) / 2.
    assert factors.min() >= 0.5 and factors.max() <= 2.5
    assert np.mean(factors) == pytest.approx(1.25, abs=4 * np.std(factors) / np.sqrt(len(factors)))
    assert np.median(factors) == pytest.approx(1.0, abs=0.05)


def test_time_weighted_quantiles() -> None:
    # 300 steps of 1 s at 2x and 100 of 7 s at 1x: by time, 70 % of what is drawn is 1x.
    found = _weighted_quantiles(
        np.repeat([2.0, 1.0], [300, 100]), np.repeat([1.0, 7.0], [300, 100])
    )
    assert found[0] == 1.0 and found[-1] == 2.0 and list(found) == sorted(found)
    assert np.mean(found) == pytest.approx(1.3, abs=0.02)


# ---- beliefs ------------------------------------------------------------------------------------


def test_belief_without_noise_is_the_truth() -> None:
    table = table_machine([10.0, 15.0, 18.0], prefill_ms=20.0, prefill_ms_per_token=0.5)
    belief = table.belief(0)
    assert [belief.decode_step_ms(b) for b in (1, 2, 3)] == pytest.approx([10, 15, 18])
    assert belief.predict_ms(100, 1, prefill_tokens=100)[0] == pytest.approx(70)
    machine = load_profile("jetson-orin-llama3-8b-int4")
    exact = Profile(**{**vars(machine), "jitter": 0.0})
    for step in (decode_step(1, 16), decode_step(16, 512), profiles.chunk_step(256)):
        true = exact.truth().predict_ms(*step)[0]
        assert exact.belief(0).predict_ms(*step)[0] == pytest.approx(true, rel=0.03)


@pytest.mark.parametrize("name", ["rtx4060ti-chatglm2-6b-int4", "jetson-orin-llama3-8b-int4"])
def test_belief_is_noisy_and_seeded(name: str) -> None:
    profile = load_profile(name)
    assert profile.belief(1).to_json() == profile.belief(1).to_json() != profile.belief(2).to_json()
    ratios = []
    for seed in range(20):
        belief = profile.belief(seed)
        ratios += [
            belief.decode_step_ms(b, 16) / profile.truth().decode_step_ms(b, 16) for b in (1, 4, 8)
        ]
    assert 0.001 < np.std(ratios) < profile.jitter  # medians of nine: closer than one measurement
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
    median, quantile = profile.belief(0).predict_ms(4, 4, 64.0)
    assert median < quantile < median * np.exp(3 * profile.jitter)


# ---- the roofline -------------------------------------------------------------------------------


def test_roofline_by_hand() -> None:
    shape = Shape(layers=2, hidden=1000, heads=10, kv_heads=5, ffn=4000, vocab=10_000)
    # 2 * (2 * 1000 * 15 * 100 + 3 * 1000 * 4000) + 10,000 * 1000
    assert shape.parameters == 2 * (3_000_000 + 12_000_000) + 10_000_000
    hardware = Hardware(
        bandwidth_gb_s=1.0, tflops=0.008, memory_gb=1.0, bandwidth_share=0.5, flops_share=0.5,
        overhead_ms=10.0,
    )  # fmt: skip
    profile = roofline_profile("hand", hardware, shape, weight_bits=8)
    assert profile.bytes_per_token == 2 * 2 * 5 * 100 * 2  # K and V, layers, heads, dim, bytes
    assert profile.blocks == int((0.9e9 - 40e6) / (4000 * 16))
    truth = profile.truth()
    # 40 MB at 0.5 GB/s = 80 ms of reading; 2 * 40e6 FLOP at 4e9 FLOP/s = 20 ms a token.
    assert truth.decode_step_ms(1) == pytest.approx(90, rel=0.02)
    assert truth.decode_step_ms(4) == pytest.approx(90, rel=0.02)
    assert truth.decode_step_ms(16) == pytest.approx(10 + 320, rel=0.05)
    # 1000 tokens of context: 4 MB at 0.5 GB/s.
    more = truth.predict_ms(1, 1, 1000.0)[0] - truth.predict_ms(1, 1)[0]
    assert more == pytest.approx(8, rel=0.1)
    with pytest.raises(InvalidArgument, match="more than the weights"):
        roofline_profile("none", Hardware(1, 1, 0.04), shape, weight_bits=8)


def test_shape_text() -> None:
    text = "layers=2,hidden=64,heads=4,kv_heads=2,ffn=128,vocab=1000"
    assert parse_shape(text) == Shape(2, 64, 4, 2, 128, 1000)
    for wrong in ("", "layers=2", text + ",layers=3", text.replace("64", "65"), text + ",x=1",
                  text.replace("64", "-64"), text.replace("64", "1e3")):  # fmt: skip
        with pytest.raises(InvalidArgument, match="--shape"):
            parse_shape(wrong)


# ---- wrong files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"jitter": -1}, "jitter"),
        ({"jitter": 0.1, "residuals": [0.9, 1.1]}, "residuals"),
        ({"jitter": 0, "residuals": [1.1, 0.9]}, "residuals"),
        ({"jitter": 0, "residuals": [1.0]}, "residuals"),
        ({"jitter": 0, "residuals": [0.0, 1.0]}, "residuals"),
        ({"jitter": 0, "residuals": "1"}, "residuals"),
        ({"jitter": float("nan")}, "jitter"),
        ({"max_rows": 0}, "max_rows"),
        ({"kv": {"blocks": 0}}, "kv.blocks"),
        ({"kv": 5}, "a JSON object"),
        ({"kv": {"blocks": 2**40}}, "kv.blocks"),
        ({"speed": 1}, "speed"),
        ({"latency": {"kind": "guess"}}, "piecewise"),
        ({"latency": {"kind": "table", "quantile": 1, "decode_seconds": [], "prefill": 0,
                      "prefill_per_token": 0}}, "latency"),
        ({"provenance": {"jitter": 5}}, "provenance.jitter"),
        ({"name": ""}, "name"),
    ],
)  # fmt: skip
def test_wrong_profiles_are_refused(change: dict[str, Any], words: str) -> None:
    body = {**json.loads(table_machine([10.0]).to_json()), **change}
    with pytest.raises(InvalidArgument, match=words):
        parse_profile(json.dumps(body))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 5000, "null"])
def test_malformed_profiles_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_profile(text)
