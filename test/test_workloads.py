"""Workloads: distributions, shares, rescaling, determinism, files."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slicellm._core import InvalidArgument, LatencyModel
from slicellm.bench import saturation, taskfile
from slicellm.bench.arrivals import AtOnce, Gamma, Intervals, Recorded, Uniform, parse_arrivals
from slicellm.bench.lengths import Fixed, LogNormal, parse_lengths, read_trace
from slicellm.bench.lengths import Uniform as UniformLengths
from slicellm.bench.tasks import Slo
from slicellm.bench.workload import (
    generator,
    load_workload,
    parse_slo_class,
    parse_workload,
    prompt_ids,
    trace_workload,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- arrivals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_their_coefficient_of_variation_and_end_at_n_over_rate(
    burstiness: float,
) -> None:
    times = Gamma(5.0, burstiness).times(40_000, rng())
    assert times[-1] == pytest.approx(40_000 / 5.0, rel=1e-12)
    assert (np.diff(times) >= 0).all()
    gaps = np.diff(np.concatenate([[0.0], times]))
    # A gamma variable of shape k has standard deviation mean / sqrt(k).
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.03)


def test_poisson_counts_a_second_have_variance_equal_to_their_mean() -> None:
    times = Gamma(10.0).times(50_000, rng(1))
    counts = np.bincount(times.astype(int))[:5000]
    assert counts.mean() == pytest.approx(10, rel=0.02)
    assert counts.var() == pytest.approx(10, rel=0.08)


def test_another_rate_is_the_same_draw_stretched() -> None:
    slow, fast = Gamma(1.0).times(50, rng(3)), Gamma(4.0).times(50, rng(3))
    np.testing.assert_allclose(slow, 4 * fast, rtol=1e-12)


def test_simple_arrivals() -> None:
    np.testing.assert_allclose(Uniform(4.0).times(4, rng()), [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(Intervals((0.5, 2.0)).times(5, rng()), [0, 0.5, 2.5, 3.0, 5.0])
    np.testing.assert_allclose(AtOnce().times(3, rng()), [0, 0, 0])
    np.testing.assert_allclose(Recorded((10.0, 11.0, 14.0)).times(3, rng()), [0, 1, 4])
    # Rescaled so that the last of n falls at n/rate; repeated one mean gap (2) after its end.
    np.testing.assert_allclose(Recorded((10, 11, 14), rate=0.5).times(3, rng()), [0, 1.5, 6])
    np.testing.assert_allclose(Recorded((10.0, 11.0, 14.0)).times(5, rng()), [0, 1, 4, 6, 7])
    for process in (Gamma(1.0), Uniform(1.0), Intervals((1.0,)), AtOnce(), Recorded((0.0,))):
        assert len(process.times(0, rng())) == 0
        assert len(process.times(1, rng())) == 1


@pytest.mark.parametrize(
    "spec",
    [
        {"process": "bursts"},
        {"process": "gamma"},
        {"process": "gamma", "burstiness": 0},
        {"process": "intervals"},
        {"process": "intervals", "gaps_s": [-1]},
        {"process": "poisson", "speed": 1},
        {"process": ["poisson"]},
        {"process": "ramp", "rates": [1, 2], "burstiness": 0.5},
        {"process": "uniform", "burstiness": 0.5},
        {"process": "at_once", "rate": 3},
        {"process": "intervals", "gaps_s": [1], "rate": 3},
    ],
)
def test_wrong_arrivals_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        parse_arrivals(spec, 1.0)


# ---- lengths ------------------------------------------------------------------------------------


def test_uniform_lengths_include_both_ends() -> None:
    drawn = UniformLengths(8, 20).sample(50_000, rng())
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == list(range(8, 21))
    assert counts == pytest.approx(50_000 / 13, rel=0.1)


def test_lognormal_lengths_are_rounded_and_clipped() -> None:
    drawn = LogNormal(4.4, 0.5, 20, 300).sample(100_000, rng())
    assert drawn.min() == 20 and drawn.max() == 300
    assert np.median(drawn) == pytest.approx(np.exp(4.4), rel=0.01)
    inside = np.log(drawn[(drawn > 20) & (drawn < 300)])
    quartiles = np.percentile(np.log(drawn), [25, 75])  # +-0.6745 sigma, inside the clip
    assert quartiles == pytest.approx([4.4 - 0.33724, 4.4 + 0.33724], abs=0.02)
    assert len(inside) > 95_000
    assert LogNormal(0, 50, 1, 9).sample(1000, rng()).max() == 9  # no overflow


@pytest.mark.parametrize(
    "spec",
    [
        5,
        {},
        {"normal": [1, 2]},
        {"uniform": [5]},
        {"uniform": [9, 3]},
        {"uniform": [0, 3]},
        {"fixed": 0},
        {"fixed": 2**63},
        {"fixed": 1.5},
        {"lognormal": {"mu": 1, "sigma": -1, "clip": [1, 2]}},
        {"lognormal": {"mu": float("nan"), "sigma": 1, "clip": [1, 2]}},
        {"lognormal": {"mu": 1, "sigma": 1}},
        {"fixed": 1, "uniform": [1, 2]},
    ],
)
def test_wrong_lengths_are_refused(spec: object) -> None:
    with pytest.raises(InvalidArgument):
        parse_lengths("length", spec)


# ---- workloads ----------------------------------------------------------------------------------


def test_edge_is_the_setting_that_was_published_for_it() -> None:
    edge = load_workload("edge")
    shares = {c.name: c.share for c in edge.classes}
    assert shares == {"realtime": 0.70, "voice": 0.15, "qa": 0.15}
    realtime, voice, qa = edge.classes
    assert realtime.slo == Slo(deadline_ms=1500) and realtime.utility == 100
    assert voice.slo == Slo(ttft_ms=2000, tpot_ms=125) and qa.slo == Slo(ttft_ms=2000, tpot_ms=100)
    assert [c.max_tokens for c in edge.classes] == [30, 300, 400]
    assert realtime.prompt_tokens == UniformLengths(20, 60)
    assert qa.output_tokens == LogNormal(4.9, 0.5, 20, 400)


@pytest.mark.parametrize("n", [1, 7, 60, 1000, 9999])
def test_shares_are_kept_to_within_one_task(n: int) -> None:
    chosen, _, _ = load_workload("edge").lengths(n, seed=1)
    counts = np.bincount(chosen, minlength=3)
    assert counts.sum() == n
    assert np.abs(counts - n * np.array([0.70, 0.15, 0.15])).max() < 1
    if n == 60:
        assert counts.tolist() == [42, 9, 9]


def test_order_of_classes_is_random() -> None:
    chosen, _, _ = load_workload("edge").lengths(10_000, seed=2)
    follows = (chosen[1:] == chosen[:-1]).mean()  # independent draws: .7^2 + 2 * .15^2
    assert follows == pytest.approx(0.7**2 + 2 * 0.15**2, abs=0.02)


def test_lengths_belong_to_their_class() -> None:
    tasks = load_workload("edge").columns(2000, 0, Gamma(2.0)).tasks()
    for task in tasks:
        low, high = {"realtime": (20, 60), "voice": (30, 120), "qa": (30, 200)}[task.class_name]
        assert low <= task.prompt_tokens <= high
        low, high = {"realtime": (8, 20), "voice": (20, 300), "qa": (20, 400)}[task.class_name]
        assert low <= task.output_tokens <= high <= task.max_tokens + 400
    assert [t.arrival_s for t in tasks] == sorted(t.arrival_s for t in tasks)


def test_same_seed_same_tasks_and_parts_do_not_shift_each_other() -> None:
    edge = load_workload("edge")
    a, b = edge.columns(300, 5, Gamma(1.0)).tasks(), edge.columns(300, 5, Gamma(1.0)).tasks()
    assert a == b
    assert a != edge.columns(300, 6, Gamma(1.0)).tasks()
    slower = edge.columns(300, 5, Intervals((1.0,))).tasks()
    strip = [(t.class_name, t.prompt_tokens, t.output_tokens) for t in a]
    assert strip == [(t.class_name, t.prompt_tokens, t.output_tokens) for t in slower]
    # Another output length of one class leaves all other draws as they were.
    text = (resources.files("slicellm.bench") / "workloads" / "edge.json").read_text()
    spec = json.loads(text)
    spec["classes"][1]["output_tokens"] = {"fixed": 50}
    changed = parse_workload(json.dumps(spec)).columns(300, 5, Gamma(1.0)).tasks()
    for before, after in zip(a, changed):
        assert before.arrival_s == after.arrival_s and before.class_name == after.class_name
        assert before.prompt_tokens == after.prompt_tokens
        assert before.output_tokens == after.output_tokens or before.class_name == "voice"


def test_slo_scale_multiplies_targets_only() -> None:
    edge = load_workload("edge")
    plain = edge.columns(20, 0, Gamma(1.0)).tasks()
    scaled = edge.columns(20, 0, Gamma(1.0), slo_scale=2.0).tasks()
    for a, b in zip(plain, scaled):
        assert b.slo == a.slo.scaled(2.0)
        assert (a.arrival_s, a.prompt_tokens, a.utility) == (
            b.arrival_s,
            b.prompt_tokens,
            b.utility,
        )
    assert Slo(1.0, None, 3.0).scaled(2) == Slo(2.0, None, 6.0)


def test_limit_caps_outputs() -> None:
    tasks = load_workload("edge").capped(25).columns(500, 0, Gamma(1.0)).tasks()
    assert max(t.output_tokens for t in tasks) == 25 == max(t.max_tokens for t in tasks)


def test_prompts_are_random_ids_without_the_end_tokens() -> None:
    ids = prompt_ids(3, 5000, 0, 10, avoid=[2, 7])
    assert sorted(set(ids)) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert ids == prompt_ids(3, 5000, 0, 10, avoid=[2, 7]) != prompt_ids(4, 5000, 0, 10, [2, 7])


def test_streams_of_parts_differ() -> None:
    drawn = {(p, i): generator(0, p, i).random() for p in ("arrivals", "classes") for i in (0, 1)}
    assert len(set(drawn.values())) == 4


# ---- traces -------------------------------------------------------------------------------------


def write_trace(path: Path, rows: str, arrivals: bool = False) -> Path:
    header = "arrived_at," * arrivals + "num_prefill_tokens,num_decode_tokens"
    path.write_text(f"{header}\n{rows}")
    return path


def test_trace_of_lengths_is_drawn_without_replacement(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i + 1000}\n" for i in range(1, 101))
    trace = read_trace(write_trace(tmp_path / "t.csv", rows))
    workload = load_workload("tiers", trace)
    _, prompts, outputs = workload.lengths(100, seed=0)
    assert sorted(prompts) == list(range(1, 101)) and prompts.tolist() != sorted(prompts)
    assert (outputs == np.minimum(prompts + 1000, 1024)).all()  # pairs stay together; the cap holds
    again, _, _ = workload.lengths(250, seed=0)
    assert len(again) == 250


def test_trace_with_arrivals_keeps_its_order(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", "5.0,10,3\n6.5,20,4\n9.0,30,0\n9.5,40,5\n", True)
    trace = read_trace(path)
    assert trace.arrived_at is not None and trace.arrived_at.tolist() == [5.0, 6.5, 9.5]
    tasks = trace_workload(trace).columns(3, 0, Recorded(tuple(trace.arrived_at))).tasks()
    assert [t.arrival_s for t in tasks] == [0.0, 1.5, 4.5]
    assert [t.prompt_tokens for t in tasks] == [10, 20, 40]
    assert {t.class_name for t in tasks} <= {"strict", "relaxed"}


def test_tiers_asks_for_its_trace() -> None:
    with pytest.raises(InvalidArgument, match="--dataset-path sharegpt_lengths.csv"):
        load_workload("tiers")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a,b\n1,2\n",
        "num_prefill_tokens,num_decode_tokens\n",
        "num_prefill_tokens,num_decode_tokens\n1\n",
        "num_prefill_tokens,num_decode_tokens\n1,x\n",
        "num_prefill_tokens,num_decode_tokens\n1,nan\n",
        "num_prefill_tokens,num_decode_tokens\n-4,2\n",
        "num_prefill_tokens,num_decode_tokens\n1e300,2\n",
        "arrived_at,num_prefill_tokens,num_decode_tokens\n5,1,2\n4,1,2\n",
        "arrived_at,num_prefill_tokens,num_decode_tokens\ninf,1,2\n",
        "num_prefill_tokens,num_decode_tokens\n1,2\n" + "3" * 200_000,
        "3" * 200_000,
    ],
)
def test_malformed_traces_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InvalidArgument):
        read_trace(tmp_path / "t.csv")


def test_slo_class_text() -> None:
    parsed = parse_slo_class("fast:share=0.25,utility=10,tpot_ms=50,ttft_ms=900,max_tokens=64")
    assert (parsed.name, parsed.share, parsed.utility, parsed.max_tokens) == ("fast", 0.25, 10, 64)
    assert parsed.slo == Slo(ttft_ms=900, tpot_ms=50)
    for wrong in ("", "a:tpot_ms=50", "a:ttft_ms=x", "a:ttft_ms=-1", "a:ttft_ms=5,speed=3"):
        with pytest.raises(InvalidArgument):
            parse_slo_class(wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": []},
        {"classes": "edge"},
        {"name": ""},
        {"speed": 1},
        {"lengths": {"trace": 5}},
    ],
)
def test_malformed_workloads_are_refused(change: dict[str, Any]) -> None:
    text = (resources.files("slicellm.bench") / "workloads" / "edge.json").read_text()
    with pytest.raises(InvalidArgument):
        parse_workload(json.dumps({**json.loads(text), **change}))
    with pytest.raises(InvalidArgument):
        parse_workload(text[:-5])
    with pytest.raises(InvalidArgument):
        parse_workload('{"name": ' + "9" * 5000 + "}")  # more digits than Python reads


@pytest.mark.parametrize(
    "change",
    [
        {"share": 0},
        {"share": float("inf")},
        {"utility": -1},
        {"utility": 10**400},
        {"max_tokens": 10**400},
        {"deadline_ms": None},
        {"deadline_ms": 0},
        {"deadline_ms": float("nan")},
        {"max_tokens": 0},
        {"tpot": 50},
        {"prompt_tokens": None},
        {"name": "voice"},
    ],
)
def test_malformed_classes_are_refused(change: dict[str, Any]) -> None:
    text = (resources.files("slicellm.bench") / "workloads" / "edge.json").read_text()
    spec = json.loads(text)
    spec["classes"][0].update(change)
    with pytest.raises(InvalidArgument):
        parse_workload(json.dumps(spec))


# ---- files of tasks -----------------------------------------------------------------------------


def test_prompts_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes("first\r\n\n  second ✓\n".encode())
    tasks, timed = taskfile.read_tasks(str(tmp_path / "f"))
    assert [t.prompt for t in tasks] == ["first", "  second ✓"] and not timed


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        {"prompt": "b", "arrival_s": 2.0, "utility": 5, "tpot_ms": 50, "max_tokens": 7},
        {"prompt": "a", "arrival_s": 1.0, "ttft_ms": 10, "deadline_ms": 20, "class": "x"},
    ]
    (tmp_path / "f").write_text("\n".join(map(json.dumps, lines)))
    tasks, timed = taskfile.read_tasks(str(tmp_path / "f"))
    assert timed and [t.prompt for t in tasks] == ["a", "b"]
    assert tasks[0].slo == Slo(ttft_ms=10, deadline_ms=20) and tasks[0].class_name == "x"
    assert tasks[1].utility == 5 and tasks[1].max_tokens == 7


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"prompt": ""}',
        '{"prompt": 5}',
        '{"utility": 1}',
        '{"prompt": "a", "prompt_tokens": 5}',
        '{"prompt_tokens": -1}',
        '{"prompt": "a", "tpot_ms": -3}',
        '{"prompt": "a", "ttft_ms": NaN}',
        '{"prompt": "a", "utility": -1}',
        '{"prompt": "a", "utility": Infinity}',
        '{"prompt": "a", "max_tokens": 0}',
        '{"prompt": "a", "max_tokens": 9223372036854775808}',
        '{"prompt": "a", "deadline": 5}',
        '{"prompt": "a", "arrival_s": -1}',
        '{"prompt": "a", "arrival_s": 1}\n{"prompt": "b"}',
        "{" + '"prompt":[' * 3000,
    ],
)
def test_malformed_task_lines_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "f").write_text(line)
    with pytest.raises(InvalidArgument):
        taskfile.read_tasks(str(tmp_path / "f"))


def test_demonstration_has_slice_s_example_and_three_classes() -> None:
    tasks = taskfile.demonstration_tasks()
    assert len(tasks) == 12
    assert {t.class_name for t in tasks} == {"realtime", "voice", "qa"}
    place = next(i for i, t in enumerate(tasks) if t.slo.tpot_ms == 120)
    example = tasks[place]
    assert example.prompt == (
        "Describe your ideal vacation. Include the destination, one activity you would do, "
        "and why you chose it. Keep the description within 100 words."
    )
    assert example.utility == 1 and example.class_name != "realtime"
    gap = tasks[place + 1].arrival_s - example.arrival_s
    assert gap == pytest.approx(0.04363281, abs=1e-9)
    assert all(t.slo.ttft_ms is not None or t.slo.deadline_ms is not None for t in tasks)


# ---- saturation ---------------------------------------------------------------------------------


class HandLatency:
    """l(b) = 10 + 2 b + context/100 ms a row; a prefill costs 5 ms and 1 ms a token."""

    def decode_step_ms(self, rows: int, mean_context: float = 0.0) -> float:
        return 10 + 2 * rows + rows * mean_context / 100

    def predict_ms(
        self,
        tokens: int,
        rows: int,
        context: float = 0.0,
        chunk_work: float = 0.0,
        swap_bytes: float = 0.0,
        prefill_tokens: int = 0,
    ) -> tuple[float, float]:
        assert rows == 1 and context == 0 and swap_bytes == 0 and prefill_tokens == tokens
        assert chunk_work == tokens**2 / 2
        return 5.0 + tokens, 99.0


def test_saturation_by_hand() -> None:
    # Two kinds of task: 10 prompt and 1 output tokens; 20 prompt and 41 output tokens.
    prompts, outputs = np.array([10, 20]), np.array([1, 41])
    work = saturation.offered_work(prompts, outputs, HandLatency(), max_rows=4)
    # Decode steps happen in the second kind only, at 20 + 20.5 tokens of context.
    assert work.mean_context == pytest.approx(40.5)
    assert work.best_rows == 4  # l(b)/b falls with b
    assert work.best_decode_ms == pytest.approx(10 / 4 + 2 + 0.405)
    assert work.prefill_ms == pytest.approx((15 + 25) / 2)
    assert work.decode_ms == pytest.approx(20 * 4.905)
    assert work.saturation == pytest.approx(1000 / (20 + 98.1))
    assert work.slo_scale == pytest.approx((10 + 2 + 0.405) / 14)


def test_fixed_lengths_are_fixed() -> None:
    assert Fixed(7).sample(3, rng()).tolist() == [7, 7, 7]


def test_tasks_without_work_are_refused() -> None:
    latency = LatencyModel.from_decode_table([10.0], 0.0, 0.0)
    prompts = np.array([10, 20])
    assert saturation.offered_work(prompts, np.array([1, 3]), latency, 1).saturation == 100
    with pytest.raises(InvalidArgument, match="workload: got .*0 ms"):
        saturation.offered_work(prompts, np.array([1, 1]), latency, 1)
