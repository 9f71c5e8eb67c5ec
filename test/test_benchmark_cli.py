"""The command `benchmark`: the lines that must work, every flag, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from slicellm import Model
from slicellm._core import LatencyModel
from slicellm.bench import eventlog, metrics
from slicellm.calibration import cache_file
from slicellm.cli import benchmark, benchmark_flags

POSITIONS = 1024  # edge needs a context of 600


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.flm and DIR, and a calibration for each, so that none is measured: about
    what such a model costs, which makes saturation the same on every machine."""
    folder = tmp_path_factory.mktemp("benchmark")
    tiny_models.make_llama_flm(folder / "model.flm", positions=POSITIONS)
    tiny_models.make_llama_directory(folder / "DIR", positions=POSITIONS)
    believed = LatencyModel.from_decode_table([0.5, 0.6, 0.7, 0.8], 1.0, 0.02).to_json()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICELLM_CACHE", str(folder / "cache"))
        flm, floats = folder / "model.flm", {"activation": "float32", "kv_cache_dtype": "float32"}
        models = [Model(flm), Model(flm, threads=2), Model(flm, threads=1, **floats)]
        for model in [*models, Model(folder / "DIR", dtype="int4")]:
            cache_file(model).parent.mkdir(exist_ok=True)
            cache_file(model).write_text(believed)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs inside that folder."""
    monkeypatch.setenv("SLICELLM_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)
    return place


def run(line: str, folder: Path) -> str:
    """Standard output of a command line, which must succeed, in a process of its own."""
    command = [sys.executable, "-m", "slicellm.cli.benchmark", *line.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


# ---- the lines that must work -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "policies", "tasks"),
    [
        ("-p model.flm --slice --poisson", ["slice"], 60),
        ("-p model.flm --slice --test-mode --poisson", ["slice"], 12),
        ("-p model.flm --slice --concurrent 8 -t 2", ["slice"], 8),
        (
            "-p DIR --dtype int4 --policy slice,orca,fastserve --poisson --lambda 2 --ratios 0.9",
            ["slice:ratio=0.9", "orca", "fastserve"],
            4,
        ),
    ],
)
def test_exact_command_lines(here: Path, line: str, policies: list[str], tasks: int) -> None:
    # At 2 tasks/s sixty tasks would take half a minute: --total-tasks keeps that one short.
    few = " --total-tasks 4" if "--lambda" in line else ""
    shown = run(f"{line}{few} --save-result result.json", here)
    assert "saturation" in shown and "SLO met" in shown
    result = json.loads((here / "result.json").read_text())
    assert list(result["policies"]) == policies
    for values in result["policies"].values():
        assert sum(values["finish"].values()) == tasks == values["submitted"]
        assert 0 <= values["attainment"] <= 1 and 0 <= values["utility"] <= 1
    config = result["config"]
    assert config["seed"] == 0 and config["executor"] == "cpu" and config["machine"]["cores"] >= 1
    if "--test-mode" in line:
        assert shown.count("task ") >= 12 and "ms from arrival to each token" in shown


def test_result_file_has_every_fixed_key(here: Path) -> None:
    run("-p model.flm --slice --poisson --total-tasks 10 --save-result r.json", here)
    values = json.loads((here / "r.json").read_text())["policies"]["slice"]
    keys = {
        "attainment",
        "utility",
        "goodput",
        "makespan_s",
        "output_tokens_per_s",
        "finish",
        "bound",
    }
    keys |= {"ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "plan_us", "classes"}
    assert keys <= set(values)
    assert {"p50", "p99", "max"} <= set(values["plan_us"])
    assert {c: v["submitted"] for c, v in values["classes"].items()} == {
        "realtime": 7,
        "voice": 2,
        "qa": 1,
    }
    assert values["bound"] is None
    assert 0 < values["prefill_share"] < 1
    assert values["plan_us"]["p50"] > 0


def main(line: str) -> None:
    assert benchmark.main(line.split()) == 0


def test_event_log_gives_the_metrics_again(here: Path) -> None:
    main(
        "-p model.flm --policy slice,orca --total-tasks 9 --seeds 3,4 --poisson "
        "--event-log events.jsonl --save-result r.json"
    )
    result = json.loads((here / "r.json").read_text())
    logs = eventlog.read(here / "events.jsonl")
    assert set(logs) == {(p, s) for p in ("slice", "orca") for s in (3, 4)}
    for one in result["runs"]:
        for policy, values in one["policies"].items():
            again = metrics.compute(logs[policy, one["config"]["seed"]])
            for key, value in again.items():
                if key != "plan_us":  # from step records, which the log does not hold
                    assert json.loads(json.dumps(value)) == values[key], key
    means = [one["policies"]["orca"]["attainment"] for one in result["runs"]]
    assert result["mean"]["policies"]["orca"]["attainment"] == pytest.approx(sum(means) / 2)
    # The same tasks and arrivals under both policies.
    assert logs["slice", 3].tasks == logs["orca", 3].tasks != logs["orca", 4].tasks
    for log in logs.values():
        by_task: dict[int, list[str]] = {}
        for event in log.events:
            by_task.setdefault(event.task, []).append(event.event)
        assert all(events[0] == "admit" and events[-1] == "finish" for events in by_task.values())


def test_true_lengths_are_what_comes_out(here: Path) -> None:
    (here / "t.jsonl").write_text(
        '{"prompt_tokens": 30, "output_tokens": 5, "max_tokens": 40, "class": "a"}\n'
        '{"prompt_tokens": 3, "output_tokens": 1, "max_tokens": 40, "ttft_ms": 60000}\n'
    )
    main("-p model.flm --tasks t.jsonl --slice -o out.jsonl --save-result r.json")
    lines = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [(x["class"], x["output_tokens"]) for x in lines] == [("a", 5), ("default", 1)]
    result = json.loads((here / "r.json").read_text())
    assert result["policies"]["slice"]["output_tokens"] == 6
    assert result["config"]["slo_scale"] == 1.0  # targets in files are meant as they are


def test_prompts_from_a_file(here: Path) -> None:
    (here / "prompts.txt").write_text("the value of the object\nreturn the number ✓\n")
    main("-p model.flm -f prompts.txt -l 7 -o out.jsonl")
    lines = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [x["prompt"] for x in lines] == ["the value of the object", "return the number ✓"]
    assert all(1 <= x["output_tokens"] <= 7 for x in lines)


def test_closed_loop_keeps_so_many_in_flight(here: Path) -> None:
    main("-p model.flm --max-concurrency 3 --total-tasks 12 --event-log e.jsonl")
    log = eventlog.read(here / "e.jsonl")["orca", 0]
    changes = [(task.arrival, 1) for task in log.tasks]
    changes += [(e.t, -1) for e in log.events if e.event == "finish"]
    in_flight = most = 0
    for _, change in sorted(changes):  # an end sorts before an arrival at the same time
        in_flight += change
        most = max(most, in_flight)
    assert most == 3
    assert sum(task.arrival == 0 for task in log.tasks) <= 3


def test_intervals_and_limit(here: Path) -> None:
    main("-p model.flm --intervals 0.01,0.03 --total-tasks 4 -l 20 --event-log e.jsonl")
    log = eventlog.read(here / "e.jsonl")["orca", 0]
    assert [t.arrival for t in log.tasks] == pytest.approx([0, 0.01, 0.04, 0.05])
    assert max(t.max_tokens for t in log.tasks) == 20


def test_trace_with_classes(here: Path) -> None:
    rows = "".join(f"{0.01 * i},{10 + i},{3 + i}\n" for i in range(6))
    (here / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    main(
        "-p model.flm --dataset-path t.csv --slo-class all:ttft_ms=5000,max_tokens=50 "
        "--total-tasks 6 --event-log e.jsonl --policy fastserve"
    )
    log = eventlog.read(here / "e.jsonl")["fastserve", 0]
    assert [t.prompt_tokens for t in log.tasks] == [10, 11, 12, 13, 14, 15]
    assert [t.arrival for t in log.tasks] == pytest.approx([0.01 * i for i in range(6)])
    tokens = [sum(e.task == i and e.event == "token" for e in log.events) for i in range(6)]
    assert tokens == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["f.png", "f.svg", "f.pdf"])
def test_figure(here: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    main(f"-p model.flm --policy slice:ratio=.9,orca --total-tasks 8 --poisson --plot {name}")
    starts = {"f.png": b"\x89PNG", "f.svg": b"<?xml", "f.pdf": b"%PDF"}
    assert (here / name).read_bytes().startswith(starts[name])


def test_remaining_flags(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        "-p model.flm -t 1 -b 4 --atype float32 --kv-cache-dtype float32 --kv-cache-limit 50M "
        "--slice --ratios 1,0.5 --long-threshold 5 --degrade-threshold 6 --workload edge "
        "--request-rate 200 --burstiness 0.5 --num-prompts 5 --seed 7 --slo-scale 2 "
        "--metric-percentiles 25,75 --goodput ttft:2000 tpot:125 e2el:9000 --save-result r.json"
    )
    captured = capsys.readouterr()
    assert "--long-threshold has no effect" in captured.err
    assert "within --goodput" in captured.out
    result = json.loads((here / "r.json").read_text())
    assert list(result["policies"]) == ["slice:ratio=1", "slice:ratio=0.5"]
    values = result["policies"]["slice:ratio=1"]
    assert {"p25", "p75", "p50", "p99"} <= set(values["ttft_ms"])
    assert result["config"]["slo_scale"] == 2.0 and result["config"]["rate"] == 200.0
    assert result["config"]["threads"] == 1 and result["config"]["seed"] == 7


def test_load_is_a_multiple_of_saturation(here: Path) -> None:
    main(
        "-p model.flm --poisson --load 2.5 --total-tasks 5 --save-result r.json --event-log e.jsonl"
    )
    config = json.loads((here / "r.json").read_text())["config"]
    assert config["rate"] == pytest.approx(2.5 * config["saturation"])
    log = eventlog.read(here / "e.jsonl")["orca", 0]
    assert log.tasks[-1].arrival == pytest.approx(5 / config["rate"])  # last of n at n/rate


def test_sweep_and_capacity_of_a_real_model(here: Path) -> None:
    main("-p model.flm --loads 1,3 --total-tasks 4 --poisson --save-result r.json")
    sweep = json.loads((here / "r.json").read_text())["sweep"]
    assert [one["config"]["load"] for one in sweep] == pytest.approx([1, 3])
    assert all(one["policies"]["orca"]["submitted"] == 4 for one in sweep)
    # Targets of hours are always met, so that the search ends at its highest rate.
    main("-p model.flm --capacity 0.9 --total-tasks 4 --slo-scale 100000 --save-result r.json")
    found = json.loads((here / "r.json").read_text())["capacity"]["orca"]
    assert found["met"]["load"] == pytest.approx(64) and found["missed"] is None


def test_more_rows_than_a_step_has_tokens(here: Path) -> None:
    pytest.importorskip("highspy")
    main("-p model.flm -b 3000 --total-tasks 4 --lambda 500 --bound --save-result r.json")
    assert json.loads((here / "r.json").read_text())["config"]["batch"] == 3000


def test_help_names_every_flag_and_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark.main(["-h"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    flags = (
        "-p -t -l -b -f -o --dtype --atype --slice --test-mode --concurrent --total-tasks "
        "--poisson --lambda --intervals --ratios --long-threshold --degrade-threshold -h "
        "--request-rate --burstiness --max-concurrency --num-prompts --seed --dataset-name "
        "--dataset-path --goodput --save-result --metric-percentiles --policy --executor "
        "--workload --tasks --capacity --bound --plot --event-log --load --seeds --slo-scale "
        "--slo-class --latency-profile --rates --loads --uniform --ramp --prompt-length "
        "--output-length --utility"
    )
    for flag in flags.split():
        assert f"{flag} " in text or f"{flag}," in text or f"{flag}\n" in text, flag
    assert "examples:" in text and "--slice --poisson" in text


# ---- what is refused ----------------------------------------------------------------------------

MODEL = "-p model.flm"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "-p"),
        ("-p", "-p"),
        ("-p none.flm", "none.flm"),
        (f"{MODEL} --lambda nan", "--lambda"),
        (f"{MODEL} --lambda -3", "--lambda"),
        (f"{MODEL} --lambda 0", "--lambda"),
        (f"{MODEL} --lambda fast", "--lambda"),
        (f"{MODEL} --request-rate inf", "--request-rate"),
        (f"{MODEL} --load -1", "--load"),
        (f"{MODEL} --burstiness 0", "--burstiness"),
        (f"{MODEL} --total-tasks 0", "--total-tasks"),
        (f"{MODEL} --num-prompts 9223372036854775808", "--num-prompts"),
        (f"{MODEL} --seed -1", "--seed"),
        (f"{MODEL} --seed 9223372036854775808", "--seed"),
        (f"{MODEL} --seeds 1,,2", "--seeds"),
        (f"{MODEL} -t 0", "-t"),
        (f"{MODEL} -t 99999999999999999999", "-t"),
        (f"{MODEL} -b 0", "-b"),
        (f"{MODEL} -l 0", "-l"),
        (f"{MODEL} -l 9223372036854775808", "-l"),
        (f"{MODEL} --intervals 1,-2", "--intervals"),
        (f"{MODEL} --intervals 1,nan", "--intervals"),
        (f"{MODEL} --ratios 0", "--ratios"),
        (f"{MODEL} --ratios nan", "--ratios"),
        (f"{MODEL} --ratios 1.5", "--ratios"),
        (f"{MODEL} --slo-scale -1", "--slo-scale"),
        (f"{MODEL} --metric-percentiles 101", "--metric-percentiles"),
        (f"{MODEL} --goodput ttft:fast", "--goodput"),
        (f"{MODEL} --goodput speed:5", "--goodput"),
        (f"{MODEL} --policy fifo", "fifo"),
        (f"{MODEL} --policy slice,,orca", "--policy"),
        (f"{MODEL} --policy slice:speed=3", "speed"),
        (f"{MODEL} --policy slice:ratio=nan", "ratio"),
        (f"{MODEL} --executor cuda", "no CUDA"),
        (f"{MODEL} --executor tpu", "--executor"),
        (f"{MODEL} --bound --capacity .9", "--bound"),
        (f"{MODEL} --workload office", "office"),
        (f"{MODEL} --workload tiers", "--dataset-path"),
        (f"{MODEL} --dataset-path none.csv", "none.csv"),
        (f"{MODEL} --slo-class a:ttft_ms=1", "--prompt-length"),
        (f"{MODEL} -f none.txt", "none.txt"),
        (f"{MODEL} -f empty.txt", "not empty"),
        (f"{MODEL} -f latin1.txt", "UTF-8"),
        (f"{MODEL} -f long.txt", "context"),
        (f"{MODEL} -f .", "-f"),
        (f"{MODEL} --tasks prompts.csv", "JSON"),
        (f"{MODEL} --tasks negative.jsonl", "tpot_ms"),
        (f"{MODEL} --concurrent 5 --poisson", "--concurrent"),
        (f"{MODEL} --lambda 1 --load 2", "--load"),
        (f"{MODEL} --max-concurrency 2 --intervals 1", "--max-concurrency"),
        (f"{MODEL} --test-mode --workload edge", "--test-mode"),
        (f"{MODEL} --seed 1 --seeds 1,2", "--seed"),
        (f"{MODEL} --plot figure.bmp", "--plot"),
        (f"{MODEL} --plot no/such/folder/f.png", "--plot"),
        (f"{MODEL} --save-result no/such/folder/r.json", "--save-result"),
        (f"{MODEL} --event-log .", "--event-log"),
        (f"{MODEL} --dtype int3", "int3"),
        (f"{MODEL} --atype int2", "--atype"),
        (f"{MODEL} --kv-cache-limit -5", "--kv-cache-limit"),
        (f"{MODEL} --frobnicate", "--frobnicate"),
        ("-p garbage.flm", "version"),
    ],
)
def test_refused_in_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], line: str, part: str
) -> None:
    (here / "empty.txt").write_text("\n \n")
    (here / "latin1.txt").write_bytes(b"caf\xe9\n")
    (here / "long.txt").write_text("the value of the object " * 2000)
    (here / "prompts.csv").write_text("a,b\n")
    (here / "negative.jsonl").write_text('{"prompt": "a", "tpot_ms": -5}\n')
    (here / "garbage.flm").write_bytes(b"\x00\xff" * 50)
    try:
        code: Any = benchmark.main(line.split())
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    assert code == 2
    assert part in captured.err
    assert captured.err.startswith("benchmark: ") and len(captured.err.splitlines()) == 1
    assert "SLO met" not in captured.out


def test_policies_may_carry_parameters() -> None:
    assert benchmark_flags.split_policies("slice:ratio=.9,mask_layout=spread,orca") == [
        "slice:ratio=.9,mask_layout=spread",
        "orca",
    ]

    def names(line: str) -> list[str]:
        return benchmark_flags.policy_names(
            benchmark_flags.build_parser().parse_args(["-p", "m", *line.split()])
        )

    assert names("") == ["orca"]
    assert names("--slice") == ["slice"]
    assert names("--slice --policy orca,fastserve") == ["slice", "orca", "fastserve"]
    assert names("--slice --ratios 0.7 --policy slice,orca") == ["slice:ratio=0.7", "orca"]
    assert names("--policy slice:mask_layout=spread --ratios 1,.5") == [
        "slice:mask_layout=spread,ratio=1",
        "slice:mask_layout=spread,ratio=0.5",
    ]
    assert names("--policy slice:ratio=.9 --ratios .5") == ["slice:ratio=.9"]


# ---- studies ------------------------------------------------------------------------------------


def test_study_of_edge_goes_on_where_it_stopped(here: Path) -> None:
    pytest.importorskip("matplotlib")
    script = Path(__file__).resolve().parents[1] / "benchmark" / "studies" / "edge_policies.py"
    results = here / "edge"
    line = f"{script} -p model.flm --tasks 10 --loads 2 --seeds 0,1 --results {results}"

    def study(policies: str) -> str:
        command = [sys.executable, *line.split(), "--policy", policies]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert study("slice:ratio=0.9").count(" met in ") == 2
    assert study("slice:ratio=0.9,orca").count(" met in ") == 2  # only orca's cells were missing
    cell = json.loads((results / "load2_seed1_orca.json").read_text())
    assert cell["policies"]["orca"]["submitted"] == 10 and cell["config"]["load"] == 2.0
    text = (results / "summary.md").read_text()
    assert text.count("| orca |") >= 2 and "35x" in text and "3.4x" in text
    assert (results / "edge.png").stat().st_size > 10_000
    other = subprocess.run(
        [sys.executable, *line.replace("--tasks 10", "--tasks 11").split()],
        cwd=here,
        capture_output=True,
        text=True,
    )
    assert other.returncode != 0 and "--results" in other.stderr  # cells of one study agree
