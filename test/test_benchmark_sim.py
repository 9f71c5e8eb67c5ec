"""`benchmark --executor sim`: flags, determinism, sweeps and capacity, without a model."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from machines import table_machine

from slicellm import simulation
from slicellm.bench import capacity, eventlog, metrics, report
from slicellm.bench.arrivals import Gamma
from slicellm.bench.profiles import load_profile
from slicellm.bench.scenario import read_source
from slicellm.cli import benchmark, benchmark_flags
from slicellm.cli import slicellm as slicellm_command

SIM = "--executor sim"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def main(line: str) -> None:
    assert benchmark.main(line.split()) == 0


def saved(path: Path) -> Any:
    return json.loads(path.read_text())


def without_real_time(tree: Any) -> Any:
    """A result without what is measured in real time."""
    if isinstance(tree, dict):
        kept = (k for k in tree if k not in (*simulation.REAL_TIME, "save_result"))
        return {k: without_real_time(tree[k]) for k in kept}
    return [without_real_time(v) for v in tree] if isinstance(tree, list) else tree


def test_needs_no_model_and_gives_the_same_files_bit_for_bit(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("a", "b"):
        main(
            f"{SIM} --latency-profile rtx4060ti-chatglm2-6b-int4 --policy slice:ratio=.7,orca "
            f"--poisson --load 1.5 --seeds 3,4 --save-result {run}.json --event-log {run}.jsonl"
        )
    shown = capsys.readouterr().out
    assert "saturation 2.4 tasks/s" in shown and "SLO met" in shown and "simulated" in shown
    results = [saved(here / f"{run}.json") for run in "ab"]
    for result in results:
        for one in result["runs"]:
            del one["config"]["event_log"]
        del result["config"]["event_log"]
    texts = [json.dumps(without_real_time(result)) for result in results]
    assert texts[0] == texts[1]
    assert (here / "a.jsonl").read_bytes() == (here / "b.jsonl").read_bytes()
    config = results[0]["config"]
    assert config["profile"] == "rtx4060ti-chatglm2-6b-int4" and config["slo_scale"] == 1.0
    assert config["load"] == 1.5 and config["batch"] == 15
    # The log gives the metrics again, but for those of steps.
    values = results[0]["runs"][0]["policies"]["orca"]
    again = metrics.compute(eventlog.read(here / "a.jsonl")["orca", 3])
    for key in ("attainment", "utility", "ttft_ms", "itl_ms", "e2el_ms", "classes", "makespan_s"):
        assert values[key] == json.loads(json.dumps(again[key])), key


def test_every_flag_of_a_real_run_is_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main(
        f"{SIM} -p not-read.flm -t 1 -b 4 --dtype int4 --atype float32 --kv-cache-limit 50M "
        "--slice --ratios 1,0.5 --workload edge --request-rate 20 --burstiness 0.5 --num-prompts 9 "
        "--seed 7 --slo-scale 2 --metric-percentiles 25 --goodput ttft:2000 -l 50 "
        "-o out.jsonl --plot f.png --save-result r.json"
    )
    shown = capsys.readouterr().err
    assert "note: --executor sim does not read not-read.flm" in shown
    notes = [
        line.split()[1] for line in shown.splitlines() if "no effect on --executor sim" in line
    ]
    assert notes == ["-t", "--dtype", "--atype"]
    result = saved(here / "r.json")
    assert list(result["policies"]) == ["slice:ratio=1", "slice:ratio=0.5"]
    assert result["config"]["batch"] == 4 and result["config"]["slo_scale"] == 2.0
    lines = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 18 and all(1 <= x["output_tokens"] <= 50 for x in lines)
    assert (here / "f.png").read_bytes().startswith(b"\x89PNG")


def test_flags_of_loading_a_model_are_noted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = "--total-tasks 3"
    main(f"{SIM} {few}")
    assert capsys.readouterr().err == ""
    flags = {
        "-t": "2",
        "--dtype": "int4",
        "--device": "cuda",
        "--atype": "int8",
        "--kv_cache_dtype": "int8",
        "--gpu_mem_ratio": "0.5",
        "--vram_limit": "1G",
        "--pack-cache": "",
        "--tokenizer": "none",
    }
    main(f"{SIM} {few} {' '.join(f'{flag} {value}' for flag, value in flags.items())}")
    notes = [f"note: {flag} has no effect on --executor sim" for flag in flags]
    assert capsys.readouterr().err.splitlines() == notes


def test_prompts_and_task_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"{SIM} --test-mode --slice")
    assert capsys.readouterr().out.count("task ") >= 12
    (here / "t.jsonl").write_text(
        '{"prompt_tokens": 30, "output_tokens": 5, "max_tokens": 40, "arrival_s": 1.0}\n'
        '{"prompt": "12345678", "output_tokens": 2, "max_tokens": 4, "arrival_s": 2.0}\n'
    )
    main(f"{SIM} --tasks t.jsonl --event-log e.jsonl")
    log = eventlog.read(here / "e.jsonl")["orca", 0]
    assert [t.prompt_tokens for t in log.tasks] == [30, 2]  # a token every four bytes
    assert [t.arrival for t in log.tasks] == [0.0, 1.0]  # a recording starts at its first task


def test_large_runs_have_no_log_unless_asked(here: Path) -> None:
    main(f"{SIM} --workload edge --total-tasks 10001 --save-result r.json")
    values = saved(here / "r.json")["policies"]["orca"]
    assert values["submitted"] == 10001 and values["smooth"] is not None
    assert values["plan_us"]["p99"] > 0 and values["steps"] > 10001
    assert values["task_itl_ms"]["p99"]["mean"] is None  # needs every token


def test_without_jitter_steps_take_what_the_profile_says(here: Path) -> None:
    (here / "t.jsonl").write_text('{"prompt_tokens": 10, "output_tokens": 3, "max_tokens": 9}\n')
    main(f"{SIM} --tasks t.jsonl --jitter 0 --save-result r.json")
    result = saved(here / "r.json")
    assert result["config"]["jitter"] == 0
    values = result["policies"]["orca"]
    assert values["makespan_s"] == pytest.approx((20 + 0.4 * 10 + 2 * 14) / 1e3)
    assert values["prediction_error"]["relative"]["mean"] == pytest.approx(0, abs=1e-9)


def test_several_instances_behind_a_dispatcher(here: Path) -> None:
    line = f"{SIM} --policy orca --instances 2 --dispatch least_loaded --load 2 --total-tasks 200"
    main(f"{line} --save-result r.json --event-log e.jsonl")
    values = saved(here / "r.json")["policies"]["orca"]
    assert sum(one["tasks"] for one in values["instances"]) == 200 and len(values["instances"]) == 2
    main(f"{SIM} --policy orca --load 2 --total-tasks 200 --save-result one.json")
    alone = saved(here / "one.json")["policies"]["orca"]
    assert values["attainment"] > alone["attainment"]
    assert len(eventlog.read(here / "e.jsonl")["orca", 0].tasks) == 200
    main(
        f"{SIM} --policy static --instances 2 --dispatch scls:slice=64 --total-tasks 60 "
        "--save-result r.json"
    )
    values = saved(here / "r.json")["policies"]["static"]
    assert sum(values["finish"].values()) == 60 and values["invalid_tokens"] > 0


# ---- parts of a workload ------------------------------------------------------------------------


def log_of(here: Path, line: str) -> eventlog.EventLog:
    main(f"{SIM} {line} --event-log e.jsonl")
    return eventlog.read(here / "e.jsonl")["orca", 0]


def test_arrivals(here: Path) -> None:
    even = log_of(here, "--uniform --lambda 4 --total-tasks 4")
    assert [t.arrival for t in even.tasks] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    ramp = log_of(here, "--ramp 1,3 --total-tasks 400")
    times = [t.arrival for t in ramp.tasks]
    assert times[-1] == pytest.approx(200)  # 400 tasks at 2 tasks/s over all
    # By half of the time a quarter and an eighth have come: 100 * (1 + 2) / 2 = 150 of 400.
    assert sum(t < 100 for t in times) == pytest.approx(150, abs=30)
    loaded = log_of(here, "--ramp 1x,1x --total-tasks 10")
    assert loaded.tasks[-1].arrival == pytest.approx(10 / 2.404, rel=0.01)
    closed = log_of(here, "--max-concurrency 2 --total-tasks 6")
    ends = sorted(e.t for e in closed.events if e.event == "finish")
    assert sorted(t.arrival for t in closed.tasks) == [0.0, 0.0, *ends[:4]]


def test_lengths_and_classes_in_any_combination(here: Path) -> None:
    (here / "t.csv").write_text(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0,11,3\n0.5,12,4\n2,13,5\n"
    )
    log = log_of(
        here,
        "--slo-class fast:900:50::10:3 --slo-class slow:::9000 --prompt-length fixed:7 "
        "--output-length uniform:2:4 --total-tasks 8 --latency-profile datacenter-vllm",
    )
    assert [t.prompt_tokens for t in log.tasks] == [7] * 8
    fast = next(t for t in log.tasks if t.class_name == "fast")
    # Targets of the command line are not scaled, whatever the machine.
    assert (fast.slo.ttft_ms, fast.slo.tpot_ms, fast.slo.deadline_ms) == (900, 50, None)
    assert fast.utility == 10 and sum(t.class_name == "fast" for t in log.tasks) == 6  # 3 of 4
    slow = next(t for t in log.tasks if t.class_name == "slow")
    assert slow.slo.deadline_ms == 9000 and slow.utility == 1
    tokens = [sum(e.task == i and e.event == "token" for e in log.events) for i in range(8)]
    assert set(tokens) <= {2, 3, 4}
    # The trace's arrivals with edge's classes and lengths; then its prompts too.
    edge = log_of(here, "--workload edge --dataset-path t.csv --total-tasks 3")
    assert [t.arrival for t in edge.tasks] == [0.0, 0.5, 2.0]
    assert {t.prompt_tokens for t in edge.tasks} != {11, 12, 13}
    both = log_of(
        here, "--workload edge --dataset-path t.csv --prompt-length trace --total-tasks 3"
    )
    assert [t.prompt_tokens for t in both.tasks] == [11, 12, 13]
    both = log_of(here, "--dataset-path t.csv --uniform --lambda 1 --total-tasks 3")
    assert [t.arrival for t in both.tasks] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("utility", [100, 10, 1])
def test_utility_of_edge(here: Path, utility: int) -> None:
    args = benchmark_flags.build_parser().parse_args([f"--utility=realtime={utility}"])
    columns = read_source(args).columns(20, 0, Gamma(1.0), 1.0)
    by_class = {kind.class_name: kind.utility for kind in columns.kinds}
    assert by_class == {"realtime": utility, "voice": 1, "qa": 1}


# ---- sweeps and capacity ------------------------------------------------------------------------


def test_sweep_over_loads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main(
        f"{SIM} --policy slice:ratio=.7,orca --loads .5,2 --seeds 0,1 --total-tasks 100 "
        "--save-result r.json --plot f.png"
    )
    assert "load" in capsys.readouterr().out
    sweep = saved(here / "r.json")["sweep"]
    assert [one["config"]["load"] for one in sweep] == pytest.approx([0.5, 2.0])
    orca = [one["mean"]["policies"]["orca"]["attainment"] for one in sweep]
    assert orca[0] > orca[1]
    assert (here / "f.png").stat().st_size > 10_000
    main(f"{SIM} --rates 1,3 --total-tasks 20 --save-result r.json")
    assert [o["config"]["rate"] for o in saved(here / "r.json")["sweep"]] == [1.0, 3.0]


def test_capacity_of_a_queue_that_is_known_by_hand(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row, every task takes 100 ms, ten tasks at equal gaps g < 100 ms: task i (from 0) waits
    i * (100 - g) ms. With a deadline of 150 ms half of them are met while 4 * (100 - g) <= 50, so
    up to 1 / 87.5 ms = 11.43 tasks/s."""
    machine = table_machine([10.0], prefill_ms=99.0, max_rows=1)
    (here / "queue.json").write_text(machine.to_json())
    main(
        f"{SIM} --latency-profile queue.json --slo-class a:::150 --prompt-length fixed:1 "
        "--output-length fixed:1 --uniform --total-tasks 10 --capacity 0.5 "
        "--save-result r.json"
    )
    result = saved(here / "r.json")
    found = result["capacity"]["orca"]
    assert found["met"]["rate"] <= 1 / 0.0875 * (1 + 1e-9) < found["missed"]["rate"]
    assert found["missed"]["rate"] <= found["met"]["rate"] * (1 + capacity.TOLERANCE)
    assert found["met"]["load"] == pytest.approx(found["met"]["rate"] / 10)  # saturation: 100 ms
    assert found["met"]["attainment"] >= 0.5 > found["missed"]["attainment"]
    assert "capacity at 50.0 % met" in capsys.readouterr().out


