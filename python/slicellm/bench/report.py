"""What a benchmark tells people (tables) and tools (the result file)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from slicellm.bench import checks
from slicellm.bench.capacity import Capacity, Tried
from slicellm.bench.eventlog import EventLog
from slicellm.bench.task_metrics import task_metrics

Results = Mapping[str, Mapping[str, Any]]  # metrics by policy name


def make_console(stderr: bool = False) -> Console:
    """A console that is wide enough for the tables where the width is unknown (pipes, files)."""
    console = Console(highlight=False, stderr=stderr)
    if not console.is_terminal:
        console.width = 140
    return console


# ---- tables -------------------------------------------------------------------------------------


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _at(tree: Mapping[str, Any], path: str) -> float | None:
    value: Any = tree
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


Cell = tuple[str, str, Callable[[float | None], str]]  # heading, path, format
_COLUMNS: tuple[Cell, ...] = (
    ("SLO met", "attainment", _percent),
    ("utility", "utility", _percent),
    ("goodput\ntasks/s", "goodput", _number),
    ("output\ntokens/s", "output_tokens_per_s", _number),
    ("TTFT ms\np50", "ttft_ms/p50", _number),
    ("\np99", "ttft_ms/p99", _number),
    ("TPOT ms\np50", "tpot_ms/p50", _number),
    ("\np99", "tpot_ms/p99", _number),
    ("E2EL ms\nmean", "e2el_ms/mean", _number),
    ("\np99", "e2el_ms/p99", _number),
    ("time in\nprefill", "prefill_share", _percent),
    ("plan us\np99", "plan_us/p99", _number),
)
# With --bound: shares of what nobody could exceed, in the place of what then has no room.
_OPTIMALITY: tuple[Cell, ...] = (
    ("of bound:\ntasks", "optimality/attainment", _percent),
    ("\nutility", "optimality/utility", _percent),
)


def _columns(results: Results) -> tuple[Cell, ...]:
    if not any("optimality" in metrics for metrics in results.values()):
        return _COLUMNS
    left = [c for c in _COLUMNS[2:] if c[1] not in ("output_tokens_per_s", "prefill_share")]
    return (*_COLUMNS[:2], *_OPTIMALITY, *left)


def _cell(
    metrics: Mapping[str, Any],
    spread: Mapping[str, Any] | None,
    path: str,
    form: Callable[[float | None], str],
) -> str:
    text = form(_at(metrics, path))
    deviation = None if spread is None else _at(spread, path)
    return text if deviation is None else f"{text}\n±{form(deviation)}"


def overall_table(results: Results, title: str, spread: Results | None = None) -> Table:
    """One row a policy. With `spread`, the standard deviation over seeds stands below each mean."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("policy", overflow="fold")
    columns = _columns(results)
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for policy, metrics in results.items():
        deviations = None if spread is None else spread[policy]
        table.add_row(
            policy, *(_cell(metrics, deviations, path, form) for _, path, form in columns)
        )
    return table


