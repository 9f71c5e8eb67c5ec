"""The laboratory's report from a seed of what is recorded, and from cells by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "benchmark" / "studies"
RECORDED = ROOT / "benchmark" / "results"
FOLDERS = ("load_curves", "slice_headline", "sarathi_vllm", "slai", "scls")
SECTIONS = (
    "load classes pace bound gantt mask completion engine rivals scls gap plan claims".split()
)


def copy(path: str, to: Path) -> None:
    (to / path).parent.mkdir(parents=True, exist_ok=True)
    (to / path).write_bytes((RECORDED / path).read_bytes())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of one seed of every study, and two of pace's by hand."""
    made = tmp_path_factory.mktemp("results")
    for folder in FOLDERS:
        copy(f"{folder}/setup.json", made)
        lines = (RECORDED / folder / "cells.jsonl").read_text().splitlines(keepends=True)
        first = [line for line in lines if json.loads(line)["seed"] == 0]
        (made / folder / "cells.jsonl").write_text("".join(first))
    for path in ("slice_headline/summary.md", "bound-gap.json", "plan_time/plan_time.json"):
        copy(path, made)
    copy("edge/setup.json", made)
    for path in (RECORDED / "edge").glob("load*_seed0_*.json"):
        copy(f"edge/{path.name}", made)
    policies = compared()
    cells = []
    for load, pace in ((1.0, 0.75), (2.0, 0.25)):  # all others get 0.5 of the utility
        scores = {name: [pace if name == "pace" else 0.5, 0.5] for name in policies}
        cells.append({"profile": "demo-cpu", "workload": "edge", "load": load, "utility": 10.0})
        cells[-1] |= {"seed": 0, "policies": scores, "bound": None}
    bound = {"valid": True, "utility": 0.5, "attainment": 0.5}
    cells[1]["bound"] = {**bound, "pace_utility": 0.49, "pace_attainment": 0.4}
    setup = {"tasks": 7, "commit": "0123456789abcdef", "command": "by hand", "machine": "a desk"}
    (made / "pace").mkdir()
    (made / "pace" / "setup.json").write_text(json.dumps(setup))
    (made / "pace" / "cells.jsonl").write_text("\n".join(map(json.dumps, cells)) + "\n")
    return made


def compared() -> list[str]:
    """What a cell of pace_grid compares."""
    line = (RECORDED / "pace" / "cells.jsonl").read_text().splitlines()[0]
    return list(json.loads(line)["policies"])


def build(results: Path, output: Path) -> str:
    command = [sys.executable, str(STUDIES / "report.py"), "--tasks", "30", "--seeds", "0"]
    command += ["--results", str(results), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    pytest.importorskip("matplotlib")
    return build(results, results / "first.html")


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', page, re.S)
    assert found, name
    return found.group()


def test_every_figure_is_there(page: str) -> None:
    assert re.findall(r'<section id="(\w+)">', page) == SECTIONS
    for name in SECTIONS[:-1]:
        part = section(page, name)
        assert part.count("<svg") == 1 and part.count("<path") >= 4, name
        assert "<figcaption>" in part and 'class="source"' in part and "commit" in part, name


def test_page_needs_nothing_else(page: str) -> None:
    assert len(page) < 1_000_000
    assert not re.search(r"<script|<img|<link|url\(http|@import", page)
    linked = re.findall(r'href="([^"]+)"', page)
    assert linked and not [to for to in linked if to.startswith(("http", "//"))]
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert {a or b for a, b in used} <= set(ids)


def test_figures_say_what_the_cells_say(page: str) -> None:
    # pace has 25 points more in one cell and 25 less in the other.
    drawn = section(page, "pace")
    assert ">+25<" in drawn and ">-25 ✗<" in drawn
    assert "by hand" in drawn and "seed 0; 7 tasks a run" in drawn and "a desk" in drawn
    claims = section(page, "claims")
    assert "<td>1 of 2</td><td" in claims and "<td>less in 1 of 2</td><td" in claims
    assert "<td>1 of 1 cells; 0.98 to 0.98</td>" in claims  # 0.49 / 0.5
    assert "<td>0 of 1 cells; 0.80 to 0.80</td>" in claims  # 0.4 / 0.5
    assert "up to 35x" in claims  # from slice_headline's summary


def test_scene_is_drawn_as_it_ran(page: str) -> None:
    drawn = section(page, "gantt")
    told = re.findall(r">(\d+) of 13 tasks", drawn)
    assert len(told) == 3
    # Each panel writes the verdict of its 13 tasks.
    assert drawn.count(">met<") == sum(map(int, told))
    assert drawn.count(">missed<") == 3 * 13 - sum(map(int, told))


def test_same_data_same_page_and_missing_results(page: str, results: Path) -> None:
    (results / "scls" / "cells.jsonl").unlink()
    again = build(results, results / "second.html")
    assert 'id="scls"' not in again and "scls/cells.jsonl" in again  # said, not hidden
    for name in ("load", "gantt", "mask", "classes", "pace"):
        assert section(again, name) == section(page, name)
