"""The command lines ftllm and slicellm, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub import Hub

import slicellm
from slicellm import _core
from slicellm.cli import ftllm
from slicellm.cli.common import parse_bytes


def run(
    program: str, *arguments: object, stdin: str | bytes = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command; its output as text."""
    command = [sys.executable, "-m", f"slicellm.cli.{program}", *map(str, arguments)]
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        command, input=data, capture_output=True, timeout=120, env={**os.environ, **environment}
    )
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    return subprocess.CompletedProcess(command, done.returncode, out, err)


@pytest.fixture(scope="module")
def odd_models(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Path:
    """A directory of things that are no models, or models that are not supported."""
    root = tmp_path_factory.mktemp("odd")
    (root / "text.flm").write_text("not a model")
    (root / "empty.flm").write_bytes(b"")
    (root / "nothing").mkdir()
    config = json.loads((tiny_llama_dir / "config.json").read_text())

    def variant(name: str, **changes: object) -> None:
        shutil.copytree(tiny_llama_dir, root / name)
        (root / name / "config.json").write_text(json.dumps({**config, **changes}))

    variant("moe", model_type="qwen3_moe", num_experts=8, num_experts_per_tok=2)
    variant("mixtral", model_type="mixtral", num_local_experts=8)
    variant("fp8", quantization_config={"quant_method": "fp8"})
    variant("unknown", model_type="nothing_known")
    variant("zero", num_attention_heads=0)
    variant("template", model_type="llama")
    (root / "template" / "chat_template.jinja").write_text("{{ messages.__class__ }}")
    shutil.copytree(tiny_llama_dir, root / "torch")
    (root / "torch" / "model.safetensors").unlink()
    (root / "torch" / "pytorch_model.bin").write_bytes(b"PK")
    return root


# M is the tiny model, D its directory form, O the directory of odd models.
BAD_LINES = [
    ("ftllm", "frobnicate"),
    ("ftllm", "--frobnicate"),
    ("ftllm", "serve M"),
    ("ftllm", "server M"),
    ("ftllm", "webui M"),
    ("ftllm", "bench M"),
    ("ftllm", "config"),
    ("ftllm", "run"),
    ("ftllm", "run /no/such/model"),
    ("ftllm", "run M -p M"),
    ("ftllm", "run O/text.flm"),
    ("ftllm", "run O/empty.flm"),
    ("ftllm", "run O/nothing"),
    ("ftllm", "run O/moe"),
    ("ftllm", "run O/mixtral"),
    ("ftllm", "run O/fp8"),
    ("ftllm", "run O/unknown"),
    ("ftllm", "run O/zero"),
    ("ftllm", "run O/torch"),
    ("ftllm", "run model.gguf"),
    ("ftllm", "run M -t 0"),
    ("ftllm", "run M -t 99999999999"),
    ("ftllm", "run M -t two"),
    ("ftllm", "run D --dtype int3"),
    ("ftllm", "run D --dtype fp8"),
    ("ftllm", "run D --dtype int4g0"),
    ("ftllm", "run M --device cuda:99"),
    ("ftllm", "run M --device multicuda:0,1"),
    ("ftllm", "run M --atype float16"),
    ("ftllm", "run M --kv_cache_dtype fp8_e4m3"),
    ("ftllm", "run M --kv_cache_limit lots"),
    ("ftllm", "run M --vram_limit 6G"),
    ("ftllm", "run M --vram-limit -1"),
    ("ftllm", "run M --gpu_mem_ratio 0.9"),
    ("ftllm", "run M --gpu-mem-ratio 1.5"),
    ("ftllm", "run M --kv_cache_limit -5G"),
    ("ftllm", "run M --kv_cache_limit 1"),
    ("ftllm", "run M --tokens 100 --kv_cache_limit 1M"),
    ("ftllm", "run M --temperature nan"),
    ("ftllm", "run M --temperature -1"),
    ("ftllm", "run M --top_p 1.5"),
    ("ftllm", "run M --max_tokens 0"),
    ("ftllm", "run M --seed 1e3"),
    ("ftllm", "run M --temp 1"),
    ("ftllm", "run M --lora adapter"),
    ("ftllm", "run M --custom model.py"),
    ("ftllm", "run M --moe_device cuda"),
    ("ftllm", "run M --tp 2"),
    ("ftllm", "run M --mtp 1"),
    ("ftllm", "run M --chat_template /no/such/file"),
    ("ftllm", "run M --tokenizer /no/such/directory"),
    ("ftllm", "run M --enable_thinking maybe"),
    ("ftllm", "export M"),
    ("ftllm", "export -o out.flm"),
    ("ftllm", "export /no/such/model -o out.flm"),
    ("ftllm", "export D -o out.gguf"),
    ("ftllm", "export D -o TMP/out.flm --dtype int2"),
    ("ftllm", "export D -o TMP/out.flm --dtype float8"),
    ("ftllm", "export D -o TMP/no/such/place/out.flm"),
    ("ftllm", "export M -o M"),
    ("ftllm", "export O/torch -o TMP/out.flm"),
    ("ftllm", "export O/moe -o TMP/out.flm"),
    ("ftllm", "export D -o TMP/out.flm --lora adapter"),
    ("ftllm", "download"),
    ("ftllm", "download owner/name -j 0"),
    ("ftllm", "download owner/name --tool wget"),
    ("ftllm", "download owner/name --dataset x"),
    ("ftllm", "download owner/name --endpoint ftp://x"),
    ("slicellm", "frobnicate"),
    ("slicellm", "bench"),
    ("slicellm", "bench M --batch 0"),
    ("slicellm", "bench M --input_tokens 400 --output_tokens 400"),
    ("slicellm", "bench M --output_tokens 18446744073709551616"),
    ("slicellm", "calibrate O/text.flm"),
    ("slicellm", "calibrate M --seconds -1"),
    ("slicellm", "info"),
    ("slicellm", "info /no/such/model"),
    ("slicellm", "info O/moe"),
    ("slicellm", "policies edf-first"),
]


@pytest.mark.parametrize(("program", "line"), BAD_LINES, ids=[f"{p} {a}" for p, a in BAD_LINES])
def test_bad_lines(
    tiny_llama: Path,
    tiny_llama_dir: Path,
    odd_models: Path,
    tmp_path: Path,
    program: str,
    line: str,
) -> None:
    """One sentence on stderr, nothing on stdout, exit code 2, and no traceback."""
    places = {"M": tiny_llama, "D": tiny_llama_dir, "O": odd_models, "TMP": tmp_path}
    words = [re.sub(r"^(M|D|O|TMP)(?=/|$)", lambda m: str(places[m[0]]), w) for w in line.split()]
    done = run(program, *words, stdin="hi\n")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{program}") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and len(done.stderr) < 600
    assert list(tmp_path.iterdir()) == [], "no half-written output is left"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run O/moe", "moe|expert"),
        ("run O/fp8", "fp8"),
        ("run model.gguf", "GGUF"),
        ("export D -o x.flm --moe_device cuda", "mixture-of-experts"),
        ("run O/torch", "safetensors"),
        ("serve", "not there yet"),
    ],
)
def test_refusals_say_why(line: str, words: str, odd_models: Path, tiny_llama_dir: Path) -> None:
    places = {"O": odd_models, "D": tiny_llama_dir}
    arguments = [re.sub(r"^(O|D)(?=/|$)", lambda m: str(places[m[0]]), w) for w in line.split()]
    assert re.search(words, run("ftllm", *arguments).stderr, re.IGNORECASE)