def sweep_table(
    rows: Sequence[tuple[Mapping[str, Any], Results, Results | None]], title: str
) -> Table:
    """One row a rate and policy: configuration, metrics and their spread over seeds."""
    table = Table(title=title, title_justify="left", header_style="bold")
    left_out = ("prefill_share", "plan_us/p99", "e2el_ms/p99")
    columns = [c for c in _columns(rows[0][1] if rows else {}) if c[1] not in left_out]
    for heading in ("tasks/s", "load"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for config, results, spread in rows:
        for i, (policy, metrics) in enumerate(results.items()):
            place = [_number(config["rate"]), _number(config["load"])] if i == 0 else ["", ""]
            deviations = None if spread is None else spread[policy]
            cells = (_cell(metrics, deviations, path, form) for _, path, form in columns)
            table.add_row(*place, policy, *cells)
        table.add_section()
    return table


def capacity_table(found: Mapping[str, Capacity], saturation: float, tasks: int) -> Table:
    """One row a policy: the highest rate that meets the target, and the next that does not."""
    target = next(iter(found.values())).target
    table = Table(title=f"capacity at {_percent(target)} met", title_justify="left")
    table.add_column("policy", overflow="fold")
    for heading in ("tasks/s", "x saturation", "met there (95 % confidence)", "next rate", "met"):
        table.add_column(heading, justify="right", no_wrap=True)
    for policy, c in found.items():
        at = ["none", "-", "-"]
        if c.met is not None:
            least = "" if c.missed is not None else "at least "
            sure = f"{_percent(c.met.attainment)} ± {_percent(c.met.half_width(tasks))}"
            at = [f"{least}{_number(c.met.rate)}", f"{c.met.rate / saturation:.2f}", sure]
        above = ["-", "-"]
        if c.missed is not None:
            above = [_number(c.missed.rate), _percent(c.missed.attainment)]
        table.add_row(policy, *at, *above)
    return table


def capacity_object(
    found: Mapping[str, Capacity], saturation: float, tasks: int
) -> dict[str, dict[str, Any]]:
    """The capacities for the result file."""

    def tried(t: Tried | None) -> dict[str, Any] | None:
        if t is None:
            return None
        return {
            "rate": t.rate,
            "load": t.rate / saturation,
            "attainment": t.attainment,
            "half_width": t.half_width(tasks),
            "attainments": list(t.attainments),
        }

    return {
        policy: {
            "target": c.target,
            "met": tried(c.met),
            "missed": tried(c.missed),
            "rates_tried": c.rates_tried,
        }
        for policy, c in found.items()
    }


def class_table(results: Results, spread: Results | None = None) -> Table:
    """One row a policy and class."""
    table = Table(title="by class", title_justify="left", header_style="bold")
    table.add_column("policy", overflow="fold")
    table.add_column("class")
    columns: tuple[Cell, ...] = (
        ("tasks", "submitted", _number),
        ("SLO met", "attainment", _percent),
        ("utility", "utility", _percent),
        ("TTFT ms p50", "ttft_ms/p50", _number),
        ("TPOT ms p50", "tpot_ms/p50", _number),
        ("E2EL ms mean", "e2el_ms/mean", _number),
        ("p99", "e2el_ms/p99", _number),
    )
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for policy, metrics in results.items():
        for i, (name, values) in enumerate(metrics["classes"].items()):
            deviations = None if spread is None else spread[policy]["classes"].get(name)
            table.add_row(
                policy if i == 0 else "",
                name,
                *(_cell(values, deviations, path, form) for _, path, form in columns),
            )
        table.add_section()
    return table


def print_results(
    results: Results, title: str, spread: Results | None = None, console: Console | None = None
) -> None:
    """Prints policies side by side, overall and by class."""
    console = console or make_console()
    console.print(overall_table(results, title, spread))
    if any(len(metrics["classes"]) > 1 for metrics in results.values()):
        console.print(class_table(results, spread))
    for policy, metrics in results.items():
        odd = {k: v for k, v in metrics["finish"].items() if k not in ("stop", "length") and v}
        if odd:
            console.print(
                f"{policy}: ended otherwise: "
                + ", ".join(f"{_number(v)} {k}" for k, v in odd.items())
            )
        if "goodput_given" in metrics:
            console.print(f"{policy}: {_number(metrics['goodput_given'])} tasks/s within --goodput")


def print_tokens(
    console: Console, policy: str, log: EventLog, texts: Sequence[str] | None = None
) -> None:
    """Each token's time in ms from its task's arrival, with the answer's text."""
    tasks = task_metrics(log)
    stops = np.cumsum(tasks.tokens)
    console.print(f"{policy}: ms from arrival to each token", style="bold")
    for i, declared in enumerate(log.tasks):
        times = tasks.token_time[stops[i] - tasks.tokens[i] : stops[i]] - declared.arrival
        slo = ", ".join(
            f"{name} {value:g} ms"
            for name, value in (
                ("TTFT", declared.slo.ttft_ms),
                ("TPOT", declared.slo.tpot_ms),
                ("deadline", declared.slo.deadline_ms),
            )
            if value is not None
        )
        verdict = "met" if tasks.met[i] else f"missed ({tasks.reason[i]})"
        console.print(
            f"task {i}, {declared.class_name}, utility {declared.utility:g}, {slo or 'no target'}, "
            f"arrived {declared.arrival:.3f} s: {verdict}"
        )
        console.print("  " + " ".join(f"{1e3 * t:.0f}" for t in times), markup=False)
        if texts is not None:
            console.print("  " + " ".join(texts[i].split()), markup=False, style="dim")


# ---- the result file ----------------------------------------------------------------------------


def _combine(values: Sequence[Any], how: Callable[[Sequence[float]], float]) -> Any:
    """The same tree as each of `values`, with numbers combined; a number that is missing in some
    run is combined over the others."""
    trees = [v for v in values if isinstance(v, Mapping)]
    if trees:
        keys = dict.fromkeys(key for tree in trees for key in tree)
        return {key: _combine([tree.get(key) for tree in trees], how) for key in keys}
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return how(numbers) if numbers else None


def mean(runs: Sequence[Results]) -> dict[str, Any]:
    """Mean over runs of every number of every policy. A count that a run lacks (a finish reason)
    is zero there, any other missing number is left out."""
    return _over_runs(runs, lambda numbers: float(np.mean(numbers)))


def spread(runs: Sequence[Results]) -> dict[str, Any]:
    """Sample standard deviation over runs of every number of every policy."""
    return _over_runs(runs, lambda n: float(np.std(n, ddof=1)) if len(n) > 1 else 0.0)


def _over_runs(runs: Sequence[Results], how: Callable[[Sequence[float]], float]) -> dict[str, Any]:
    combined: dict[str, Any] = {}
    for policy in dict.fromkeys(policy for run in runs for policy in run):
        metrics = [dict(run[policy]) for run in runs if policy in run]
        reasons = dict.fromkeys(r for m in metrics for r in m["finish"])
        for m in metrics:
            m["finish"] = {r: m["finish"].get(r, 0) for r in reasons}
        combined[policy] = _combine(metrics, how)
    return combined


def result_object(
    config: Mapping[str, Any], seeds: Sequence[int], runs: Sequence[Results]
) -> dict[str, Any]:
    """The result file's content: one object for one seed; for several, a list of such objects under
    `runs` with their mean and spread (sample standard deviation) beside it."""
    objects = [
        {"config": {**config, "seed": seed}, "policies": run} for seed, run in zip(seeds, runs)
    ]
    if len(objects) == 1:
        return objects[0]
    return {
        "config": {**config, "seed": list(seeds)},
        "runs": objects,
        "mean": {"policies": mean(runs)},
        "spread": {"policies": spread(runs)},
    }


def write_result(path: str, result: Mapping[str, Any]) -> None:
    """Writes the result file: strict JSON, without NaN."""
    text = json.dumps(result, indent=1, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def check_writable(path: str, flag: str) -> None:
    """Refuses an output file that cannot be written, before a run takes its time."""
    target = Path(path)
    place = target if target.exists() else target.parent
    if target.is_dir() or not target.parent.is_dir() or not os.access(place, os.W_OK):
        raise checks.invalid(flag, path, "a file that can be written, in a folder that exists")


# ---- where and what -----------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """The machine that ran: CPU, cores, system, Python."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit(file: str | Path = __file__) -> str | None:
    """The commit of the source tree that `file`, this package if not given, lies in, with "+" if
    the tree has changes; None for a file that no repository keeps, as of an installed package."""
    here = Path(file).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        if not git("ls-files", "--error-unmatch", str(here)):
            return None
        head = git("rev-parse", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
