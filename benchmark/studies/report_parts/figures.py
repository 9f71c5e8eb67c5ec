"""The report's figures of recorded results: each from one study's folder, whatever is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import edge_report
import load_curves
import numpy as np
import pace_grid
import sarathi_vllm
import slai_claims
import slai_report
import slice_headline
import study

from report_parts import style

BEST = "slice, best ratio"
WORKLOADS = {
    "edge": "edge: robots, voices, answers",
    "tiers": "tiers: ShareGPT lengths",
    "arxiv": "arXiv summarisation lengths",
    "azure": "Azure conversations",
    "sharegpt": "ShareGPT lengths, all strict",
}
MACHINES = {
    "rtx4060ti-chatglm2-6b-int4": "RTX 4060 Ti (published table)",
    "jetson-orin-llama3-8b-int4": "Jetson Orin (roofline)",
    "demo-cpu": "two CPU cores (measured)",
}


LENGTHS = {"sharegpt": "ShareGPT", "arxiv_summarization": "arXiv"}
KINDS = {"SCLS": "#1d2730", "ILS": "#4d7aa8", "SLS": "#a3bcd4"}
BOUNDS = {  # of pace_grid's bounds: what, mark, share asked for, place in the row
    "utility": ("utility", "o", 0.95, -0.13),
    "attainment": ("number of tasks", "D", 0.90, 0.13),
}


def load_figure(results: Path) -> Any:
    """Tasks and utility met over load: a row a workload, a line a policy."""
    cells = study.read_cells(results)
    workloads = list(dict.fromkeys(c["workload"] for c in cells))
    made, axes = style.figure(len(workloads), 2, 3.0 * len(workloads))
    for line, workload in zip(axes, workloads):
        mine = study.chosen(cells, workload=workload)
        loads = sorted({c["load"] for c in mine})
        for panel, (metric, counted) in zip(line, load_curves.METRICS.items()):
            panel.set_ylim(0, 103)
            panel.set_xlim(loads[0], loads[-1])
            ends = []
            for policy in (BEST, *load_curves.OTHERS):
                names = load_curves.SLICE if policy == BEST else (policy,)
                seen = _best(mine, names, loads, metric)
                if seen is None:
                    continue
                ink = style.colour(policy)
                front = policy == BEST or policy == "pace"
                width, size = (2.4, 3.8) if front else (1.3, 2)
                over = 2 if ink == style.OTHER else 3
                panel.plot(loads, seen, "o-", color=ink, lw=width, markersize=size, zorder=over)
                ends.append((policy, seen[-1], ink))
            style.label_ends(panel, ends, loads[-1])
            panel.set_xticks(loads, ["" if x == 0.75 else f"{x:g}x" for x in loads])
            panel.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
            style.title(panel, WORKLOADS.get(workload, workload), counted)
    for panel in axes[-1]:
        style.x_label(panel, "load, times saturation")
    return made


def _best(
    cells: Sequence[study.Cell], policies: Sequence[str], loads: Sequence[float], metric: str
) -> list[float] | None:
    """At each load the highest mean (%) among the policies; None where one has no cell."""
    seen = []
    for load in loads:
        at = [study.chosen(cells, load=load, policy=policy) for policy in policies]
        if not all(at):
            return None
        seen.append(max(100 * study.mean(found, metric) for found in at))
    return seen


def completion_figure(results: Path) -> Any:
    """Completion times over load by class: slice at its best ratio, orca, fastserve."""
    cells = study.read_cells(results)
    loads = sorted({c["load"] for c in cells})
    groups = {"e2el_s": "all tasks"}
    groups |= {f"{key}_e2el_s": name for key, name in style.CLASS_NAMES.items()}
    made, axes = style.figure(1, len(groups), 3.1, sharey=True)
    for panel, metric in zip(axes.flat, groups):
        panel.set_yscale("log")
        panel.set_xlim(loads[0], loads[-1])
        ends = []
        for policy in ("slice", *slice_headline.OTHERS):
            seen = []
            for load in loads:
                chosen = policy
                if policy == "slice":
                    swept = slice_headline.SWEPT
                    chosen = slice_headline.best(cells, load, swept, "attainment")
                seen.append(study.values(study.chosen(cells, load=load, policy=chosen), metric))
            ink = style.colour(policy)
            least, most = [min(v) for v in seen], [max(v) for v in seen]
            middle = [float(np.mean(v)) for v in seen]
            panel.fill_between(loads, least, most, color=ink, alpha=0.2, linewidth=0)
            panel.plot(loads, middle, "o-", color=ink, linewidth=2, markersize=3.5)
            ends.append((policy, middle[-1], ink))
    for panel, heading in zip(axes.flat, groups.values()):
        panel.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f} s")
        panel.minorticks_off()
        panel.set_xticks([1, 2, 3, 4], ["1x", "2x", "3x", "4x"])
        style.title(panel, heading)
        style.x_label(panel, "load, times saturation")
    style.label_ends(axes[0, -1], ends, loads[-1])
    return made


def engine_figure(results: Path) -> Any:
    """The real engine: shares met and completion times by class."""
    cells = edge_report.read_cells(results)
    loads = sorted({load for load, _ in cells})
    others = [p for p in dict.fromkeys(p for _, p in cells) if not p.startswith("slice")]
    groups = [*((f"classes/{k}/attainment", v) for k, v in style.CLASS_NAMES.items())]
    groups += [("utility", "utility")]
    made, axes = style.figure(1, len(groups), 2.9, sharey=True)
    for panel, (path, heading) in zip(axes.flat, groups):
        rows = ["slice", *others]
        width = 0.81 / len(rows)
        for k, policy in enumerate(rows):
            for place, load in enumerate(loads):
                chosen = edge_report.best_slice(cells, load) if policy == "slice" else policy
                if chosen is None or (load, chosen) not in cells:
                    continue
                seen = [100 * v for v in edge_report.values(cells[load, chosen], path)]
                at = place + (k - (len(rows) - 1) / 2) * width
                panel.bar(at, np.mean(seen), 0.9 * width, color=style.colour(policy))
                panel.plot([at, at], [min(seen), max(seen)], color=style.INK, linewidth=0.9)
                if place == 0 and panel is axes[0, 0]:
                    panel.text(
                        at, 4, policy, rotation=90, ha="center", va="bottom", fontsize=8, color="w"
                    )
        panel.set_xticks(range(len(loads)), [f"{load:g}x" for load in loads])
        panel.set_ylim(0, 103)
        panel.set_yticks([0, 50, 100], ["0", "50", "100 %"])
        style.title(panel, heading)
        style.x_label(panel, "load, times saturation")
    return made


def pace_figure(results: Path) -> Any:
    """What pace gains over the best other policy: a cell a setting, a panel a machine."""
    from matplotlib.colors import TwoSlopeNorm

    cells = study.read_cells(results)
    machines = list(dict.fromkeys(c["profile"] for c in cells))
    workloads = list(dict.fromkeys(c["workload"] for c in cells))
    loads = sorted({c["load"] for c in cells})
    utilities = sorted({c["utility"] for c in cells}, reverse=True)
    sides = [(w, u) for w in workloads for u in utilities]
    made, axes = style.figure(1, len(machines), 0.3 * len(sides) + 1.0, sharey=True)
    norm = TwoSlopeNorm(0, -0.6, 0.6)
    for panel, machine in zip(axes.flat, machines):
        for row, (workload, utility) in enumerate(sides):
            for column, load in enumerate(loads):
                found = study.chosen(
                    cells, profile=machine, workload=workload, load=load, utility=utility
                )
                if not found:
                    continue
                result = pace_grid.compare(found)
                gain, verdict = result["gain"], pace_grid.verdict(result)
                panel.barh(
                    row, 0.94, 0.88, left=column - 0.47, color=_diverging()(norm(gain)), linewidth=0
                )
                strong = verdict == "LESS"
                text = f"{100 * gain:+.0f}" if abs(gain) >= 0.005 else "0"
                text += {"LESS": " ✗", "within the interval": " ≈"}.get(verdict, "")
                panel.text(
                    column,
                    row,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8,
                    fontweight="bold" if strong else "normal",
                    color="w" if abs(gain) > 0.38 else style.INK,
                )
        panel.set_xticks(range(len(loads)), [f"{load:g}x" for load in loads])
        panel.set_xlim(-0.55, len(loads) - 0.45)
        panel.set_ylim(len(sides) - 0.45, -0.55)
        panel.grid(False)
        panel.spines[["left", "bottom"]].set_visible(False)
        panel.tick_params(length=0)
        style.title(panel, MACHINES.get(machine, machine))
    labels = [f"{w}, {f'urgent worth {u:g}x' if u != 1 else 'all worth 1'}" for w, u in sides]
    axes[0, 0].set_yticks(range(len(sides)), labels, fontsize=8)
    return made


def _diverging() -> Any:
    """Vermillion to white to blue: less to more."""
    from matplotlib.colors import LinearSegmentedColormap

    ends = [style.MISSED, "#f6f7f8", style.COLOURS["pace"]]
    return LinearSegmentedColormap.from_list("gain", ends)


def bound_share(bound: Mapping[str, Any], key: str) -> float | None:
    """pace's share of a bound, recorded as [bound, pace, ..] or, earlier, as two entries."""
    recorded = bound[key]
    limit, ours = recorded[:2] if isinstance(recorded, list) else (recorded, bound[f"pace_{key}"])
    return ours / limit if limit > 0 else None