def test_search_for_capacity() -> None:
    found = capacity.find_capacity(lambda rate: [min(1, 3 / rate), min(1, 3 / rate)], 0.5, 1.0)
    assert found.met is not None and found.missed is not None
    assert found.met.rate <= 6 < found.missed.rate <= found.met.rate * 1.01
    never = capacity.find_capacity(lambda rate: [0.4], 0.5, 1.0)
    assert never.met is None and never.missed is not None and never.missed.rate == 1 / 64
    always = capacity.find_capacity(lambda rate: [0.9], 0.5, 1.0)
    assert always.missed is None and always.met is not None and always.met.rate == 64


def test_confidence_of_an_attainment() -> None:
    # Three seeds: t = 4.303 with 2 degrees of freedom, deviation 0.1.
    tried = capacity.Tried(1.0, (0.8, 0.9, 1.0))
    assert tried.half_width(60) == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert capacity.Tried(1.0, (0.5,)).half_width(100) == pytest.approx(1.96 * 0.05)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (f"{SIM} --latency-profile abacus", "rtx4060ti"),
        (f"{SIM} --latency-profile .", "--latency-profile"),
        (f"{SIM} --latency-profile broken.json", "JSON object"),
        ("-p m --latency-profile datacenter-vllm", "--executor sim"),
        ("-p m --instances 2", "--executor sim"),
        ("-p m --jitter 0", "--executor sim"),
        (f"{SIM} --jitter -1", "--jitter"),
        (f"{SIM} --instances 0", "--instances"),
        (f"{SIM} --instances 2 --bound", "one instance"),
        (f"{SIM} --dispatch random", "round_robin, least_loaded, scls"),
        (f"{SIM} --dispatch scls:slice=0", "slice"),
        ("-p m --executor cpu --dispatch random", "--dispatch: "),  # as flags are read
        (f"{SIM} --capacity 0", "--capacity"),
        (f"{SIM} --capacity 1.5", "--capacity"),
        (f"{SIM} --capacity .9 --load 2", "--capacity"),
        (f"{SIM} --capacity .9 --plot f.png", "--plot"),
        (f"{SIM} --capacity .9 --max-concurrency 3", "--max-concurrency"),
        (f"{SIM} --capacity .9 --event-log e", "--event-log"),
        (f"{SIM} --loads 1,-2", "--loads"),
        (f"{SIM} --loads 1 --rates 2", "--loads"),
        (f"{SIM} --rates 1,2 --intervals 1", "--intervals"),
        (f"{SIM} --rates 1,2 -o out", "--output"),
        (f"{SIM} --workload at_once.json --load 2", "got 'at_once', expected poisson"),
        (f"{SIM} --workload at_once.json --lambda 2", "got 'at_once', expected poisson"),
        (f"{SIM} --workload at_once.json --loads 1,2", "got 'at_once', expected poisson"),
        (f"{SIM} --workload at_once.json --capacity .9", "got 'at_once', expected poisson"),
        (f"{SIM} --ratios .5", "--ratios: got '0.5', expected a slice policy"),
        (f"{SIM} --policy orca --ratios .5,1", "--ratios: got '0.5,1', expected a slice policy"),
        (f"{SIM} --tasks half.jsonl", "line 1: prompt: got '\\ud800', expected valid Unicode"),
        (f"{SIM} --ramp 1", "--ramp"),
        (f"{SIM} --ramp 0,0", "above 0"),
        (f"{SIM} --ramp a,b", "--ramp"),
        (f"{SIM} --ramp 1,2 --load 1", "--ramp"),
        (f"{SIM} --ramp 1,2 --uniform", "--ramp"),
        (f"{SIM} --uniform --poisson", "--uniform"),
        (f"{SIM} --uniform --max-concurrency 2", "--uniform"),
        (f"{SIM} --prompt-length fixed:0", "--prompt-length"),
        (f"{SIM} --prompt-length normal:1:2", "lognormal"),
        (f"{SIM} --output-length uniform:9:3", "--output-length"),
        (f"{SIM} --output-length trace", "--dataset-path"),
        (f"{SIM} --slo-class a:1000", "--prompt-length"),
        (f"{SIM} --slo-class a:1000:x", "tpot_ms"),
        (f"{SIM} --slo-class a:1:2:3:4:5:6 --prompt-length fixed:1", "SHARE"),
        (f"{SIM} --slo-class a:1 --workload edge", "--workload"),
        (f"{SIM} --test-mode --prompt-length fixed:1", "--prompt-length"),
        (f"{SIM} --utility realtime", "--utility"),
        (f"{SIM} --utility realtime=-1", "realtime"),
        (f"{SIM} --utility robot=1", "one of realtime"),
        (f"{SIM} --utility robot=1 --test-mode", "--utility: got 'robot', expected one of "),
        (f"{SIM} --utility robot=1 --tasks t.jsonl", "expected one of default"),
        (f"{SIM} --kv-cache-limit 1K", "at most"),
        (f"{SIM} --total-tasks 100001 --event-log e", "--event-log"),
    ],
)
def test_refused_in_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], line: str, part: str
) -> None:
    (here / "broken.json").write_text("{")
    (here / "t.jsonl").write_text('{"prompt_tokens": 3, "output_tokens": 1, "max_tokens": 4}')
    (here / "half.jsonl").write_text('{"prompt": "\\ud800"}')
    edge = json.loads((resources.files("slicellm.bench") / "workloads" / "edge.json").read_text())
    edge["arrivals"] = {"process": "at_once"}
    (here / "at_once.json").write_text(json.dumps(edge))
    try:
        code: Any = benchmark.main(line.split())
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    assert code == 2
    assert part in captured.err
    assert captured.err.startswith("benchmark: ") and len(captured.err.splitlines()) == 1
    assert "SLO met" not in captured.out


