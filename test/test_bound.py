"""The clairvoyant upper bound: hand-worked cases, exact search on tiny ones, and every policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from policies_under_test import POLICIES

from slicellm import InvalidArgument, simulate
from slicellm._core import LatencyModel
from slicellm.bench import bound, bound_lp
from slicellm.bench.arrivals import Gamma
from slicellm.bench.bound import Bound, upper_bound
from slicellm.bench.bound_exact import best_utility, tiny_instance
from slicellm.bench.bound_prices import certify
from slicellm.bench.bound_steps import step_times
from slicellm.bench.bound_windows import make_grid, windows_of
from slicellm.bench.profiles import load_profile
from slicellm.bench.tasks import Slo, TaskColumns, WorkloadTask
from slicellm.bench.workload import load_workload

pytest.importorskip("highspy")

# A decode step of b rows takes 10 * b ms, prefilling p tokens 20 + 0.4 p ms.
TABLE = LatencyModel.from_decode_table([10.0, 20.0, 30.0], 20.0, 0.4)
PUBLISHED = LatencyModel.from_decode_table([14, 27, 38, 50, 60, 72, 83], 20.0, 0.4)


def bound_of(*tasks: WorkloadTask, latency: LatencyModel = TABLE, **options: bool) -> Bound:
    return upper_bound(TaskColumns.of(tasks), latency, **options)


def task(output: int, arrival: float = 0.0, prompt: int = 50, **slo: float) -> WorkloadTask:
    return WorkloadTask(arrival, prompt, output, output, slo=Slo(**slo))


@pytest.mark.parametrize(
    "output, name, just",
    [
        (1, "ttft_ms", 40.0),  # 20 + 0.4 * 50
        (3, "deadline_ms", 60.0),  # and two decode steps
        (3, "tpot_ms", 10.0),
    ],
)
def test_a_task_that_just_fits_counts_and_one_that_just_misses_does_not(
    output: int, name: str, just: float
) -> None:
    slo = {"ttft_ms": 1000.0, name: just + 0.001}
    fits = bound_of(task(output, arrival=0.7, **slo))
    assert fits.valid and fits.note == ""
    assert (fits.utility, fits.attainment) == pytest.approx((1, 1))
    misses = bound_of(task(output, arrival=0.7, **{**slo, name: just - 0.001}))
    assert (misses.utility, misses.attainment) == (0, 0)


def test_two_prompts_that_cannot_both_be_in_time() -> None:
    # Each alone takes 40 ms, both in one step 60 ms. Shares x of both cost 20 x + 2 * 20 x <= 45.
    both = bound_of(task(1, ttft_ms=45.0), task(1, ttft_ms=45.0))
    assert both.attainment == pytest.approx(0.75, abs=1e-4)
    assert both.lp_attainment == pytest.approx(0.75, abs=1e-4)
    enough = bound_of(task(1, ttft_ms=60.001), task(1, ttft_ms=60.001))
    assert enough.attainment == pytest.approx(1)


def test_the_more_useful_of_two_is_counted_first() -> None:
    tasks = [task(1, ttft_ms=45.0), replace(task(1, ttft_ms=45.0), utility=9.0)]
    # One of utility 9, and of the other what 5 ms are enough for: a quarter of its 20 ms.
    result = upper_bound(TaskColumns.of(tasks), TABLE, details=True)
    assert result.utility == pytest.approx((9 + 0.25) / 10, abs=1e-4)
    assert result.tasks is not None
    assert result.tasks.share == pytest.approx([0.25, 1], abs=1e-2)
    assert result.tasks.windows.latest_first == pytest.approx([0.045, 0.045])


def test_step_times_are_the_models() -> None:
    steps = step_times(TABLE, max_rows=4, max_step_tokens=8)
    assert not isinstance(steps, str)
    assert steps.base[3, 0] == pytest.approx(0.030)
    assert steps.base[0, 8] == pytest.approx(0.0232)
    assert steps.base[3, 5] == pytest.approx(0.030 + 0.022)
    assert np.isinf(steps.base[3, 6])
    assert steps.additive and steps.least == pytest.approx(0.010)
    # 20 tokens are three chunks of at most 8.
    assert steps.prefill_alone(20)[[8, 20]] == pytest.approx([0.0232, 0.068])


def test_windows_take_tpot_on_the_average_and_deadlines_as_they_are() -> None:
    steps = step_times(TABLE, 4, 64)
    assert not isinstance(steps, str)
    tasks = [
        task(5, arrival=1.0, ttft_ms=300.0, tpot_ms=100.0),
        task(5, arrival=2.0, ttft_ms=300.0, tpot_ms=100.0, deadline_ms=500.0),
        task(5, arrival=3.0, deadline_ms=500.0),
        task(5, arrival=4.0, ttft_ms=300.0),  # no target for what follows
    ]
    w = windows_of(TaskColumns.of(tasks), steps)
    assert w.earliest_first == pytest.approx([1.04, 2.04, 3.04, 4.04])
    assert w.latest_first == pytest.approx([1.3, 2.3, 3.46, 4.3])
    assert w.end == pytest.approx([1.7, 2.5, 3.5, 4.3])
    assert w.decodes.tolist() == [4, 4, 4, 0]


@pytest.mark.parametrize("seed", range(16))
def test_never_below_exact_search(seed: int) -> None:
    tasks = tiny_instance(seed)
    result = bound_of(*tasks, latency=PUBLISHED)
    counted = [replace(t, utility=1.0) for t in tasks]
    assert result.utility * sum(t.utility for t in tasks) >= best_utility(tasks, PUBLISHED) - 1e-9
    assert result.attainment * len(tasks) >= best_utility(counted, PUBLISHED) - 1e-9


def test_exact_search_finds_what_is_worked_out_by_hand() -> None:
    # Prefill of both (60 ms), then steps of two rows (20 ms): the last tokens come after 100 ms.
    pair = [task(3, deadline_ms=100.001), task(3, deadline_ms=100.001)]
    assert best_utility(pair, TABLE) == 2
    assert best_utility([replace(t, slo=Slo(deadline_ms=99.9)) for t in pair], TABLE) == 1
    # The second prompt arrives in time only if the machine waits for it: 30 + 60 against 40 + 40.
    late = [task(1, ttft_ms=200.0), task(1, arrival=0.030, ttft_ms=61.0)]
    assert best_utility(late, TABLE) == 2
    assert best_utility([late[0], replace(late[1], slo=Slo(ttft_ms=45.0))], TABLE) == 2
    assert (
        best_utility([task(1, ttft_ms=41.0), replace(late[1], slo=Slo(ttft_ms=45.0))], TABLE) == 1
    )


@pytest.mark.parametrize("seed", range(6))
def test_any_prices_give_a_bound(seed: int) -> None:
    tasks = tiny_instance(seed)
    optimum = best_utility(tasks, PUBLISHED)
    steps = step_times(PUBLISHED, 64, 2048)
    assert not isinstance(steps, str)
    windows = windows_of(TaskColumns.of(tasks), steps)
    grid = make_grid(windows, steps, 400)
    utility = windows.utility[windows.competing]
    solved = bound_lp.solve(windows, grid, steps, utility, 60.0)
    assert not isinstance(solved, str)
    best = certify(windows, grid, steps, utility, solved.prices).value
    assert best >= optimum - 1e-9
    rng = np.random.default_rng(seed)
    for spread in (0.01, 0.3, 3.0):
        prices = bound_lp.Prices(
            *(
                values * np.exp(spread * rng.standard_normal(len(values)))
                for values in vars(solved.prices).values()
            )
        )
        assert certify(windows, grid, steps, utility, prices).value >= optimum - 1e-9
    for scale in (0.0, 0.01, 0.1):
        prices = bound_lp.Prices(
            *(scale * rng.random(len(values)) for values in vars(solved.prices).values())
        )
        assert certify(windows, grid, steps, utility, prices).value >= optimum - 1e-9
    with pytest.raises(ValueError, match="below 0"):
        certify(windows, grid, steps, utility, replace(prices, decode=prices.decode - 1))


@pytest.mark.parametrize("load", [0.8, 2.0])
@pytest.mark.parametrize("profile", ["rtx4060ti-chatglm2-6b-int4", "jetson-orin-llama3-8b-int4"])
def test_no_policy_exceeds_it(profile: str, load: float) -> None:
    machine = replace(load_profile(profile), jitter=0.0)
    workload = load_workload("edge")
    first = simulate(workload, "orca", machine, num_tasks=50, load=load, seed=3)
    limit = upper_bound(
        first.tasks,
        machine.truth(),
        max_rows=machine.max_rows,
        max_step_tokens=machine.max_step_tokens,
        budget=2500,
    )
    assert limit.valid
    for policy in POLICIES:
        run = simulate(first.tasks, policy, machine, seed=3).metrics
        assert run["utility"] <= limit.utility + 1e-12, policy
        assert run["attainment"] <= limit.attainment + 1e-12, policy


@pytest.mark.parametrize("seed", range(4))
def test_no_policy_exceeds_it_on_short_tasks(seed: int) -> None:
    """Short prompts and tight targets, where tokens by recompute are cheap."""
    rng = np.random.default_rng(seed)
    arrivals = Gamma(12.0).times(30, rng)
    tasks = TaskColumns.of(
        [
            replace(
                tiny_instance(100 * seed + i)[0],
                arrival_s=float(t),
                prompt_tokens=int(rng.integers(1, 12)),
            )
            for i, t in enumerate(arrivals)
        ]
    )
    machine = replace(load_profile("rtx4060ti-chatglm2-6b-int4"), jitter=0.0)
    limit = upper_bound(
        tasks, machine.truth(), max_rows=machine.max_rows, max_step_tokens=machine.max_step_tokens
    )
    assert limit.valid
    for policy in POLICIES:
        run = simulate(tasks, policy, machine).metrics
        assert run["utility"] <= limit.utility + 1e-12, policy
        assert run["attainment"] <= limit.attainment + 1e-12, policy


def test_says_when_it_is_not_valid() -> None:
    tasks = TaskColumns.of([task(3, deadline_ms=60.1)])
    shaky = upper_bound(tasks, TABLE, caveat="steps vary")
    assert not shaky.valid and shaky.note.startswith("not valid: steps vary")
    assert shaky.attainment == pytest.approx(1)
    loop = upper_bound(tasks, TABLE, closed_loop=True)
    assert not loop.valid and "closed loop" in loop.note
    unknown = replace(tasks, output_tokens=np.zeros(1, np.int64))
    assert not upper_bound(unknown, TABLE).valid
    assert "true output length" in upper_bound(unknown, TABLE).note


def test_tasks_that_may_take_for_ever_count_as_met() -> None:
    result = bound_of(task(3, tpot_ms=50.0), task(1, ttft_ms=1.0))
    assert result.valid and result.attainment == pytest.approx(0.5)
    assert result.note == "1 tasks without TTFT and deadline count as met"


def test_without_highspy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "missing", lambda: "highspy is not installed")
    with pytest.raises(InvalidArgument, match="highspy"):
        bound_of(task(1, ttft_ms=50.0))
