"""The native `./benchmark` of the plain CMake build; skipped where it is not built."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="module")
def program() -> str:
    """SLICELLM_NATIVE_BENCHMARK, or the program in a build folder of this tree."""
    root = Path(__file__).resolve().parents[1]
    places = [os.environ.get("SLICELLM_NATIVE_BENCHMARK", "")]
    places += [str(root / folder / "benchmark") for folder in ("build-plain", "build")]
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return place
    pytest.skip("the native benchmark is not built (cmake --build build --target benchmark)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with edge's context of 600."""
    return tiny_models.make_llama_flm(tmp_path_factory.mktemp("native") / "m.flm", positions=1024)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)


def test_policies_side_by_side_and_the_result_file(program: str, model: Path) -> None:
    result = model.parent / "r.json"
    line = "--slice --ratios 0.9 --policy slice,orca --poisson --total-tasks 20 --seed 3 -t 2"
    done = run(program, "-p", str(model), *line.split(), "--save-result", str(result))
    assert done.returncode == 0, done.stderr
    assert "saturation" in done.stdout and "SLO met" in done.stdout
    content = json.loads(result.read_text())
    assert list(content["policies"]) == ["slice:ratio=0.9", "orca"]
    for values in content["policies"].values():
        assert {c: v["submitted"] for c, v in values["classes"].items()} == {
            "realtime": 14,
            "voice": 3,
            "qa": 3,
        }
        assert values["finish"] == {"stop": 20}
        keys = {"attainment", "utility", "goodput", "makespan_s", "output_tokens_per_s", "bound"}
        keys |= {"ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "plan_us", "classes", "finish"}
        assert keys <= set(values)
        assert 0 < values["ttft_ms"]["p50"] <= values["e2el_ms"]["p99"]
    config = content["config"]
    assert config["seed"] == 3 and config["threads"] == 2
    assert config["rate"] == pytest.approx(config["saturation"])


def test_test_mode_prints_each_token_s_time(program: str, model: Path) -> None:
    done = run(program, "-p", str(model), "--slice", "--test-mode", "--poisson", "-l", "20")
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("task ") for line in done.stdout.splitlines()) == 12


def test_help(program: str) -> None:
    done = run(program, "-h")
    assert done.returncode == 0 and "--slice" in done.stdout and "draws" in done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "-p",
        "-p none.flm",
        "-p m --lambda nan",
        "-p m --lambda -1",
        "-p m --load 0",
        "-p m --total-tasks 9223372036854775808",
        "-p m -t 0",
        "-p m -b many",
        "-p m -l 0",
        "-p m --seed -1",
        "-p m --ratios 2",
        "-p m --intervals 1,,2",
        "-p m --slo-scale inf",
        "-p m --policy fifo",
        "-p m --policy slice,,orca",
        "-p m --workload tiers",
        "-p m --concurrent 3 --poisson",
        "-p m --frobnicate",
        "-p m --dtype int3",
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(program: str, flags: str) -> None:
    done = run(program, *flags.split())
    assert done.returncode == 2
    assert done.stderr.startswith("benchmark: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
