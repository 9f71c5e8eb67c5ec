"""Latency models against numpy: the fit, its limits, the online correction, the stored form."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import models, tiny

from slicellm import _core

LatencyModel = _core.LatencyModel
KNOTS = [1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024, 2048]
Row = tuple[int, int, float, float, float, int, float]


def basis(row: Row) -> np.ndarray:
    """The documented features of a step, in float64."""
    tokens, rows, context, chunk_work, swap_bytes = row[:5]
    ends = [*KNOTS[1:], np.inf]
    slopes = [float(np.clip(tokens - k, 0, e - k)) for k, e in zip(KNOTS, ends)]
    return np.array([float(tokens > 0), *slopes, rows, context, chunk_work, swap_bytes])


def decode(b: int, context: float, ms: float) -> Row:
    return (b, b, b * context, 0.0, 0.0, 0, ms)


def chunk(n: int, start: int, ms: float) -> Row:
    return (n, 1, 0.0, n * (start + n / 2), 0.0, n, ms)


def truth(tokens: int, rows: int, context: float, work: float, swap: float) -> float:
    """A made-up machine: memory-bound up to 8 tokens, then compute-bound; ms."""
    return (
        20 + 0.1 * tokens + 0.8 * max(0, tokens - 8) + 0.2 * rows + 1e-3 * context + 1e-5 * work
        + 1e-6 * swap
    )  # fmt: skip


def grid() -> list[Row]:
    rows = [decode(b, c, truth(b, b, b * c, 0, 0)) for b in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
            for c in (0, 200, 1000)]  # fmt: skip
    for n in (16, 64, 128, 256, 512, 1024, 2048, 4096):
        for start in (0, 512):
            rows.append(chunk(n, start, truth(n, 1, 0, n * (start + n / 2), 0)))
    rows += [(0, 0, 0.0, 0.0, s, 0, 1e-6 * s) for s in (1e5, 1e6)]
    return rows


def test_recovers_a_synthetic_machine() -> None:
    model = LatencyModel.fit(grid(), "synthetic")
    for row in grid():
        assert model.predict_ms(*row[:6])[0] == pytest.approx(row[6], rel=0.02)
    # Mixed steps that were never measured.
    for tokens, rows, context, work in [(72, 9, 3000, 6000), (300, 44, 9000, 40000), (5, 5, 10, 0)]:
        expected = truth(tokens, rows, context, work, 0)
        got = model.predict_ms(tokens, rows, context, work)[0]
        assert got == pytest.approx(expected, rel=0.03)
    # Beyond the largest measurement the last slope goes on.
    far = truth(8192, 1, 0, 0, 0)
    assert model.predict_ms(8192, 1)[0] == pytest.approx(far, rel=0.1)


def residual_gradient(rows: list[Row], coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of the fitted objective, column-scaled, and the column scales; float64 numpy."""
    x = np.array([basis(r) for r in rows])
    y = np.array([r[6] / 1000 for r in rows])
    design, target = x / y[:, None], np.ones(len(y))
    largest = max(range(len(rows)), key=lambda i: rows[i][0])
    if rows[largest][0] > 0:
        slope = y[largest] / rows[largest][0]
        smooth = np.zeros((len(KNOTS) - 1, x.shape[1]))
        for i in range(len(KNOTS) - 1):
            smooth[i, i + 1], smooth[i, i + 2] = -3e-3 / slope, 3e-3 / slope
        design = np.vstack([design, smooth])
        target = np.concatenate([target, np.zeros(len(smooth))])
    scale = np.linalg.norm(design, axis=0)
    gradient = design.T @ (design @ coefficients - target)
    return np.divide(gradient, scale, out=np.zeros_like(scale), where=scale > 0), scale