# ---- help ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("ftllm", ""), ("ftllm", "run"), ("ftllm", "export"), ("ftllm", "download"),
        ("slicellm", ""), ("slicellm", "bench"), ("slicellm", "calibrate"),
    ],
)  # fmt: skip
def test_help_has_examples(program: str, command: str) -> None:
    done = run(program, *command.split(), "-h")
    assert done.returncode == 0 and done.stderr == ""
    assert f"{program} {command}".strip() in done.stdout
    assert "example" in done.stdout


def test_no_command_is_help_and_v_is_the_version() -> None:
    for program in ("ftllm", "slicellm"):
        assert "usage" in run(program).stdout
        assert slicellm.__version__ in run(program, "-v").stdout


def test_every_flag_of_fastllm_is_known() -> None:
    """Flags of fastllm's run command: each works, is refused or is said to be without effect."""
    flags = """-p --path -t --threads -l --low --dtype --moe_dtype --atype --moe_atype
        --kv_cache_dtype --cuda_embedding --kv_cache_limit --max_batch --chunked_prefill_size
        --device --tp --moe_device --moe_device_layers --moe_experts --cache_history --cache_fast
        --enable_thinking --cuda_shared_expert --cuda_se --enable_amx --amx --tokens --page_size
        --prefix_cache --prefix_cache_snapshot_interval_pages
        --prefix_cache_snapshot_max_per_request --prefix_cache_snapshot_max_records
        --gpu_mem_ratio --cuda_slab --mtp --dspark --triton --custom --lora --cache_dir
        --dtype_config --ori --tool_call_parser --chat_template""".split()
    parser = ftllm.build_parser()
    (commands,) = (a for a in parser._actions if a.dest == "command")
    assert isinstance(commands.choices, dict)
    known = commands.choices["run"]._option_string_actions
    assert [flag for flag in flags if flag not in known] == []