def bound_figure(results: Path) -> Any:
    """pace's share of the clairvoyant bound in every cell that has one."""
    from matplotlib.lines import Line2D

    cells = [c for c in study.read_cells(results) if c["bound"] and c["bound"]["valid"]]
    machines = list(dict.fromkeys(c["profile"] for c in cells))
    sides = sorted({(c["load"], c["workload"]) for c in cells})
    made, axes = style.figure(1, len(machines), 0.3 * len(sides) + 1.5, sharey=True)
    for panel, machine in zip(axes.flat, machines):
        for row, (load, workload) in enumerate(sides):
            for cell in study.chosen(cells, profile=machine, load=load, workload=workload):
                for key, (_, mark, asked, place) in BOUNDS.items():
                    share = bound_share(cell["bound"], key)
                    if share is None:
                        continue
                    ink = style.COLOURS["pace"] if share >= asked else style.MISSED
                    face = ink if key == "utility" else "white"
                    at = (100 * share, row + place)
                    panel.plot(*at, mark, color=ink, markerfacecolor=face, markersize=6)
        for key, (_, _, asked, _) in BOUNDS.items():
            panel.vlines(
                100 * asked,
                -0.6,
                len(sides) - 0.4,
                color=style.MUTED,
                linewidth=0.9,
                linestyle="-" if key == "utility" else (0, (3, 3)),
            )
        panel.set_xlim(0, 104)
        panel.set_ylim(len(sides) - 0.4, -0.6)
        panel.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
        panel.tick_params(axis="y", length=0)
        style.title(panel, MACHINES.get(machine, machine))
        style.x_label(panel, "of the bound")
    axes[0, 0].set_yticks(range(len(sides)), [f"{w}, {load:g}x" for load, w in sides], fontsize=8.5)
    style.legend(
        made,
        [
            Line2D(
                [],
                [],
                color=style.INK,
                marker=mark,
                linestyle="-" if key == "utility" else ":",
                markerfacecolor=style.INK if key == "utility" else "white",
                label=f"{name}; asked: {asked:g}",
            )
            for key, (name, mark, asked, _) in BOUNDS.items()
        ],
    )
    return made


