"""The report's own simulated runs: every policy by class, and one small scene in detail."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

import slicellm
from report_parts import style
from slicellm.bench.plot import token_due
from slicellm.bench.profiles import load_profile
from slicellm.bench.task_metrics import TaskMetrics
from slicellm.bench.tasks import Slo, WorkloadTask
from slicellm.policies import MaskMatrix, Policy, StepPlan, View, list_policies, make_policy

PROFILE = "rtx4060ti-chatglm2-6b-int4"
LOADS = (1.5, 3.0)
SLICE = "slice:ratio=0.5"  # its best swept ratio by tasks met at 1.5x, see slice_headline
SHOWN = ("slice", "pace", "orca")  # beside one another in the scene


# ---- all policies by class ----------------------------------------------------------------------


def policies() -> list[str]:
    """Every policy that runs on one instance; slice at its best ratio."""
    names = [info["name"] for info in list_policies() if info["name"] != "scls"]
    return [SLICE if name == "slice" else name for name in names]


def by_class(tasks: int, seeds: Sequence[int]) -> dict[tuple[str, float], dict[str, list[float]]]:
    """(policy, load) -> class or "utility" -> share met of each seed."""
    found: dict[tuple[str, float], dict[str, list[float]]] = {}
    for policy, load, seed in itertools.product(policies(), LOADS, seeds):
        run = slicellm.simulate(
            "edge", policy, PROFILE, num_tasks=tasks, load=load, seed=seed, event_log=False
        )
        shares = {name: c["attainment"] for name, c in run.metrics["classes"].items()}
        shares["utility"] = run.metrics["utility"]
        for name, share in shares.items():
            found.setdefault((policy, load), {}).setdefault(name, []).append(share)
    return found


def draw_classes(found: Mapping[tuple[str, float], Mapping[str, list[float]]]) -> Any:
    """Bars: a row a policy, a panel a class, a bar a load."""
    from matplotlib.patches import Patch

    groups = {**style.CLASS_NAMES, "utility": "utility"}
    order = sorted(
        dict.fromkeys(policy for policy, _ in found),
        key=lambda p: sum(float(np.mean(found[p, load]["utility"])) for load in LOADS),
    )
    made, axes = style.figure(1, len(groups), 0.36 * len(order) + 1.1, sharey=True)
    for panel, (key, heading) in zip(axes.flat, groups.items()):
        for (row, policy), (place, load) in itertools.product(
            enumerate(order), ((0.19, LOADS[0]), (-0.19, LOADS[1]))
        ):
            seen = [100 * v for v in found[policy, load].get(key, [])]
            if not seen:
                continue
            middle, at = float(np.mean(seen)), row + place
            strong = load == LOADS[0]
            panel.barh(at, middle, 0.34, color=style.colour(policy), alpha=1 if strong else 0.45)
            panel.plot([min(seen), max(seen)], [at, at], color=style.INK, linewidth=0.9)
            panel.text(
                max(seen) + 2, at, f"{middle:.0f}", va="center", fontsize=7.5, color=style.MUTED
            )
        style.title(panel, heading)
        panel.set_xlim(0, 112)
        panel.set_ylim(-0.55, len(order) - 0.45)
        panel.set_xticks([0, 50, 100], ["0", "50", "100 %"])
        panel.grid(False)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
    names = ["slice, ratio 0.5" if p == SLICE else p for p in order]
    axes[0, 0].set_yticks(range(len(order)), names, fontsize=9, color=style.INK)
    keys = [
        Patch(color=style.MUTED, alpha=alpha, label=f"{load:g}x saturation")
        for load, alpha in zip(LOADS, (1, 0.45))
    ]
    style.legend(made, keys)
    return made


# ---- one scene ----------------------------------------------------------------------------------


def scene() -> list[WorkloadTask]:
    """Thirteen tasks in three seconds with the targets of `edge`, more than the machine can batch:
    robots (15 tokens within 1.5 s), voices (8 tokens/s) and answers (10 tokens/s)."""
    robot, voice, answer = (
        Slo(deadline_ms=1500),
        Slo(ttft_ms=2000, tpot_ms=125),
        Slo(ttft_ms=2000, tpot_ms=100),
    )
    tasks = [WorkloadTask(t, 30, 15, 30, "realtime", 100.0, robot) for t in (0.8, 1.3, 1.6, 1.9)]
    tasks += [WorkloadTask(t, 30, 15, 30, "realtime", 100.0, robot) for t in (3.0, 3.2)]
    voices = ((0.0, 45), (0.35, 40), (1.5, 35))
    tasks += [WorkloadTask(t, 60, n, 300, "voice", 1.0, voice) for t, n in voices]
    answers = ((0.1, 60), (0.2, 70), (0.5, 60), (0.95, 60))
    tasks += [WorkloadTask(t, 80, n, 400, "qa", 1.0, answer) for t, n in answers]
    return sorted(tasks, key=lambda task: task.arrival_s)


def rows_of(tasks: Sequence[WorkloadTask]) -> list[int]:
    """The tasks in the order of their rows: class by class, each by arrival."""
    classes = list(style.CLASS_NAMES)
    return sorted(range(len(tasks)), key=lambda i: (classes.index(tasks[i].class_name), i))


class Watched(Policy):
    """A policy that notes its state at every plan, and otherwise does as the one it wraps."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.states: list[tuple[float, dict[str, Any]]] = []  # time (s) of each plan, its state
        self._policy = make_policy(text)

    def on(self, kind: str, slot: int, view: View) -> None:
        self._policy.on(kind, slot, view)

    def plan(self, view: View) -> StepPlan:
        plan = self._policy.plan(view)
        self.states.append((view.now, json.loads(self._policy.inspect())))
        return plan

    def commit(
        self, plan: StepPlan, duration: float, token_slots: Sequence[int], view: View
    ) -> None:
        self._policy.commit(plan, duration, token_slots, view)


