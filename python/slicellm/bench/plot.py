"""The figure of a comparison: attainment by class, TTFT and TPOT distributions, and every token
against its deadline. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slicellm.bench.eventlog import EventLog
from slicellm.bench.task_metrics import Floats, TaskMetrics, task_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common kind of colour vision.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_ON_TIME, _LATE = "#7d93a6", "#D55E00"
_SHOWN = 6  # timelines, the policies after these have none


def token_due(log: EventLog, tasks: TaskMetrics) -> Floats:
    """When each token of `tasks.token_time` was due, s from the start of the run: the earliest of
    the deadline, arrival + ttft + i * tpot, and first token + i * tpot without a ttft; infinite for
    a task without targets."""
    count = tasks.tokens
    start = np.cumsum(count) - count
    place = np.arange(len(tasks.token_task)) - start[tasks.token_task]

    def column(key: str) -> Floats:
        values = [getattr(t.slo, key) for t in log.tasks]
        return np.array([np.inf if v is None else v / 1e3 for v in values])[tasks.token_task]

    arrival = tasks.arrival[tasks.token_task]
    first = tasks.ttft[tasks.token_task]
    ttft, tpot = column("ttft_ms"), column("tpot_ms")
    base = np.where(np.isfinite(ttft), ttft, first)
    # A task with a ttft only is judged at its first token.
    paced = np.where(
        np.isfinite(tpot),
        base + place * np.where(np.isfinite(tpot), tpot, 0.0),
        np.where(place == 0, ttft, np.inf),
    )
    due: Floats = arrival + np.minimum(column("deadline_ms"), paced)
    return due


def _bars(axes: Axes, results: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(c for metrics in results.values() for c in metrics["classes"]))
    groups = [*names, "all tasks", "utility"] if len(names) > 1 else ["all tasks", "utility"]
    width = 0.82 / len(results)
    for k, (policy, metrics) in enumerate(results.items()):
        values = [metrics["classes"].get(c, {}).get("attainment", 0.0) for c in names]
        heights = [*(values if len(names) > 1 else []), metrics["attainment"], metrics["utility"]]
        places = np.arange(len(groups)) + (k - (len(results) - 1) / 2) * width
        bars = axes.bar(
            places,
            [100 * h for h in heights],
            width * 0.94,
            label=policy,
            color=_COLOURS[k % len(_COLOURS)],
        )
        if len(results) <= 4:
            axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    if len(names) > 1:
        axes.axvline(len(names) - 0.5, color="#bbbbbb", linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("% of submitted")
    axes.set_title("SLO attainment")


def _distribution(axes: Axes, runs: Mapping[str, TaskMetrics], key: str, title: str) -> None:
    """Share of all submitted tasks at or below each value; a curve that ends below 100 % lacks the
    tasks for which the value is undefined."""
    from matplotlib.ticker import LogLocator, NullFormatter

    everything = np.concatenate([getattr(tasks, key) for tasks in runs.values()])
    everything = everything[everything > 0]
    wide = len(everything) > 0 and everything.max() > 50 * everything.min()
    for k, (policy, tasks) in enumerate(runs.items()):
        values = np.sort(getattr(tasks, key))
        values = values[values > 0]  # neither undefined nor, on a log axis, zero
        share = 100 * np.arange(1, len(values) + 1) / max(len(tasks.tokens), 1)
        axes.step(values, share, where="post", color=_COLOURS[k % len(_COLOURS)], label=policy)
    axes.set_xscale("log")  # under overload policies differ by orders of magnitude
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(0, 103)
    axes.set_ylabel("% of tasks")
    axes.set_xlabel("seconds")
    axes.set_title(title)


def _timeline(axes: Axes, log: EventLog, tasks: TaskMetrics, title: str) -> None:
    """A row a task, by arrival: a line from its arrival to its last token, a dot a token."""
    row_of = np.empty(len(log.tasks), dtype=np.int64)
    row_of[np.argsort(tasks.arrival, kind="stable")] = np.arange(len(log.tasks))
    late = tasks.token_time > token_due(log, tasks)
    size = float(np.clip(260 / max(len(log.tasks), 1), 0.6, 5))
    last = np.where(tasks.tokens > 0, tasks.arrival + tasks.e2el, tasks.arrival)
    axes.hlines(row_of, tasks.arrival, last, color="#dddddd", linewidth=0.7, zorder=1)
    axes.plot(tasks.arrival, row_of, "|", color="#555555", markersize=3.5, zorder=2)
    for which, colour in ((~late, _ON_TIME), (late, _LATE)):
        axes.scatter(
            tasks.token_time[which],
            row_of[tasks.token_task[which]],
            s=size,
            color=colour,
            linewidths=0,
            zorder=3,
            rasterized=True,
        )
    axes.set_ylim(len(log.tasks) - 0.4, -0.6)
    axes.set_xlabel("seconds")
    axes.set_title(f"{title}: {int(tasks.met.sum())} of {len(tasks.met)} met")


def draw(
    results: Mapping[str, Mapping[str, Any]], logs: Mapping[str, EventLog], title: str
) -> Figure:
    """The figure of one run of each policy; `results` are the metrics (means over seeds, where
    there are several), `logs` the run whose tokens are shown."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    runs = {policy: task_metrics(log) for policy, log in logs.items()}
    shown = list(runs)[:_SHOWN]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    figure = Figure(figsize=(12.5, 3.6 + 3.2 * down), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.6, 3.2 * down])
    top, bottom = parts
    figure.suptitle(title, fontsize=10)
    bars, ttft, tpot = top.subplots(1, 3, width_ratios=[1.5, 1, 1]).flat
    _bars(bars, results)
    _distribution(ttft, runs, "ttft", "time to first token")
    _distribution(tpot, runs, "tpot", "time per output token")
    handles, labels = bars.get_legend_handles_labels()
    top.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False
    )
    grid = list(bottom.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for axes, policy in zip(grid, shown):
        _timeline(axes, logs[policy], runs[policy], policy)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("task, by arrival")
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    dots = [
        Line2D([], [], marker="o", linestyle="", color=c, markersize=4) for c in (_ON_TIME, _LATE)
    ]
    bottom.legend(
        dots, ["token in time", "token late"], loc="outside lower center", ncols=2, frameon=False
    )
    for axes in (bars, ttft, tpot, *grid):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee", zorder=0)
        axes.set_axisbelow(True)
    return figure


def save(
    path: str, results: Mapping[str, Mapping[str, Any]], logs: Mapping[str, EventLog], title: str
) -> None:
    """Writes the figure; the format follows the name (.png, .svg, .pdf)."""
    draw(results, logs, title).savefig(path, dpi=150)


def save_sweep(
    path: str,
    rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any] | None]],
    title: str,
) -> None:
    """Attainment and utility over load, a curve a policy; whiskers: the spread over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    loads = [config["load"] for config, _, _ in rows]
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("attainment", "utility")):
        for k, policy in enumerate(rows[0][1]):
            spread = [0.0 if s is None else 100 * s[policy][key] for _, _, s in rows]
            axes.errorbar(
                loads,
                [100 * results[policy][key] for _, results, _ in rows],
                spread,
                marker="o",
                markersize=4,
                capsize=2,
                color=_COLOURS[k % len(_COLOURS)],
                label=policy,
            )
        axes.set_title("SLO attainment" if key == "attainment" else "utility")
        axes.set_xlabel("load, x saturation")
        axes.set_ylim(0, 103)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee")
    figure.axes[0].set_ylabel("% of submitted")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def missing() -> str | None:
    """A sentence if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "matplotlib, which is not installed: pip install 'slicellm[plot]'"
    return None