def test_flags_without_effect_are_said_to_be(tiny_llama: Path) -> None:
    done = run("ftllm", "run", tiny_llama, "--low", "--amx", "true", "--prefix_cache", "true",
               "--max_tokens", 2, stdin="hi")  # fmt: skip
    assert done.returncode == 0
    for flag in ("--low", "--enable_amx", "--prefix_cache"):
        assert f"note: {flag} has no effect" in done.stderr
    default = run("ftllm", "run", tiny_llama, "--amx", "false", "--tp", "", stdin="")
    assert (default.returncode, default.stderr) == (0, "")


def test_sizes() -> None:
    assert [parse_bytes(t) for t in ("5G", "100m", "168K", "7", "auto", "1.5GB")] == [
        5 * 10**9, 10**8, 168_000, 7, 0, 1_500_000_000,
    ]  # fmt: skip


# ---- ftllm run -----------------------------------------------------------------------------------
def test_conversation(tiny_llama: Path, tiny_llama_dir: Path) -> None:
    """Answers are those of the API for the same conversation; clear forgets, stop ends."""
    done = run(
        "ftllm", "run", tiny_llama_dir, "-t", 1, "--max_tokens", 12, "--system", "the box",
        stdin="the value\nof the\nclear\nthe value\nstop\nnot read\n",
    )  # fmt: skip
    assert done.returncode == 0
    model = slicellm.load(tiny_llama_dir, threads=1)
    messages = [{"role": "system", "content": "the box"}]
    answers = []
    latency = slicellm.LatencyModel.from_decode_table([1.0])
    with slicellm.Engine(model, "orca", latency=latency) as engine:
        for question in ("the value", "of the"):
            messages.append({"role": "user", "content": question})
            text = engine.generate(messages, max_tokens=12).text.lstrip(" ")
            messages.append({"role": "assistant", "content": text})
            answers.append(text)
    assert done.stdout == f"{answers[0]}\n{answers[1]}\n{answers[0]}\n"


