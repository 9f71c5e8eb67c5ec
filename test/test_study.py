"""What the studies share: where results come from, and cells that are run once."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark" / "studies" / "study.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the script in a repository of its own with one commit."""
    folder = tmp_path / "benchmark" / "studies"
    folder.mkdir(parents=True)
    shutil.copy(SCRIPT, folder)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_is_that_of_the_scripts(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = load(checkout / "benchmark" / "studies" / "study.py")
    head = git(checkout, "rev-parse", "HEAD")
    assert study.commit() == head
    with (checkout / "benchmark" / "studies" / "study.py").open("a") as file:
        file.write("\n")
    assert study.commit() == head + "+"
    alone = tmp_path_factory.mktemp("copied")  # as where a package is installed
    shutil.copy(SCRIPT, alone)
    assert load(alone / "study.py").commit() == "unknown"


def test_a_folder_names_every_commit_and_its_setup(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/some_study.py", "--seeds", "0,1"])
    study = load(checkout / "benchmark" / "studies" / "study.py")
    results = tmp_path / "made"
    study.begin(results, {"tasks": 3})
    first = git(checkout, "rev-parse", "HEAD")
    known = json.loads((results / "setup.json").read_text())
    assert known["commit"] == first and known["tasks"] == 3
    assert known["command"] == "python benchmark/studies/some_study.py --seeds 0,1"
    study.begin(results, {"tasks": 3})
    git(checkout, "commit", "-q", "--allow-empty", "-m", "two")
    study.begin(results, {"tasks": 3})
    second = git(checkout, "rev-parse", "HEAD")
    assert json.loads((results / "setup.json").read_text())["commit"] == f"{first}, {second}"
    with pytest.raises(SystemExit, match="choose --results"):
        study.begin(results, {"tasks": 4})


def test_cells_are_run_once(tmp_path: Path) -> None:
    study = load(SCRIPT)
    ran: list[tuple[int, str]] = []

    def measure(load: int, policy: str) -> dict[str, float]:
        ran.append((load, policy))
        return {"share": load / 4}

    grid = [(1, "a"), (1, "b"), (3, "a")]
    study.fill(tmp_path, ("load", "policy"), grid[:2], measure)
    study.fill(tmp_path, ("load", "policy"), grid, measure)
    assert ran == grid
    cells = study.read_cells(tmp_path)
    assert study.values(study.chosen(cells, policy="a"), "share") == [0.25, 0.75]
    assert study.mean(cells, "share") == pytest.approx(5 / 12)
    assert study.spread_text([1.0, 2.0]) == "1.5 ± 0.5" and study.spread_text([1.0, None]) == ""


def test_claims_are_read_as_they_were_written() -> None:
    study = load(SCRIPT)
    rows = [("a claim", "35x", "10x at 1x, 3x at 2x", False), ("another", "-", "-", None)]
    summary = "\n".join(["# head", "", *study.claims(rows), "", "| claim | other |", "|---|---|"])
    assert study.read_claims(summary) == [
        ["a claim", "35x", "10x at 1x, 3x at 2x", "no"],
        ["another", "-", "-", "-"],
    ]
    assert study.read_claims("no table") == []
