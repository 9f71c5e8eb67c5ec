"""The sections of the report: what each asks, its figures, how to read them, their origin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import edge_report
import study

from report_parts import figures, runs, style
from report_parts.page import Section
from slicellm.bench import report

COMMAND = "python benchmark/studies/report.py"


# ---- where figures come from --------------------------------------------------------------------


def _machine(machine: Mapping[str, Any] | str) -> str:
    return machine if isinstance(machine, str) else f"{machine['cpu']}, {machine['cores']} cores"


def _commit(commit: str | None) -> str:
    """The first digits of a commit or several, and the + of a tree with changes."""
    if not commit:
        return "commit not recorded"
    each = [f"`{one[:12]}{one[40:]}`" for one in commit.split(", ")]
    return f"commit{'s' if len(each) > 1 else ''} {', '.join(each)}"


def _seeds(seeds: Iterable[int]) -> str:
    found = sorted(set(seeds))
    return f"seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


def _study(results: Path, name: str, script: str) -> str:
    """Command, seeds, commit and machine of a study's folder."""
    setup, cells = study.read_setup(results / name), study.read_cells(results / name)
    command = setup.get("command")
    parts = [f"`{command}`" if command else f"`benchmark/studies/{script}`, arguments not recorded"]
    parts.append(_seeds(c["seed"] for c in cells))
    if "tasks" in setup:
        parts.append(f"{setup['tasks']} tasks a run")
    parts += [_commit(setup.get("commit")), _machine(setup["machine"])]
    return f"[{name}]({name}/summary.md): {'; '.join(parts)}."


def _file(results: Path, name: str) -> str:
    """The same of a study that writes one file."""
    recorded = json.loads((results / name).read_text(encoding="utf-8"))
    parts = [f"`{recorded['command']}`", _commit(recorded["commit"]), _machine(recorded["machine"])]
    busy = max(recorded.get("load_average", [0]))
    if busy > 1.5:
        parts.append(f"others ran beside it: load average {busy:.0f}")
    return f"[{name}]({name}): {'; '.join(parts)}."


def _own(what: str) -> str:
    commit, machine = _commit(study.commit()), _machine(report.machine())
    return f"Simulated for this page: `{COMMAND}`; {what}; {commit}; {machine}."


# ---- recorded -----------------------------------------------------------------------------------


def load(results: Path) -> Section:
    folder = results / "load_curves"
    seeds = len({c["seed"] for c in study.read_cells(folder)})
    few = f"Mean over {seeds} seeds." if seeds > 1 else "With one seed, a few per cent say nothing."
    drawn = style.svg(figures.load_figure(folder), "load", "Tasks and utility met over load")
    return Section(
        "load",
        "Attainment over load, every policy",
        "How many tasks keep all of their targets, and how much utility they bring, from half to "
        "three times what the machine can do. All policies see the same arrivals; none but "
        "pace-told knows how long an answer will be.",
        [
            (
                drawn,
                "slice is shown at the best of five ratios, point by point, which no operator can "
                "choose in advance: that flatters it. Real-time tasks of edge are worth 100 times "
                f"the others, strict tasks of the rest 10 times. {few}",
            )
        ],
        [_study(results, "load_curves", "load_curves.py")],
    )


def pace(results: Path) -> Section:
    drawn = style.svg(
        figures.pace_figure(results / "pace"), "pace", "Utility pace gains over the best other"
    )
    return Section(
        "pace",
        "pace beside the best of the rest",
        "Our own policy knows neither lengths nor how long a step will take: it learns both. Each "
        "cell compares it with whichever of the others does best there, slice at its best ratio "
        "included. [What worked and what did not](../studies/pace.md) is written down.",
        [
            (
                drawn,
                "Utility of pace less that of the best other policy, in points of a hundred, mean "
                "over seeds. ≈: not more, but within the 95 % interval over paired seeds. ✗: less. "
                "sharegpt has one class, so that its rows agree.",
            )
        ],
        [_study(results, "pace", "pace_grid.py")],
    )


def bound(results: Path) -> Section:
    drawn = style.svg(
        figures.bound_figure(results / "pace"), "bound", "pace's share of the clairvoyant bound"
    )
    return Section(
        "bound",
        "How far from the best possible",
        "The clairvoyant bound is what nobody could exceed, even knowing all arrivals and lengths "
        "beforehand. It is optimistic: a share of a task may be run, and KV memory is endless.",
        [
            (
                drawn,
                "First seed, without jitter; by number of tasks every task is worth 1. Vermillion: "
                "less than was asked for.",
            )
        ],
        [_study(results, "pace", "pace_grid.py")],
    )


def completion(results: Path) -> Section:
    drawn = style.svg(
        figures.completion_figure(results / "slice_headline"),
        "completion",
        "Mean completion time over load by class, for slice, orca and fastserve",
    )
    return Section(
        "completion",
        "Completion times",
        "From arrival to the last token, on edge; every task is served to its end. slice buys the "
        "robots' time with that of the others, as their utilities tell it to.",
        [
            (
                drawn,
                "Mean over tasks and seeds, the seeds' range shaded; logarithmic. slice at its "
                "best swept ratio by tasks met, load by load. Above saturation a queue grows for "
                "as long as tasks arrive, and these times with it.",
            )
        ],
        [_study(results, "slice_headline", "slice_headline.py")],
    )


