"""The studies that serve on an engine, made as short as they can be, on the CPU; device cuda has
test/ops/test_soak.py and test_replay.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tiny_models

STUDIES = Path(__file__).resolve().parents[1] / "benchmark" / "studies"


def run(script: str, model: Path, output: Path, flags: str) -> dict[str, Any]:
    command = [sys.executable, str(STUDIES / script), "-p", str(model), "-t", "1", *flags.split()]
    subprocess.run([*command, "--output", str(output)], check=True, capture_output=True)
    result = json.loads(output.read_text(encoding="utf-8"))
    assert isinstance(result, dict)
    return result


def test_random_load(tiny_llama: Path, tmp_path: Path) -> None:
    """More tasks than memory holds; it ends in an error where one is lost."""
    flags = "--seconds 2 --calibration 0.2 --rate 3000 --blocks 24"
    found = run("random_load.py", tiny_llama, tmp_path / "load.json", flags)
    assert [s["policy"] for s in found["served"]] == ["pace", "slice", "fastserve"] * 3
    for served in found["served"]:
        assert sum(served["ends"].values()) == served["tasks"] > 0
        assert served["steps"] >= served["decode_steps"] >= served["judged_steps"]
    assert sum(s["moves"]["swap_out"] + s["moves"]["preempt"] for s in found["served"]) > 0
    assert len(found["memory"]) == 3


def test_prediction_error(tmp_path: Path) -> None:
    model = tiny_models.make_llama_flm(tmp_path / "m.flm", positions=1024)  # edge's longest: 600
    flags = "--seconds 0.5 --tasks 6 --repeats 100 --phase 0.3 --busy 1"
    found = run("prediction_error.py", model, tmp_path / "error.json", flags)
    assert [(r["workload"], r["policy"]) for r in found["runs"]] == [
        ("edge", "pace"),
        ("edge", "orca"),
        ("mixed", "sarathi:token_budget=128"),
    ]
    for served in found["runs"]:
        for errors in (served["online"], served["hindsight"]):
            kinds = [errors[kind]["steps"] for kind in ("decode only", "with prefill")]
            assert errors["all"]["steps"] == sum(kinds) and min(kinds) > 0
            assert 0 < errors["all"]["p50"] <= errors["all"]["p95"] <= errors["all"]["p99"]
    assert set(found["change"]["phases"]) == {"alone", "cores taken", "given back"}