@dataclass(frozen=True)
class Scene:
    """The scene under one policy."""

    policy: str
    tasks: list[WorkloadTask]
    metrics: TaskMetrics
    due: npt.NDArray[np.float64]  # of each token of metrics.token_time, s
    starts: npt.NDArray[np.float64]  # of each step, s
    ends: npt.NDArray[np.float64]
    prefills: list[tuple[int, int]]  # task, step
    states: list[tuple[float, dict[str, Any]]]


def play(policy: str) -> Scene:
    """Runs the scene, without jitter."""
    watched = Watched(policy)
    run = slicellm.simulate(scene(), watched, replace(load_profile(PROFILE), jitter=0.0))
    assert run.log is not None and run.steps is not None
    starts = np.asarray(run.steps["start"], dtype=float)
    ends = starts + np.asarray(run.steps["duration"], dtype=float)
    metrics = run.task_metrics()
    prefills = [
        (e.task, int(np.argmin(np.abs(ends - e.t)))) for e in run.log.events if e.event == "prefill"
    ]
    due = token_due(run.log, metrics)
    return Scene(policy, scene(), metrics, due, starts, ends, prefills, watched.states)


def names(tasks: Sequence[WorkloadTask]) -> list[str]:
    """robot 1, voice 1, answer 1, robot 2, ..."""
    words = {"realtime": "robot", "voice": "voice", "qa": "answer"}
    count: dict[str, int] = {}
    found = []
    for task in tasks:
        count[task.class_name] = count.get(task.class_name, 0) + 1
        found.append(f"{words[task.class_name]} {count[task.class_name]}")
    return found