def test_generation_config(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Sampling as the model asks for it, unless flags say otherwise."""
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))

    def answer(*flags: object) -> str:
        return run("ftllm", "run", directory, "--max_tokens", 12, *flags, stdin="the").stdout

    greedy = answer()
    (directory / "generation_config.json").write_text('{"do_sample": false, "temperature": 9.0}')
    assert answer() == greedy
    (directory / "generation_config.json").write_text('{"do_sample": true, "temperature": 9.0}')
    assert answer("--seed", 1) == answer("--seed", 1) != greedy
    assert answer("--temperature", 0) == greedy
    (directory / "generation_config.json").write_text('{"do_sample": true, "top_k": 1}')
    assert answer() == greedy


def test_conversation_of_bytes_and_of_too_much(tiny_llama: Path) -> None:
    done = run("ftllm", "run", tiny_llama, stdin=b"\xff\xfe\n")
    assert done.returncode == 2 and "invalid UTF-8" in done.stderr
    done = run("ftllm", "run", tiny_llama, stdin="the value " * 2000)
    assert done.returncode == 2
    assert re.search(r"conversation: got \d+ tokens, expected at most 511", done.stderr)


def test_answers_end_where_memory_does(tiny_llama: Path) -> None:
    done = run("ftllm", "run", tiny_llama, "--tokens", 64, stdin="the value\n")
    ended = re.search(r"\[ended after (\d+) tokens\]", done.stderr)
    assert done.returncode == 0 and ended and 1 <= int(ended.group(1)) <= 64, done.stderr
    done = run("ftllm", "run", tiny_llama, "--tokens", 64, stdin="the value " * 100)
    assert done.returncode == 2
    assert re.search(r"conversation: got \d+ tokens, expected at most 64;", done.stderr)


def test_full_context_does_not_end_a_chat(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["the value " * 2000, "clear", "the value", "stop"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert ftllm.main(["run", str(tiny_llama), "-t", "1", "--max_tokens", "8"]) == 0
    shown = capsys.readouterr()
    assert '"clear" starts anew' in shown.err.splitlines()[1]
    assert shown.out.strip()


def test_small_prefill_steps(tiny_llama: Path) -> None:
    flags = ("--max_tokens", 4, "-t", 1)
    small = run("ftllm", "run", tiny_llama, "--chunked_prefill_size", 2, *flags, stdin="the value")
    assert (small.returncode, small.stdout) == (
        0, run("ftllm", "run", tiny_llama, *flags, stdin="the value").stdout,
    ), small.stderr  # fmt: skip


def test_hostile_template(odd_models: Path) -> None:
    done = run("ftllm", "run", odd_models / "template", stdin="hi\n")
    assert done.returncode == 2
    assert "chat_template" in done.stderr and "unsafe" in done.stderr


# ---- ftllm export --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["out.flm", "out"])
def test_export(tiny_llama_dir: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    done = run("ftllm", "export", tiny_llama_dir, "-o", output, "--dtype", "int8", "-t", 2)
    assert (done.returncode, done.stderr) == (0, "")
    exported = slicellm.load(output, threads=1, activation="float32")
    loaded = slicellm.load(tiny_llama_dir, dtype="int8", threads=1, activation="float32")
    original = slicellm.load(tiny_llama_dir, threads=1)
    ids = original.encode("the value of the object")
    assert exported.encode("the value of the object") == ids
    np.testing.assert_allclose(exported.forward(ids), loaded.forward(ids), rtol=0, atol=1e-3)
    error = np.abs(exported.forward(ids) - original.forward(ids)).max()
    assert 0 < error < 0.05 * np.abs(original.forward(ids)).max()
    chat = [{"role": "user", "content": "hi"}]
    assert exported.encode(chat) == original.encode(chat)


def test_export_moe_dtype_has_no_effect(tiny_llama_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.flm"
    done = run(
        "ftllm", "export", tiny_llama_dir, "-o", output, "--dtype", "int4", "--moe_dtype", "int4"
    )
    assert done.returncode == 0 and output.exists()
    assert "note: --moe_dtype has no effect" in done.stderr


# ---- ftllm download ------------------------------------------------------------------------------
hub_needed = pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub() -> Hub:
    with Hub() as hub:
        yield hub


def download(hub: Hub, tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    return run("ftllm", "download", *arguments, **environment)


def test_download(hub: Hub, tmp_path: Path) -> None:
    done = download(hub, tmp_path, "me/tiny", "--local-dir", tmp_path / "out")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == hub.files[name]
    assert not (tmp_path / "out" / "pytorch_model.bin").exists(), "no format that is not read"


def test_download_of_chosen_files(hub: Hub, tmp_path: Path) -> None:
    done = download(
        hub, tmp_path, "me/tiny", "--include", "*.json", "*.bin", "--exclude", "config*",
        "--local-dir", tmp_path / "out", "--hf_token", "secret",
    )  # fmt: skip
    assert done.returncode == 0
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_file()] == ["pytorch_model.bin"]
    assert "Bearer secret" in hub.tokens and "secret" not in done.stdout + done.stderr


def test_download_offline(hub: Hub, tmp_path: Path) -> None:
    missing = download(hub, tmp_path, "me/tiny", "--offline")
    assert missing.returncode == 2 and "no local copy" in missing.stderr
    first = download(hub, tmp_path, "me/tiny")
    count = len(hub.requests)
    again = download(hub, tmp_path, "me/tiny", "--offline")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert len(hub.requests) == count


def test_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    """A second try fetches what the first did not bring, and nothing twice."""
    hub.cut = "model.safetensors"
    broken = download(hub, tmp_path, "me/tiny", "--local-dir", tmp_path / "out")
    assert broken.returncode == 2 and broken.stderr.strip().splitlines()[-1].startswith("ftllm")
    assert "Traceback" not in broken.stderr
    assert (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    hub.cut = ""
    hub.requests.clear()
    done = download(hub, tmp_path, "me/tiny", "--local-dir", tmp_path / "out")
    assert done.returncode == 0
    fetched = [path.rsplit("/", 1)[1] for method, path in hub.requests if method == "GET"]
    assert "model.safetensors" in fetched and "config.json" not in fetched
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


@pytest.mark.parametrize(
    ("repo", "words"),
    [("me/none", "no such model"), ("bad name", "owner/name"), ("../../etc", "owner/name")],
)
def test_bad_repositories(hub: Hub, tmp_path: Path, repo: str, words: str) -> None:
    done = download(hub, tmp_path, repo)
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_download_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run("ftllm", "download", "me/tiny", PYTHONPATH=path)
    assert done.returncode == 2 and "pip install slicellm[hub]" in done.stderr


# ---- slicellm ------------------------------------------------------------------------------------
def test_info(tiny_llama: Path, tiny_llama_dir: Path) -> None:
    text = run("slicellm", "info", tiny_llama).stdout
    for word in ("llama", "2 layers of 64", "float16", "512 tokens", "sentencepiece BPE"):
        assert word in text
    facts = json.loads(run("slicellm", "info", tiny_llama_dir, "--json").stdout)
    assert facts["kind"] == "hf_dir" and facts["spec"]["vocab"] == 400
    assert facts["kv_bytes_per_token"] == {"float16": 256, "float32": 512}
    rows = {"embed": 400, "head": 400, "q": 64, "k": 32, "v": 32, "o": 64, "mlp": 3 * 128}
    layer = 64 * sum(rows[name] for name in ("q", "k", "v", "o", "mlp")) + 2 * 64
    assert facts["weights"]["parameters"] == 2 * layer + 64 * 800 + 64
    assert facts["chat_template"] == "tokenizer_config.json"


def test_info_of_a_model_without_tokenizer(fixtures: Path) -> None:
    done = run("slicellm", "info", fixtures / "chatglm2-int4.flm")
    assert done.returncode == 0 and "--tokenizer DIR" in done.stdout


def test_policies() -> None:
    text = run("slicellm", "policies").stdout
    names = [policy["name"] for policy in _core.list_policies()]
    assert {"slice", "orca", "fastserve"} <= set(names)
    for name in names:
        assert f"{name}: " in text
    (policy,) = json.loads(run("slicellm", "policies", "slice", "--json").stdout)
    assert policy["name"] == "slice" and "ratio" in [p["name"] for p in policy["parameters"]]


def test_bench(tiny_llama: Path) -> None:
    flags = ["--batch", 3, "--input_tokens", 20, "--output_tokens", 10, "-t", 1, "--repeat", 2]
    done = run("slicellm", "bench", tiny_llama, *flags, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert data["config"]["batch"] == 3 and len(data["runs"]) == 2
    for result in data["runs"]:
        assert all(value > 0 for value in result.values())
        low, mean, high = (result[f"ttft_ms_{what}"] for what in ("min", "mean", "max"))
        assert low * 0.999 <= mean <= high * 1.001
    text = run("slicellm", "bench", tiny_llama, *flags, "--prompt_unit", "the value").stdout
    for word in ("prefill", "decode", "TTFT", "TPOT", "tokens/s"):
        assert word in text


def test_calibrate(tiny_llama: Path, tmp_path: Path) -> None:
    flags = [tiny_llama, "-t", 1, "--seconds", 0.3]
    done = run("slicellm", "calibrate", *flags, SLICELLM_CACHE=str(tmp_path))
    assert done.returncode == 0 and "l(b) ms" in done.stdout
    (path,) = tmp_path.iterdir()
    assert path.name in done.stdout
    kept = path.read_bytes()
    assert run("slicellm", "calibrate", *flags, SLICELLM_CACHE=str(tmp_path)).returncode == 0
    assert path.read_bytes() == kept