def engine(results: Path) -> Section:
    drawn = style.svg(
        figures.engine_figure(results / "edge"), "engine", "Share met by class on the real engine"
    )
    groups = edge_report.read_cells(results / "edge").values()
    configs = [cell["config"] for group in groups for cell in group]
    first = configs[0]
    return Section(
        "engine",
        "The real engine",
        "Not simulated: a model of Qwen2.5-0.5B's shape, int4, runs edge on two cores, with the "
        "published targets scaled to the machine.",
        [
            (
                drawn,
                "Share met, the thin line spans the seeds. slice at its best swept ratio by tasks "
                "met, load by load. With few tasks a run, ten points say little.",
            )
        ],
        [
            f"[edge](edge/summary.md): `benchmark/studies/edge_policies.py`, arguments not "
            f"recorded; {_seeds(c['seed'] for c in configs)}; {first['tasks']} tasks a run; "
            f"{_commit(first['commit'])}; {first['device']}."
        ],
    )


def rivals(results: Path) -> Section:
    drawn = style.svg(
        figures.rivals_figure(results / "sarathi_vllm", results / "slai"),
        "rivals",
        "Capacity of sarathi and vllm; median time to first token of slai",
    )
    return Section(
        "rivals",
        "What others published, again",
        "Sarathi cuts prompts into chunks so that running answers never stall; SLAI lets relaxed "
        "answers wait for prompts. Both rebuilt in settings like their own.",
        [
            (
                drawn,
                "Left and middle: requests/s with a median scheduling delay under 2 s, over the "
                "p99 gap between tokens asked for, each policy at its best budget. Right: 5 % "
                "strict and 95 % relaxed requests; grey line: the target of 0.5 s; dashed: "
                "sarathi with the shortest prompt first.",
            )
        ],
        [
            _study(results, "sarathi_vllm", "sarathi_vllm.py"),
            _study(results, "slai", "slai_claims.py"),
        ],
    )


def scls(results: Path) -> Section:
    drawn = style.svg(
        figures.scls_figure(results / "scls"), "scls", "Throughput of SCLS, ILS and SLS"
    )
    return Section(
        "scls",
        "SCLS on one and eight instances",
        "Batches that end after a slice of S tokens, against batches that run to their longest "
        "answer (SLS) and a fixed number in parallel (ILS).",
        [
            (
                drawn,
                "Requests/s ended, per instance. 2 ms of overhead a step is that of fused "
                "kernels, 30 ms that of an eager framework. orca, here limited by KV memory only, "
                "is no part of the published comparison: it shows what continuous batching does.",
            )
        ],
        [_study(results, "scls", "scls.py")],
    )


def gap(results: Path) -> Section:
    name = "bound-gap.json"
    drawn = style.svg(figures.gap_figure(results / name), "gap", "Bound above the best schedule")
    return Section(
        "gap",
        "How tight the bound is",
        "Where every schedule can be searched, the bound is never below the best one. How far "
        "above says how much of a gap to it is the bound's own.",
        [(drawn, "Three to five short tasks each, where running a share of a task tells most.")],
        [_file(results, name)],
    )


def plan(results: Path) -> Section:
    name = "plan_time/plan_time.json"
    drawn = style.svg(figures.plan_figure(results / name), "plan", "Plan time over live tasks")
    return Section(
        "plan",
        "What planning costs",
        "CPU time of a step's plan in a steady state with up to 10,000 live tasks.",
        [(drawn, "Logarithmic. Of thousands nearly all wait, far beyond their targets.")],
        [_file(results, name)],
    )


# ---- own runs -----------------------------------------------------------------------------------


def classes(tasks: int, seeds: Sequence[int]) -> Section:
    found = runs.by_class(tasks, seeds)
    drawn = style.svg(runs.draw_classes(found), "classes", "Share met by class, a row a policy")
    return Section(
        "classes",
        "Who is served when not all can be",
        "The three classes of edge above saturation: robots that need a whole answer within 1.5 s, "
        "voices that need 8 tokens/s, and answers that are read at 10 tokens/s. One robot is worth "
        "100 of the others.",
        [
            (
                drawn,
                "Share met; the thin line spans the seeds. slice has one ratio here, 0.5, its best "
                "by tasks met at 1.5x.",
            )
        ],
        [_own(f"{_seeds(seeds)}; {tasks} tasks a run; profile {runs.PROFILE}")],
    )


def scene() -> tuple[Section, Section]:
    """The scene as a Gantt chart, and as masks."""
    scenes = [runs.play(policy) for policy in runs.SHOWN]
    gantt = style.svg(runs.draw_gantt(scenes), "gantt", "Every token beside the time it was due")
    matrix = style.svg(runs.draw_mask(scenes[0]), "mask", "The decode-mask matrix of slice")
    origin = _own(f"no seed, nothing is random; profile {runs.PROFILE} without jitter")
    return (
        Section(
            "gantt",
            "Thirteen tasks, token by token",
            "Six robots, three voices and four answers arrive within three seconds on a machine "
            "whose step takes longer with every row. Batching them all, as orca does, is fair, and "
            "late for every robot. slice and pace let those wait who can.",
            [
                (
                    gantt,
                    "A scene set by hand to make the difference visible; it does not measure which "
                    "policy is better. A band runs from arrival to the last token. Above: the "
                    "prompt and each token. Below: when each token was due, or the whole answer. A "
                    "task may catch up after late tokens, as its TPOT is a mean.",
                )
            ],
            [origin],
        ),
        Section(
            "mask",
            "The decode-mask matrix",
            "slice plans a cycle of about a second at once. A row is a task, a column a decode "
            "step, a square says that the task takes part: who needs 8 tokens a second has 8. Few "
            "rows keep a step short, and that is the whole idea.",
            [
                (
                    matrix,
                    "Above: the tallest matrix of the scene in both layouts. Below: the scene "
                    "under slice as it ran. The matrix is made anew when a task arrives or ends, "
                    "so that in a busy second only its first columns are used (shaded).",
                )
            ],
            [origin],
        ),
    )
