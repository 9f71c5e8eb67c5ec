"""What the studies share: a grid of cells that is resumed where it stopped, and text for summaries.

A study's folder holds setup.json (what all cells share, and the machine, commit and command that
began it), cells.jsonl (one object a line: a cell's key, then what was measured), summary.md, and
figures.
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slicellm.bench import report

RESULTS = Path(__file__).resolve().parent.parent / "results"
TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
ORIGIN = ("command", "commit", "machine")  # of the run that began a folder
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999933")

Cell = Mapping[str, Any]


def begin(results: Path, setup: Mapping[str, Any]) -> None:
    """Records what all cells share; ends the program if the folder's cells share something else. A
    folder that is gone on with at other commits names them all."""
    path = results / "setup.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if {key: value for key, value in known.items() if key not in ORIGIN} != setup:
            sys.exit(f"{path} says that its cells are of another setup: choose --results")
        if commit() not in str(known["commit"]).split(", "):
            known["commit"] = f"{known['commit']}, {commit()}"
            write(path, known)
        return
    results.mkdir(parents=True, exist_ok=True)
    write(path, {**setup, **origin()})


def origin() -> dict[str, Any]:
    """Where a result of this run comes from: the entries named in ORIGIN."""
    command = f"python benchmark/studies/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}"
    return dict(zip(ORIGIN, (command.strip(), commit(), report.machine())))


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """Writes a result file, where one is wanted."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def commit() -> str:
    """The commit of the repository these scripts lie in, with "+" if it has changes, or "unknown".
    The package may be installed elsewhere, without one."""
    return report.commit(Path(__file__)) or "unknown"


def read_setup(results: Path) -> dict[str, Any]:
    """What `begin` recorded."""
    setup: dict[str, Any] = json.loads((results / "setup.json").read_text(encoding="utf-8"))
    return setup


def read_cells(results: Path) -> list[dict[str, Any]]:
    """The cells that have been run."""
    path = results / "cells.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fill(
    results: Path,
    keys: Sequence[str],
    grid: Iterable[tuple[Any, ...]],
    measure: Callable[..., Mapping[str, Any]],
) -> None:
    """Runs the cells of `grid` (values of `keys`) that have no result yet: measure(*values)."""
    done = {tuple(cell.get(key) for key in keys) for cell in read_cells(results)}
    for values in grid:
        if values in done:
            continue
        cell = {**dict(zip(keys, values)), **measure(*values)}
        with (results / "cells.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell, allow_nan=False) + "\n")
        print(*values, flush=True)


def chosen(cells: Iterable[Cell], **wanted: Any) -> list[Cell]:
    """The cells whose entries are as wanted."""
    return [c for c in cells if all(c.get(key) == value for key, value in wanted.items())]


def values(cells: Iterable[Cell], metric: str) -> list[float]:
    """A metric of each cell, where it is defined."""
    return [float(c[metric]) for c in cells if c[metric] is not None]


def mean(cells: Iterable[Cell], metric: str) -> float:
    found = values(cells, metric)
    return float(np.mean(found)) if found else float("nan")


def spread_text(numbers: Sequence[float | None], form: str = "{:.3g}") -> str:
    """Mean and, of several numbers, half their spread; empty if one is missing."""
    if not numbers or any(v is None for v in numbers):
        return ""
    array = np.array(numbers, dtype=float)
    text = form.format(array.mean())
    if len(array) > 1:
        text += f" ± {(array.max() - array.min()) / 2:.2g}"
    return text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def claims(rows: Iterable[tuple[str, str, str, bool | None]]) -> list[str]:
    """Claim, what is published, what we measured, and whether it is met (None: not judged)."""
    words = {True: "yes", False: "no", None: "-"}
    judged = ((claim, theirs, ours, words[met]) for claim, theirs, ours, met in rows)
    return table(("claim", "published", "ours", "met"), judged)


def read_claims(summary: str) -> list[list[str]]:
    """The rows of the first table of claims in a summary: claim, published, ours, met."""
    lines = iter(summary.splitlines())
    for line in lines:
        if line == claims([])[0]:
            next(lines)
            rows = itertools.takewhile(lambda row: row.startswith("| "), lines)
            return [row.strip("| ").split(" | ") for row in rows]
    return []


def figure(panels: int, width: float = 4.4, height: float = 3.7) -> tuple[Any, list[Any]]:
    """A figure of so many panels in a row, and their axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width * panels, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = list(np.atleast_1d(made.subplots(1, panels)))
    for each in axes:
        each.grid(color="#eeeeee")
        each.spines[["top", "right"]].set_visible(False)
    return made, axes


def draw(axes: Any, x: Sequence[float], seen: Sequence[Sequence[float]], **style: Any) -> None:
    """Means over x with bars from the least to the greatest seed."""
    centre = [float(np.mean(v)) for v in seen]
    reach = [[m - min(v) for m, v in zip(centre, seen)], [max(v) - m for m, v in zip(centre, seen)]]
    axes.errorbar(x, centre, reach, markersize=4, linewidth=1.4, elinewidth=0.8, capsize=2, **style)


def save(made: Any, path: Path) -> None:
    """Writes the figure with one legend for all panels, where they have one."""
    handles, labels = made.axes[0].get_legend_handles_labels()
    if labels:
        made.legend(
            handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False
        )
    made.savefig(path, dpi=130)


def text_beside(script: str) -> str:
    """What was written in words about a study's results: the Markdown file beside its script."""
    return Path(script).with_suffix(".md").read_text(encoding="utf-8").strip()