rows_strategy = st.lists(
    st.one_of(
        st.builds(decode, st.integers(1, 80), st.integers(0, 4000), st.floats(1, 1e4)),
        st.builds(chunk, st.integers(1, 4096), st.integers(0, 4096), st.floats(1, 1e4)),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(rows_strategy)
@example([decode(1, 0.5, 1e12)])  # the largest coefficient
def test_the_fit_meets_the_optimality_conditions(rows: list[Row]) -> None:
    text = LatencyModel.fit(rows).to_json()
    assert LatencyModel.from_json(text).to_json() == text
    stored = json.loads(text)
    coefficients = np.array(stored["coefficients"])
    assert (coefficients >= 0).all()
    gradient, scale = residual_gradient(rows, coefficients)
    tolerance = 1e-6 * np.sqrt(len(rows) + 13)
    assert (gradient >= -tolerance).all()  # no variable at 0 wants to grow
    assert (np.abs(gradient[coefficients * scale > 1e-6]) <= tolerance).all()


@settings(max_examples=60, deadline=None)
@given(rows_strategy, st.integers(0, 5000), st.integers(0, 500))
def test_more_tokens_never_take_less_time(rows: list[Row], tokens: int, more: int) -> None:
    model = LatencyModel.fit(rows)
    less_ms, quantile_ms = model.predict_ms(tokens, 1)
    assert model.predict_ms(tokens + more, 1)[0] >= less_ms * (1 - 1e-12)
    assert quantile_ms >= less_ms


def test_observed_steps_correct_it_and_the_rest_stays() -> None:
    model = LatencyModel.fit(grid())
    prefill_before = model.predict_ms(2048, 1, 0, 2048 * 1024, prefill_tokens=2048)[0]
    rng = np.random.default_rng(0)
    for _ in range(2000):
        b, context = int(rng.integers(1, 17)), float(rng.integers(0, 1000))
        true_ms = 1.6 * truth(b, b, b * context, 0, 0) * rng.lognormal(0, 0.05)
        model.observe(true_ms, b, b, b * context)
    for b in (1, 4, 16):
        expected = 1.6 * truth(b, b, b * 500, 0, 0)
        assert model.decode_step_ms(b, 500) == pytest.approx(expected, rel=0.05)
    median, quantile = model.predict_ms(8, 8, 4000)
    assert quantile / median == pytest.approx(np.exp(1.645 * 0.05), rel=0.05)
    after = model.predict_ms(2048, 1, 0, 2048 * 1024, prefill_tokens=2048)[0]
    assert after == pytest.approx(prefill_before, rel=0.25)


def test_a_stray_slow_step_does_not_pull_it_off() -> None:
    model = LatencyModel.fit(grid())
    for i in range(1000):
        true_ms = truth(4, 4, 400, 0, 0)
        model.observe(true_ms * (50 if i % 50 == 0 else 1), 4, 4, 400)
    assert model.decode_step_ms(4, 100) == pytest.approx(truth(4, 4, 400, 0, 0), rel=0.03)


@pytest.mark.parametrize("factor", [1.5, 1 / 1.5])
def test_a_change_of_the_machine_is_learned_within_50_steps(factor: float) -> None:
    """Decode steps of 1 to 16 rows, a quarter of them with a prompt; 5 % of noise."""
    model = LatencyModel.fit(grid())
    rng = np.random.default_rng(1)

    def errors(steps: int, level: float) -> np.ndarray:
        found = []
        for _ in range(steps):
            b, context = int(rng.integers(1, 17)), float(rng.integers(0, 1000))
            prompt = int(rng.integers(16, 257)) if rng.random() < 0.25 else 0
            features = b + prompt, b, b * context, prompt * prompt / 2
            true_ms = level * truth(*features, 0) * rng.lognormal(0, 0.05)
            found.append(abs(model.predict_ms(*features, 0, prompt)[0] / true_ms - 1))
            model.observe(true_ms, *features, 0, prompt)
        return np.array(found)

    before = errors(1000, 1.0)[500:]
    assert np.median(before) < 0.05 and np.percentile(before, 95) < 0.15
    changed = errors(100, factor)
    assert np.median(changed[:8]) > 0.25
    assert np.median(changed[50:]) < 0.05 and np.percentile(changed[50:], 95) < 0.2
    back = errors(100, 1.0)
    assert np.median(back[50:]) < 0.05 and np.percentile(back[50:], 95) < 0.2


def test_a_drift_is_followed() -> None:
    """By up to 8 % to either side within 200 steps; 1 % of noise."""
    model = LatencyModel.fit(grid())
    rng = np.random.default_rng(2)
    errors = []
    for i in range(1200):
        b, context = int(rng.integers(1, 17)), float(rng.integers(0, 1000))
        level = (1 + 0.08 * np.sin(2 * np.pi * i / 200)) * rng.lognormal(0, 0.01)
        true_ms = level * truth(b, b, b * context, 0, 0)
        errors.append(abs(model.predict_ms(b, b, b * context)[0] / true_ms - 1))
        model.observe(true_ms, b, b, b * context)
    assert np.percentile(errors[200:], 95) < 0.05
    stored = LatencyModel.from_json(model.to_json())  # without the level
    assert stored.decode_step_ms(4, 100) == pytest.approx(truth(4, 4, 400, 0, 0), rel=0.03)


def test_a_fit_takes_the_level_over() -> None:
    """A machine that becomes 8 % slower, without noise: what a fit learns is not added to what the
    level has learned."""
    model = LatencyModel.fit(grid())
    rng = np.random.default_rng(4)
    errors = []
    for i in range(500):
        b, context = int(rng.integers(1, 17)), float(rng.integers(0, 1000))
        true_ms = (1.08 if i >= 24 else 1) * truth(b, b, b * context, 0, 0)
        errors.append(abs(model.predict_ms(b, b, b * context)[0] / true_ms - 1))
        model.observe(true_ms, b, b, b * context)
    assert max(errors[60:]) < 0.02


def test_nonsense_observations_are_ignored() -> None:
    model = LatencyModel.fit(grid())
    before = model.to_json()
    for ms in (float("nan"), float("inf"), 0.0, -1.0):
        model.observe(ms, 4, 4)
    assert model.to_json() == before


# NVIDIA RTX 4060 Ti, ChatGLM2-6B-INT4: decode step of 1..15 rows, ms (arXiv 2510.18544).
PUBLISHED = [14, 27, 38, 50, 60, 72, 83, 125, 126, 123, 124, 125, 126, 123, 124]


def test_a_published_table_is_taken_as_it_is() -> None:
    model = LatencyModel.from_decode_table(PUBLISHED)
    for b, ms in enumerate(PUBLISHED, start=1):
        assert model.decode_step_ms(b, 700) == pytest.approx(ms)
    slope = (124 - 14) / 14
    assert model.decode_step_ms(20) == pytest.approx(124 + 5 * slope)
    assert model.predict_ms(100, 1, prefill_tokens=100)[0] == pytest.approx(20 + 0.4 * 100)
    mixed = model.predict_ms(103, 4, 30, 5000, prefill_tokens=100)[0]
    assert mixed == pytest.approx(38 + 20 + 0.4 * 100)
    assert model.predict_ms(0, 0, swap_bytes=1e9)[0] == 0
    for _ in range(500):
        model.observe(2 * 14, 1, 1)
    assert model.decode_step_ms(1) == pytest.approx(14)  # only the quantile follows
    assert model.predict_ms(1, 1)[1] == pytest.approx(28)
    again = LatencyModel.from_json(model.to_json())
    assert again.predict_ms(1, 1) == pytest.approx((14, 28))


def test_json_keeps_everything_but_the_level() -> None:
    model = LatencyModel.fit(grid(), 'box "A"\nwith \\ and é')
    for _ in range(200):
        model.observe(33, 4, 4, 100)
    again = LatencyModel.from_json(model.to_json())
    assert again.to_json() == model.to_json()
    steps = [(300, 9, 5000, 1e5, 1e6), (4, 4, 100)]
    levels = np.divide(*([m.predict_ms(*step) for step in steps] for m in (model, again)))
    assert levels == pytest.approx(levels[0, 0])  # the same of every step and of the quantile
    assert json.loads(model.to_json())["provenance"] == 'box "A"\nwith \\ and é'


GOOD = json.loads(LatencyModel.fit(grid()).to_json())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"kind": "tree"}',
        '{"kind": 3}',
        json.dumps({**GOOD, "coefficients": GOOD["coefficients"][:-1]}),
        json.dumps({**GOOD, "coefficients": [-1] + GOOD["coefficients"][1:]}),
        json.dumps({**GOOD, "coefficients": "x"}),
        json.dumps({**GOOD, "samples": []}),
        json.dumps({**GOOD, "samples": [1, 2]}),
        json.dumps({**GOOD, "samples": [[2**31, 1, 0, 0, 0, 0, 1]]}),
        json.dumps({**GOOD, "samples": [[1.5, 1, 0, 0, 0, 0, 1]]}),
        json.dumps({**GOOD, "samples": [[1, 1, -1, 0, 0, 0, 1]]}),
        json.dumps({**GOOD, "samples": [[1, 1, 0, 0, 0, 0, 0]]}),
        json.dumps({**GOOD, "samples": [[[[1]]]]}),
        json.dumps({**GOOD, "quantile": 0.5}),
        json.dumps({**GOOD, "quantile": [1, 2]}),
        json.dumps(GOOD)[:-5],
        json.dumps(GOOD) + "x",
        json.dumps(GOOD).replace("1.0", "NaN", 1),
        json.dumps(GOOD).replace("1.0", "1e999", 1),
        '{"kind": "table", "kind": "table"}',
        '{"kind": "table", "quantile": 1, "decode_seconds": [], "prefill": 0, '
        '"prefill_per_token": 0}',
        '{"kind": "table", "quantile": 1, "decode_seconds": [0], "prefill": 0, '
        '"prefill_per_token": 0}',
        "[" * 100000,
        "\x00\xff",
    ],
    ids=range(27),
)
def test_a_damaged_profile_is_refused(text: str) -> None:
    with pytest.raises(_core.FormatError) as caught:
        LatencyModel.from_json(text)
    assert caught.value.field == "latency profile"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [(1, 1, 0.0, 0.0, 0.0, 0, 0.0)],
        [(1, 1, 0.0, 0.0, 0.0, 0, float("nan"))],
        [(-1, 1, 0.0, 0.0, 0.0, 0, 1.0)],
        [(1, 1, float("inf"), 0.0, 0.0, 0, 1.0)],
        [decode(1, 1e-135, 14.0)],  # a profile of it would have to be refused
        [(1, 1, 0.0, 0.49, 0.0, 0, 1.0)],
    ],
    ids=range(7),
)
def test_impossible_samples_are_refused(rows: list[Row]) -> None:
    with pytest.raises(_core.InvalidArgument):
        LatencyModel.fit(rows)