def test_output_files_are_judged_by_themselves(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that exists is written in place, whatever its folder allows."""
    (here / "locked").mkdir()
    for path in ("kept.json", "locked/open.json"):
        (here / path).write_text("")
    closed = {"kept.json", "locked"}  # modes would not stop root
    monkeypatch.setattr(report.os, "access", lambda path, mode: str(path) not in closed)
    for path in ("kept.json", "locked/new.json"):
        assert benchmark.main(f"{SIM} --total-tasks 3 --save-result {path}".split()) == 2
        assert f"--save-result: got '{path}', expected a file that" in capsys.readouterr().err
    main(f"{SIM} --total-tasks 3 --save-result locked/open.json")
    assert saved(here / "locked" / "open.json")["policies"]


# ---- profiles from the command line -------------------------------------------------------------


def test_roofline_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = "layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=128256"
    line = f"roofline --bandwidth 3350 --tflops 989 --memory 80 --shape {shape} -o box.json"
    assert slicellm_command.main(line.split()) == 0
    main(f"{SIM} --latency-profile box.json --slice --total-tasks 5")
    assert slicellm_command.main(["profiles"]) == 0
    assert "rtx4060ti-chatglm2-6b-int4" in capsys.readouterr().out
    assert slicellm_command.main(["profiles", "datacenter-vllm"]) == 0
    assert "published" in capsys.readouterr().out
    assert slicellm_command.main(line.replace("layers=32", "layers=x").split()) == 2
    assert "--shape" in capsys.readouterr().err


def test_calibrate_writes_a_profile(
    here: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLICELLM_CACHE", str(here / "cache"))
    line = f"calibrate {tiny_llama} -t 1 --seconds 0.2 --profile box.json"
    assert slicellm_command.main(line.split()) == 0
    profile = load_profile("box.json")
    assert profile.name == "box" and "measured" in profile.provenance["latency"]
    assert profile.truth().decode_step_ms(1) > 0 and profile.blocks > 0
    main(f"{SIM} --latency-profile box.json --total-tasks 5")


def test_bound_stands_beside_every_policy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("highspy")
    main(
        f"{SIM} --policy edf,orca --poisson --load 2 --total-tasks 30 --seeds 1,2 --bound "
        "--save-result a.json"
    )
    shown = capsys.readouterr().out
    assert "seed 1: no policy can exceed" in shown and "seed 2: no policy can exceed" in shown
    assert "not valid: steps vary about their medians" in shown and "of bound" in shown
    for one in saved(here / "a.json")["runs"]:
        limits = [metrics_["bound"] for metrics_ in one["policies"].values()]
        assert limits[0] == limits[1] and not limits[0]["valid"]
        assert {"utility", "attainment"} <= limits[0].keys()
        for found in one["policies"].values():
            share = found["attainment"] / limits[0]["attainment"]
            assert found["optimality"]["attainment"] == pytest.approx(share)
            assert 0 < share < 1


def test_bound_of_a_closed_loop_is_not_valid(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highspy")
    main(f"{SIM} --slice --total-tasks 9 --max-concurrency 2 --bound --save-result a.json")
    assert "closed loop" in capsys.readouterr().out
    assert saved(here / "a.json")["policies"]["slice"]["bound"]["valid"] is False
