"""Summary and figure of the study edge_policies, from its result files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Cell = Mapping[str, Any]  # a result file
Cells = dict[tuple[float, str], list[Cell]]  # by load and policy, one a seed
CLASSES = ("realtime", "voice", "qa")
BASELINES = {"orca": "#E69F00", "fastserve": "#009E73"}  # what slice is compared with


def read_cells(results: Path) -> Cells:
    """Every cell of the folder, by load and policy, in the order of the study."""
    cells: Cells = {}
    for path in sorted(results.glob("load*_seed*.json")):
        cell = json.loads(path.read_text())
        key = (cell["config"]["load"], cell["config"]["policy"])
        cells.setdefault(key, []).append(cell)
    # slice first, from the largest ratio to the smallest.
    order = sorted(
        cells, key=lambda key: (key[0], not key[1].startswith("slice"), _descending(key[1]))
    )
    return {key: cells[key] for key in order}


def _descending(policy: str) -> tuple[float, str]:
    ratio = policy.partition("ratio=")[2]
    return (-float(ratio) if ratio else 0.0, policy)


def values(cells: Sequence[Cell], path: str) -> list[float]:
    """One metric of each seed, where it is defined; `path` as "classes/voice/attainment"."""
    found = []
    for cell in cells:
        value: Any = cell["policies"][cell["config"]["policy"]]
        for key in path.split("/"):
            value = value[key]
        if value is not None:
            found.append(float(value))
    return found


def mean(cells: Sequence[Cell], path: str) -> float:
    found = values(cells, path)
    return float(np.mean(found)) if found else float("nan")


def _spread(cells: Sequence[Cell], path: str, factor: float, form: str) -> str:
    found = [factor * v for v in values(cells, path)]
    if not found:
        return "-"
    text = form.format(np.mean(found))
    return f"{text} ± {form.format(np.std(found, ddof=1))}" if len(found) > 1 else text


Column = tuple[str, str, float, str]  # heading, path, factor, format
COLUMNS: tuple[Column, ...] = (
    ("attainment %", "attainment", 100, "{:.0f}"),
    ("utility %", "utility", 100, "{:.0f}"),
    *((f"{c} %", f"classes/{c}/attainment", 100, "{:.0f}") for c in CLASSES),
    ("completion s", "e2el_ms/mean", 1e-3, "{:.1f}"),
    *((f"{c} s", f"classes/{c}/e2el_ms/mean", 1e-3, "{:.1f}") for c in CLASSES),
    ("prefill %", "prefill_share", 100, "{:.0f}"),
)


def table(cells: Cells, load: float) -> list[str]:
    """The Markdown table of one load: mean ± standard deviation over seeds."""
    lines = [
        "| policy | " + " | ".join(column[0] for column in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for (at, policy), group in cells.items():
        if at == load:
            row = [_spread(group, path, factor, form) for _, path, factor, form in COLUMNS]
            lines.append(f"| {policy} | " + " | ".join(row) + " |")
    return lines


def _times(numerator: float, denominator: float) -> str:
    if not denominator > 0:
        return "- (of none)" if numerator > 0 else "-"
    return f"{numerator / denominator:.1f}x"


def best_slice(cells: Cells, load: float) -> str | None:
    """The slice setting with the highest mean attainment at a load."""
    found = [p for at, p in cells if at == load and p.startswith("slice")]
    return max(found, key=lambda p: mean(cells[load, p], "attainment"), default=None)


def ratios(cells: Cells) -> list[str]:
    """The paper's two ratios at each load, for slice's best setting there."""
    lines = [
        "| load | slice at its best | against | attainment | realtime attainment | utility "
        "| completion time | realtime completion time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for load in sorted({at for at, _ in cells}):
        best = best_slice(cells, load)
        for other in BASELINES:
            if best is None or (load, other) not in cells:
                continue
            ours, theirs = cells[load, best], cells[load, other]

            def more(path: str, a: Any = ours, b: Any = theirs) -> str:
                return _times(mean(a, path), mean(b, path))

            def less(path: str, a: Any = ours, b: Any = theirs) -> str:
                return _times(mean(b, path), mean(a, path))

            row = (
                more("attainment"),
                more("classes/realtime/attainment"),
                more("utility"),
                less("e2el_ms/mean"),
                less("classes/realtime/e2el_ms/mean"),
            )
            lines.append(f"| {load:g}x | {best} | {other} | " + " | ".join(row) + " |")
    return lines


def summary(cells: Cells) -> str:
    """The whole summary in Markdown."""
    first = next(iter(cells.values()))[0]["config"]
    seeds = sorted({cell["config"]["seed"] for group in cells.values() for cell in group})
    seconds = sum(sum(values(group, "makespan_s")) for group in cells.values())
    lines = [
        "# edge: pace and slice beside orca, fastserve and sarathi",
        "",
        f"{first['model']} on {first['device']} ({first['threads']} threads), {first['tasks']} "
        f"tasks a run, seeds {', '.join(map(str, seeds))}, the same tasks and arrivals for every "
        f"policy; commit {first['commit']}. Runs took {seconds / 60:.0f} minutes.",
        "",
        f"Saturation is {first['saturation']:.3g} tasks/s: a task's prefill takes "
        f"{first['prefill_ms']:.0f} ms, its decode {first['decode_ms']:.0f} ms at the best batch. "
        f"l(1) = {first['decode_1_ms']:.1f} ms, so targets are the paper's times "
        f"{first['slo_scale']:.2f}.",
        "",
        "Attainment counts every submitted task; completion time is arrival to last token (every "
        "task runs to its end); prefill is the share of step time. Mean ± standard deviation over "
        "seeds.",
        "",
    ]
    for load in sorted({at for at, _ in cells}):
        lines += [f"## {load:g}x saturation", "", *table(cells, load), ""]
    lines += [
        "## Beside the paper",
        "",
        "The SLICE paper (arXiv 2510.18544) reports up to 35x the SLO attainment and 3.4x better "
        "completion time than Orca and FastServe. The same ratios here, for slice's best ratio at "
        "each load (above 1x is in slice's favour):",
        "",
        *ratios(cells),
        "",
    ]
    return "\n".join(lines)


def draw(cells: Cells, path: Path) -> None:
    """Attainment, utility, realtime attainment and completion time over load, a line a policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: tuple[tuple[str, str, float, str], ...] = (
        ("SLO attainment", "attainment", 100, "% of tasks"),
        ("utility attained", "utility", 100, "% of submitted utility"),
        ("real-time attainment", "classes/realtime/attainment", 100, "% of real-time tasks"),
        ("completion time", "e2el_ms/mean", 1e-3, "seconds, mean"),
    )
    policies = list(dict.fromkeys(policy for _, policy in cells))
    blues = iter(("#08306b", "#2171b5", "#6baed6", "#a6bddb"))
    colours = {p: BASELINES.get(p) or next(blues, "#666666") for p in policies}
    loads = sorted({at for at, _ in cells})
    figure = Figure(figsize=(13, 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, metric, factor, unit) in zip(figure.subplots(1, 4), panels):
        for k, policy in enumerate(policies):
            at = [load for load in loads if (load, policy) in cells]
            seen = [[factor * v for v in values(cells[load, policy], metric)] for load in at]
            centre = [float(np.mean(v)) for v in seen]
            reach = _reach(seen)
            style = "o-" if policy.startswith("slice") else "s--"
            # Shifted a little, so that the bars of several policies do not hide each other.
            shift = (k - (len(policies) - 1) / 2) * 0.025
            axes.errorbar(
                np.array(at) + shift,
                centre,
                reach,
                fmt=style,
                color=colours[policy],
                label=policy,
                markersize=4,
                linewidth=1.4,
                elinewidth=0.8,
                capsize=2,
            )
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel("load, x saturation")
        axes.set_xticks(loads)
        axes.set_ylim(0, 103 if factor == 100 else None)
        axes.grid(axis="y", color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)


def _reach(seen: Sequence[Sequence[float]]) -> Any:
    """Distances from the mean down to the least and up to the greatest seed, for error bars."""
    down = [float(np.mean(v)) - min(v) for v in seen]
    up = [max(v) - float(np.mean(v)) for v in seen]
    return np.array([down, up])


def write(results: Path) -> None:
    """summary.md and edge.png from the cells that are there."""
    cells = read_cells(results)
    if not cells:
        print("no cells yet")
        return
    (results / "summary.md").write_text(summary(cells))
    draw(cells, results / "edge.png")
    print(f"wrote {results / 'summary.md'} and {results / 'edge.png'}")