def rivals_figure(sarathi: Path, slai: Path) -> Any:
    """Sarathi's capacity beside vllm's, and the median TTFT of SLAI's variants."""
    made, axes = style.figure(1, 3, 3.4)
    cells = study.read_cells(sarathi)
    targets = sarathi_vllm.TARGETS
    for panel, trace in zip(axes.flat, sarathi_vllm.TRACES):
        mine, ends = study.chosen(cells, trace=trace), []
        for policy, settings in (("sarathi", sarathi_vllm.SARATHI), ("vllm", sarathi_vllm.VLLM)):
            seen = [sarathi_vllm.best(mine, settings, target)[0] for target in targets]
            ink = style.colour(policy)
            panel.plot(targets, seen, "o-", color=ink, linewidth=2, markersize=3.5)
            ends.append((policy, seen[-1], ink))
        panel.set_xscale("log")
        panel.set_xlim(targets[0], targets[-1])
        panel.set_xticks([0.06, 0.1, 0.25, 0.5, 1], ["0.06", "0.1", "0.25", "0.5", "1 s"])
        panel.minorticks_off()
        panel.set_ylim(0, 3.5)
        style.label_ends(panel, ends, targets[-1])
        style.title(panel, LENGTHS[trace], "requests/s")
        style.x_label(panel, "p99 time between tokens asked")
    panel, ends = axes[0, 2], []
    mine = study.chosen(study.read_cells(slai), mix="strict and relaxed")
    rates = sorted({c["rate"] for c in study.chosen(mine, policy=slai_claims.SARATHI)})
    for policy in slai_claims.POLICIES:
        seen = [study.mean(study.chosen(mine, policy=policy, rate=r), "ttft_s") for r in rates]
        line = "--" if policy == slai_claims.SHORTEST else "-"
        panel.plot(rates, seen, line, color=style.colour(policy), linewidth=1.8)
        ends.append((slai_report.text_of(policy), seen[-1], style.colour(policy)))
    panel.axhline(slai_claims.TTFT_S, color=style.MUTED, linewidth=0.8)
    panel.set_yscale("log")
    panel.set_xlim(rates[0], rates[-1])
    panel.set_xticks([1, 1.5, 2])
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda y, _: f"{y:g} s")
    style.label_ends(panel, ends, rates[-1])
    style.title(panel, "ShareGPT", "median TTFT")
    style.x_label(panel, "requests/s")
    return made