def draw_gantt(scenes: Sequence[Scene]) -> Any:
    """A row a task: what came above, what was due below."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    count = len(scenes[0].tasks)
    made, axes = style.figure(len(scenes), 1, 0.19 * count * len(scenes) + 1.9, sharex=True)
    end = max(float(s.metrics.token_time.max()) for s in scenes)
    in_time, faint, prompt = style.COLOURS["pace"], "#9aa5ae", "#5d6a75"
    for panel, each in zip(axes.flat, scenes):
        metrics, order = each.metrics, rows_of(each.tasks)
        late = metrics.token_time > each.due
        for row, task in enumerate(order):
            mine, arrival = metrics.token_task == task, each.tasks[task].arrival_s
            last = float(metrics.token_time[mine].max(initial=arrival))
            panel.barh(row, last - arrival, 0.84, left=arrival, color="#f1f3f5")
            due = np.unique(each.due[mine])  # a deadline is one time for all tokens
            once = len(due) == 1
            ink, width = (style.INK, 1.8) if once else (faint, 0.8)
            style.ticks(panel, due[due <= end], row + 0.04, row + 0.42, ink, width)
            for which, ink in ((mine & ~late, in_time), (mine & late, style.MISSED)):
                times = metrics.token_time[which]
                style.ticks(panel, times, row - 0.42, row - 0.04, ink, 1.3)
            met = bool(metrics.met[task])
            panel.text(
                end + 0.08,
                row,
                "met" if met else "missed",
                va="center",
                fontsize=7.5,
                color=style.MUTED if met else style.MISSED,
                fontweight="normal" if met else "bold",
            )
        for task, step in each.prefills:
            width = each.ends[step] - each.starts[step]
            row = order.index(task)
            panel.barh(row - 0.23, width, 0.38, left=each.starts[step], color=prompt)
        labels = names(each.tasks)
        panel.set_yticks(range(count), [labels[i] for i in order], fontsize=7.5)
        panel.set_ylim(count - 0.4, -0.6)
        panel.set_xlim(0, end + 0.5)
        panel.grid(False)
        panel.tick_params(axis="y", length=0)
        worth = np.array([task.utility for task in each.tasks])
        share = 100 * worth[metrics.met].sum() / worth.sum()
        told = f"{metrics.met.sum()} of {count} tasks, {share:.1f} % of utility"
        style.title(panel, each.policy, told)
    style.x_label(axes[-1, 0], "seconds")
    tick: dict[str, Any] = {"marker": "|", "linestyle": "", "markersize": 8}
    keys = [
        Patch(color=prompt, label="prompt"),
        Line2D([], [], color=in_time, mew=1.5, label="token in time", **tick),
        Line2D([], [], color=style.MISSED, mew=1.5, label="token late", **tick),
        Line2D([], [], color=faint, label="token due", **tick),
        Line2D([], [], color=style.INK, mew=2, label="deadline of a whole answer", **tick),
    ]
    style.legend(made, keys)
    return made


def draw_mask(each: Scene) -> Any:
    """The matrix with the most rows in both layouts, and which steps every task took part in."""
    at = max(range(len(each.states)), key=lambda i: len(each.states[i][1]["rates"]))
    state = each.states[at][1]
    rates, ids, labels = state["rates"], state["ids"], names(each.tasks)
    inks = [style.CLASS_COLOURS[task.class_name] for task in each.tasks]
    made, axes = style.figure(2, 1, 6.3, height_ratios=[1, 1.25])
    top = axes[0, 0].get_subplotspec().subgridspec(1, 2)
    axes[0, 0].remove()
    for place, (layout, heading) in enumerate(
        (("packed", "as published: ones packed to the left"), ("spread", "option: ones spread"))
    ):
        panel = made.add_subplot(top[0, place])
        style.plain(panel)
        cells = MaskMatrix(rates, layout).to_numpy()
        _cells(panel, cells, [inks[i - 1] for i in ids])  # the core counts tasks from 1
        sides = [f"{labels[i - 1]}:  {rate} a cycle" for i, rate in zip(ids, rates)]
        panel.set_yticks(range(len(rates)), sides, fontsize=8)
        counted = [1, *range(5, cells.shape[1] + 1, 5)]
        panel.set_xticks([j - 1 for j in counted], [f"{j}" for j in counted])
        style.x_label(panel, "decode step of the cycle")
        style.title(panel, heading)
    below, order = axes[1, 0], rows_of(each.tasks)
    taken = np.zeros((len(each.tasks), len(each.ends)), dtype=int)
    steps = np.searchsorted(each.ends, each.metrics.token_time - 1e-9)
    taken[each.metrics.token_task, steps] = 1
    for task, step in each.prefills:
        taken[task, step] = 2
    _cells(below, taken[order], [inks[i] for i in order])
    below.set_yticks(range(len(labels)), [labels[i] for i in order], fontsize=7.5)
    style.x_label(below, "step")
    style.title(below, "what ran: the steps that each task took part in", "grey: its prompt")
    inside = [t for t, s in each.states if s["ids"] == ids]
    first, last = np.searchsorted(each.starts, [inside[0] - 1e-9, inside[-1] + 1e-9])
    below.axvspan(first - 0.5, last - 0.5, color="#fdf0d2", zorder=0)
    below.annotate(
        "the matrix above",
        (first - 2.5, 1.5),
        fontsize=8,
        color="#8a6d1f",
        ha="right",
        va="center",
    )
    return made


def _cells(panel: Any, cells: npt.NDArray[Any], inks: Sequence[str]) -> None:
    """A square for every one; 2 is drawn in grey."""
    for row, ink in enumerate(inks):
        for value, shade in ((1, ink), (2, "#b9c2c9")):
            at = np.flatnonzero(cells[row] == value)
            panel.barh([row] * len(at), 0.86, 0.78, left=at - 0.43, color=shade, linewidth=0)
    panel.set_xlim(-0.7, cells.shape[1] - 0.3)
    panel.set_ylim(len(inks) - 0.4, -0.6)
    panel.grid(False)
    panel.spines[["left", "bottom"]].set_visible(False)
    panel.tick_params(length=0)