@pytest.mark.parametrize("table", [[], [0.0], [-1.0], [float("nan")], [float("inf")]], ids=range(5))
def test_impossible_tables_are_refused(table: list[float]) -> None:
    with pytest.raises(_core.InvalidArgument):
        LatencyModel.from_decode_table(table)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> _core.Model:
    return _core.Model.load(str(tiny_llama), threads=1)


def test_calibration_measures_the_model(model: _core.Model) -> None:
    calls: list[tuple[int, int]] = []
    begin = time.monotonic()
    measured = _core.calibrate(model, 0.5, lambda done, total: calls.append((done, total)))
    assert time.monotonic() - begin >= 0.5
    assert calls[-1] == (500, 500) and calls == sorted(calls)
    stored = json.loads(measured.to_json())
    assert model.fingerprint in stored["provenance"]
    samples = stored["samples"]
    decodes = [s for s in samples if s[0] > 0 and s[5] == 0]
    chunks = [s for s in samples if s[5] > 0]
    assert {1, 8, 64} <= {s[0] for s in decodes} and len(chunks) > 3
    ends = [s[3] / s[0] + s[0] / 2 for s in chunks]  # start of the chunk + its tokens
    assert max(ends) <= model.spec["max_positions"]
    assert all(s[6] > 0 for s in samples) and sum(s[4] > 0 for s in samples) == 1
    # A coarse truth on any machine: many rows take longer than one, but not in proportion.
    one, many = measured.decode_step_ms(1, 16), measured.decode_step_ms(64, 16)
    assert 0 < one <= many < 64 * one
    median, quantile = measured.predict_ms(8, 8, 128)
    assert quantile >= median > 0
    assert LatencyModel.from_json(measured.to_json()).to_json() == measured.to_json()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "1", 1e9])
def test_calibration_times_are_checked(model: _core.Model, seconds: object) -> None:
    with pytest.raises(_core.InvalidArgument) as caught:
        _core.calibrate(model, seconds)
    assert caught.value.field == "seconds"


def test_calibration_may_be_broken_off(model: _core.Model) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _core.calibrate(model, 60, stop)


@pytest.mark.parametrize("family", ["chatglm1", "qwen2"])
def test_calibration_obeys_short_and_indivisible_models(tmp_path: Path, family: str) -> None:
    config = models.FAMILIES[family]
    path = tiny.write_directory(tmp_path, config, tiny.weights(config))
    small = _core.Model.load(str(path), threads=1)
    stored = json.loads(_core.calibrate(small, 0.05).to_json())
    assert max(s[0] for s in stored["samples"] if s[5]) <= small.spec["max_positions"]