def scls_figure(results: Path) -> Any:
    """Throughput over requests a second and instance, by overhead and number of instances."""
    cells = study.read_cells(results)
    settings = sorted({(c["overhead_ms"], c["instances"]) for c in cells})
    made, axes = style.figure(1, len(settings), 3.6, sharey=True)
    rates = sorted({c["rate_per_instance"] for c in cells})
    for panel, (overhead, instances) in zip(axes.flat, settings):
        mine, ends = study.chosen(cells, overhead_ms=overhead, instances=instances), []
        for label in dict.fromkeys(c["label"] for c in mine):
            seen = [
                study.mean(study.chosen(mine, label=label, rate_per_instance=r), "throughput_rps")
                / instances
                for r in rates
            ]
            ink = KINDS.get(label[:4].strip(","), style.colour(label))
            panel.plot(rates, seen, "o-", color=ink, linewidth=1.5, markersize=2.5)
            ends.append((label.replace("KV is the only cap", "KV cap only"), seen[-1], ink))
        plural = "s" if instances > 1 else ""
        style.title(panel, f"{instances} instance{plural}", f"{overhead:g} ms a step")
        style.x_label(panel, "requests/s offered, each")
        panel.set_xlim(0, rates[-1])
    axes[0, 0].set_ylim(0)
    style.label_ends(axes[0, -1], ends, rates[-1])
    return made


def gap_figure(path: Path) -> Any:
    """How far the bound lies above the best schedule of tiny instances."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    made, axes = style.figure(1, 2, 2.3, sharey=True)
    for panel, (key, heading) in zip(
        axes.flat, (("utility", "by utility"), ("attainment", "by number of tasks"))
    ):
        pairs = [(i["optimum"][key], i["bound"][key]) for i in recorded["instances"]]
        gaps = [100 * (bound / best - 1) for best, bound in pairs if best > 0]
        panel.hist(gaps, bins=np.arange(-2.5, 102.6, 5), color=style.OTHER, rwidth=0.86)
        mean = recorded["gap"][key]["mean"]
        panel.axvline(100 * mean, color=style.INK, linewidth=1)
        panel.text(100 * mean + 1.5, 18, f"mean {100 * mean:.1f} %", fontsize=8.5, color=style.INK)
        style.title(panel, heading, f"of {len(gaps)} instances")
        style.x_label(panel, "bound above the best schedule, %")
    return made


def plan_figure(path: Path) -> Any:
    """Plan time over live tasks."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    found: Mapping[tuple[str, int], Mapping[str, Any]] = {
        (r["policy"], r["tasks"]): r for r in recorded["results"]
    }
    counts = sorted({n for _, n in found})
    made, axes = style.figure(1, 2, 3.6)
    for panel, (key, heading) in zip(
        axes.flat, (("plan_us", "the plan"), ("all_us", "events, plan, check, commit"))
    ):
        ends = []
        for policy in dict.fromkeys(p for p, _ in found):
            seen = [found[policy, n][key]["p99"] for n in counts if (policy, n) in found]
            ink = style.colour(policy)
            front = policy in ("pace", "slice")
            panel.plot(
                counts[: len(seen)],
                seen,
                "o-",
                color=ink,
                linewidth=2.2 if front else 1.2,
                markersize=3,
            )
            ends.append((policy.replace(":mask_layout=", ", "), seen[-1], ink))
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlim(counts[0], counts[-1])
        panel.set_xticks(counts, [f"{n:,}" for n in counts])
        panel.minorticks_off()
        style.label_ends(panel, ends, counts[-1])
        panel.yaxis.set_major_formatter(lambda y, _: f"{y:g} µs")
        style.title(panel, heading, "p99 of a step")
        style.x_label(panel, "live tasks")
    return made
