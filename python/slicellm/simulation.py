"""Simulated runs: the engine's loop, KV ledger and policies in virtual time, without a model.

>>> import slicellm
>>> run = slicellm.simulate("edge", "slice:ratio=0.9", num_tasks=30, load=1.5)
>>> run.metrics["submitted"], run.metrics["classes"]["realtime"]["submitted"]
(30, 21)
>>> again = slicellm.simulate("edge", "slice:ratio=0.9", num_tasks=30, load=1.5)
>>> again.metrics["attainment"] == run.metrics["attainment"]
True

A step takes what the profile says, times a seeded jitter; the policy is shown a belief fitted to
noisy measurements of the profile. Same arguments, same result, bit for bit, but for what is real
time: the entries of `metrics` that REAL_TIME names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import _core
from .bench import checks, metrics
from .bench.arrivals import MAX_RATE, Arrivals, Gamma
from .bench.eventlog import Declared, EventLog, from_engine
from .bench.profiles import MAX_COUNT, Profile, load_profile
from .bench.saturation import SAMPLE, OfferedWork, offered_work
from .bench.task_metrics import TaskMetrics, column_metrics, task_metrics
from .bench.tasks import Slo, TaskColumns, WorkloadTask
from .bench.workload import Workload, load_workload

DEFAULT_PROFILE = "rtx4060ti-chatglm2-6b-int4"
MAX_SEED = 10**18 - 1
LOGGED = 10_000  # runs up to so many tasks keep their event log
REAL_TIME = ("plan_us", "plan_share", "overhead_us", "wall_s")  # metrics measured in real time
_COLUMNS = (
    "arrival",
    "first_token",
    "last_token",
    "finish",
    "max_gap",
    "max_lateness",
    "tokens",
    "reason",
)

Tasks = Union[str, Workload, TaskColumns, Sequence[WorkloadTask]]


@dataclass(frozen=True)
class Simulation:
    """A simulated run.

    Attributes:
        tasks: what the tasks were.
        columns: what became of them, one entry a task: arrival, first_token, last_token, finish,
            max_gap, max_lateness (s of virtual time, NaN without tokens), tokens, reason (place
            in eventlog.REASONS + 1).
        metrics: those of the result file (`benchmark --save-result`), and wall_s, padding and
            what each instance did.
        log, steps: event log and step records; None for runs without them.
        latency_json: what the policy came to believe of step times.
        policy_state: `Policy.inspect()` at the end.
    """

    tasks: TaskColumns
    columns: Mapping[str, npt.NDArray[Any]]
    metrics: dict[str, Any]
    log: EventLog | None
    steps: dict[str, npt.NDArray[Any]] | None
    latency_json: str
    policy_state: str

    def task_metrics(self) -> TaskMetrics:
        """TTFT, TPOT, E2EL, whether the SLO was met, ... of each task."""
        if self.log is not None:
            return task_metrics(self.log)
        return column_metrics(self.tasks, self.columns)


def simulate(
    tasks: Tasks,
    policy: str | _core.Policy = "slice",
    profile: str | Profile = DEFAULT_PROFILE,
    *,
    num_tasks: int = 60,
    load: float = 1.0,
    rate: float | None = None,
    arrivals: Arrivals | None = None,
    slo_scale: float | None = None,
    seed: int = 0,
    max_concurrency: int = 0,
    max_rows: int | None = None,
    max_step_tokens: int | None = None,
    blocks: int | None = None,
    host_blocks: int | None = None,
    belief: _core.LatencyModel | None = None,
    instances: int = 1,
    dispatch: str = "round_robin",
    loop: str = "plain",
    event_log: bool | None = None,
    percentiles: Sequence[float] = metrics.PERCENTILES,
    goodput: Slo | None = None,
    progress: Callable[[int], None] | None = None,
) -> Simulation:
    """Runs tasks to their end in virtual time.

    Args:
        tasks: "edge", "tiers" or the path of a workload file, a `Workload`, or given tasks, by
            arrival.
        policy: as in `benchmark --policy`, or a policy object.
        profile: the machine: a profile's name or path, or the profile.
        num_tasks, load, rate, arrivals, slo_scale: of a workload: how many tasks; Poisson arrivals
            at `load` times saturation, or at `rate` tasks/s, or other arrivals; targets times
            slo_scale (None: l(1) of the profile / 14 ms).
        seed: of the workload, the jitter and the belief's noise.
        max_concurrency: above 0, a closed loop with so many tasks in flight; arrivals are ignored.
        max_rows, max_step_tokens, blocks, host_blocks: instead of the profile's.
        belief: what the policy is shown, instead of the profile's belief for this seed.
        instances: so many such machines, each under `policy` (then its text), behind a dispatcher.
        dispatch: which of them serves a task: round_robin, least_loaded, scls, with parameters.
        loop: as for `Engine`; virtual time knows no time of planning, which "overlap" hides.
        event_log: keep event log and step records; None: up to 10,000 tasks. Without them the
            metrics come from each task's columns and from quantile sketches (0.5 %), and those
            that need every token or step are None.
        percentiles, goodput: as in `benchmark --metric-percentiles --goodput`.
        progress: called with the number of ended tasks about ten times a second; may raise.

    Raises InvalidArgument for what cannot be, StateError for a plan that breaks a rule.
    """
    machine = load_profile(profile) if isinstance(profile, str) else profile
    checks.integer("seed", seed, 0, MAX_SEED)
    rows = machine.max_rows
    if max_rows is not None:
        rows = checks.integer("max_rows", max_rows, 1, MAX_COUNT)
    if isinstance(tasks, str):
        tasks = load_workload(tasks)
    if isinstance(tasks, Workload):
        checks.integer("num_tasks", num_tasks, 1, checks.MAX_TASKS)
        work = work_on(tasks, machine, rows)
        process = arrivals
        if process is None:
            checks.number("load", load, 0, 1e6, above=True)
            wanted = load * work.saturation if rate is None else rate
            process = Gamma(checks.number("rate", wanted, 0, MAX_RATE, above=True))
        scale = work.slo_scale
        if slo_scale is not None:
            scale = checks.number("slo_scale", slo_scale, 0, 1e6, above=True)
        columns = tasks.columns(num_tasks, seed, process, scale)
    else:
        columns = tasks if isinstance(tasks, TaskColumns) else TaskColumns.of(tasks)
    _check(columns)
    record = len(columns) <= LOGGED if event_log is None else event_log
    started = time.perf_counter()
    result = _core.simulate(
        policy,
        machine.truth(),
        machine.belief(seed) if belief is None else belief,
        [
            (k.class_name, k.slo.ttft_ms, k.slo.tpot_ms, k.slo.deadline_ms, k.utility)
            for k in columns.kinds
        ],
        {
            "arrival": columns.arrival_s,
            "prompt_tokens": columns.prompt_tokens,
            "output_tokens": columns.output_tokens,
            "max_tokens": columns.max_tokens,
            "class_id": columns.kind,
        },
        blocks=machine.blocks if blocks is None else blocks,
        host_blocks=machine.host_blocks if host_blocks is None else host_blocks,
        block_tokens=machine.block_tokens,
        bytes_per_token=machine.bytes_per_token,
        jitter=machine.jitter,
        residuals=machine.residuals or None,
        seed=seed,
        max_rows=rows,
        max_step_tokens=machine.max_step_tokens if max_step_tokens is None else max_step_tokens,
        in_flight=max_concurrency,
        record_events=record,
        percentiles=metrics.points(percentiles),
        instances=instances,
        dispatch=dispatch,
        loop=loop,
        progress=progress,
    )
    wall = time.perf_counter() - started
    log, steps = None, None
    if record:
        log, steps = _event_log(columns, result), result["steps"]
        measured = metrics.compute(log, steps, percentiles, goodput)
    else:
        measured = metrics.compute_columns(columns, result, percentiles, goodput)
    return Simulation(
        tasks=columns,
        columns={key: result[key] for key in _COLUMNS},
        metrics={**measured, **_instance_metrics(result), "wall_s": wall},
        log=log,
        steps=steps,
        latency_json=result["latency_json"],
        policy_state=result["policy_state"],
    )


def _check(tasks: TaskColumns) -> None:
    """Refuses counts that the core's 32 bits cannot hold, and arrivals that never come; the core
    checks everything else."""
    if len(tasks) == 0:
        raise checks.invalid("tasks", "none", "at least one")
    never = ~np.isfinite(tasks.arrival_s)
    if never.any():
        i = int(np.argmax(never))
        raise checks.invalid(f"task {i}: arrival_s", tasks.arrival_s[i], "a finite time")
    for name, low in (("prompt_tokens", 1), ("output_tokens", 0), ("max_tokens", 1)):
        values = getattr(tasks, name)
        wrong = (values < low) | (values > checks.MAX_TOKENS)
        if wrong.any():
            i = int(np.argmax(wrong))
            checks.integer(f"task {i}: {name}", int(values[i]), low, checks.MAX_TOKENS)


def _instance_metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """What padding costs, and how evenly instances end (standard deviation of the time at which
    each ended its last step)."""
    ends = [instance["end"] for instance in result["instances"]]
    return {
        "invalid_tokens": result["invalid_tokens"],
        "pad_tokens": result["pad_tokens"],
        "instances": [
            {"tasks": i["ended"], "steps": i["num_steps"], "busy_s": i["busy_seconds"]}
            for i in result["instances"]
        ],
        "instance_end_std_s": float(np.std(ends)),
    }


def work_on(workload: Workload, profile: Profile, max_rows: int | None = None) -> OfferedWork:
    """What a task of `workload` costs on `profile`, and with it the saturation."""
    _, prompts, outputs = workload.lengths(SAMPLE, seed=0)
    return offered_work(prompts, outputs, profile.truth(), max_rows or profile.max_rows)


def _event_log(tasks: TaskColumns, result: Mapping[str, Any]) -> EventLog:
    declared = [
        Declared(arrival, kind.class_name, kind.utility, kind.slo, prompt, most)
        for arrival, kind, prompt, most in zip(
            np.asarray(result["arrival"]).tolist(),
            (tasks.kinds[k] for k in tasks.kind.tolist()),
            tasks.prompt_tokens.tolist(),
            tasks.max_tokens.tolist(),
        )
    ]
    return from_engine(declared, result["events"], lambda task_id: task_id - 1)
