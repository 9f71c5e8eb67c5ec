"""Models in parts on several devices. With the CPU as every device, the bits are the plain model's;
parts on a GPU are in test/ops/test_split_models.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_policy import RandomPolicy
from reference import models, tiny

from slicellm import Model, _core
from slicellm.cli import ftllm

IDS = tiny.token_ids()
LATENCY = _core.LatencyModel.from_decode_table([1.0])
LAYERS = 5

Load = Callable[..., _core.Model]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of a model of five layers of each family."""
    root = tmp_path_factory.mktemp("models")

    def get(family: str) -> Path:
        path = root / family
        if not path.exists():
            given = models.FAMILIES[family] if family in models.FAMILIES else tiny.CASES[family]
            key = "num_layers" if "num_layers" in given else "num_hidden_layers"
            config = {**given, key: LAYERS}
            if "max_window_layers" in config:
                config["max_window_layers"] = 2
            tiny.write_directory(path, config, tiny.weights(config))
        return path

    return get


@pytest.fixture(scope="session")
def load(directory: Callable[[str], Path]) -> Load:
    """load(family, device, **options)"""

    def get(family: str, device: str, **options: Any) -> _core.Model:
        return _core.Model.load(str(directory(family)), device=device, **{"threads": 1, **options})

    return get


def layers_of(model: _core.Model) -> list[int]:
    parts = [re.match(r"([0-9]+) layers? on .*, 1 thread", p) for p in model.device.split("; ")]
    return [int(part.group(1)) for part in parts if part]


@pytest.mark.parametrize(
    ("device", "layers"),
    [
        ("cpu=2,cpu=3", [2, 3]),
        ("cpu=1,cpu=1,cpu=1,cpu=1,cpu=1", [1, 1, 1, 1, 1]),
        ("cpu=20,cpu=20", [3, 2]),  # 2.5 rounded, and what is left
        ("cpu=8,cpu=1,cpu=1", [3, 1, 1]),  # 4 and 0.5 each
        ("cpu=1,cpu=1000", [1, 4]),
        ("cpu=1000,cpu=1,cpu=1", [3, 1, 1]),
    ],
)
def test_layers_of_the_parts(load: Load, device: str, layers: list[int]) -> None:
    assert layers_of(load("llama", device)) == layers


def test_one_part_is_the_plain_model(load: Load) -> None:
    assert load("llama", "cpu=7").device == load("llama", "cpu").device


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cpu=0", 'device: got "cpu=0", expected a device and its layers, at least one'),
        ("cpu=2,cpu=-1", 'device: got "cpu=-1", expected a device and its layers'),
        ("cpu=2,cpu=1.5", 'device: got "cpu=1.5", expected a device and its layers'),
        ("cpu=2,cpu=99999999999999", "expected a device and its layers"),
        ("cpu=2,cpu=2=2", 'device: got "cpu=2=2", expected a device and its layers'),
        ("cpu,cpu", 'device: got "cpu,cpu", expected one device, or several with their layers'),
        ("cpu=1,", 'device: got "cpu=1,", expected one device, or several'),
        ("multicuda:0,1", "expected one device, or several with their layers"),
        ("cpu=1,gpu=1", 'device: got "gpu", expected cpu, numa, cuda or cuda:<number>'),
        ("auto=1", 'device: got "auto", expected cpu, numa, cuda'),
        ("=3", 'device: got "", expected cpu, numa'),
        (",".join(6 * ["cpu=1"]), "expected at most as many parts as the model has layers, 5"),
    ],
)
def test_what_is_no_placement(load: Load, device: str, sentence: str) -> None:
    with pytest.raises(_core.InvalidArgument, match=re.escape(sentence)):
        load("llama", device)


@pytest.mark.parametrize("family", [*models.FAMILIES, "qwen2_window"])
@pytest.mark.parametrize("device", ["cpu=2,cpu=3", "cpu=1,cpu=3,cpu=1"])
def test_the_bits_of_the_plain_model(load: Load, family: str, device: str) -> None:
    for options in ({}, {"dtype": "int4g32", "kv_cache_dtype": "int8", "threads": 2}):
        plain, split = (load(family, name, **options) for name in ("cpu", device))
        steps = [tiny.PROMPT] + [1] * (len(IDS) - tiny.PROMPT)
        assert np.array_equal(
            split.forward(IDS, steps, tiny.PROMPT), plain.forward(IDS, steps, tiny.PROMPT)
        )
        assert split.weight_bytes == plain.weight_bytes
        assert split.kv_block_bytes == plain.kv_block_bytes
        assert split.threads == plain.threads and split.fingerprint != plain.fingerprint


def tasks() -> list[_core.TaskSpec]:
    rng = np.random.default_rng(5)
    return [
        _core.TaskSpec(
            prompt=rng.integers(3, tiny.VOCAB, 2 + 5 * k).tolist(),
            max_tokens=4 + k,
            temperature=0.9 if k % 2 else 0.0,
            seed=k,
            ignore_eos=True,
            logprobs=2,
        )
        for k in range(8)
    ]


def run(model: _core.Model, policy: str | _core.Policy, **options: Any) -> list[Any]:
    engine = _core.Engine(model, policy, LATENCY, **options)
    results = [handle.wait(60) for handle in engine.submit_all(tasks())]
    engine.check_integrity()
    engine.close()
    assert [result["error"] for result in results] == [""] * len(results)
    return [(r["token_ids"], r["logprobs"], r["top_logprobs"]) for r in results]


@pytest.mark.parametrize("family", ["llama", "chatglm1"])
@pytest.mark.parametrize(
    "options", [{}, {"loop": "overlap"}, {"prompt_lookup": 4}], ids=["plain", "overlap", "drafts"]
)
def test_any_schedule_gives_the_same_bits(load: Load, family: str, options: dict[str, Any]) -> None:
    """Cut, paused, swapped, dropped and padded at random, a split model gives what the plain one
    does with memory enough."""
    expected = run(load(family, "cpu"), "orca")
    split = load(family, "cpu=2,cpu=3")
    policy = RandomPolicy(3, padding=0.5)
    few = {"kv_cache_bytes": 9 * split.kv_block_bytes, "host_kv_bytes": 7 * split.kv_block_bytes}
    assert run(split, policy, max_rows=5, max_step_tokens=64, **few, **options) == expected
    assert min(policy.moves[move] for move in ("swap_out", "swap_in")) > 0


def test_memory_for_kv_when_no_size_is_given(load: Load) -> None:
    """As many blocks as the rows can use, in a machine with room for more."""
    blocks = []
    for device in ("cpu", "cpu=2,cpu=3"):
        engine = _core.Engine(load("llama", device), "orca", LATENCY, max_rows=3)
        stats = engine.stats()
        blocks.append((stats["total_blocks"], stats["total_host_blocks"]))
        engine.close()
    assert blocks == [(3 * (64 // 16 + 1),) * 2] * 2


def test_calibration(load: Load) -> None:
    model = load("llama", "cpu=2,cpu=3")
    assert "2 layers on" in _core.calibrate(model, 0.2, None).to_json()


def test_pack_cache(load: Load, directory: Callable[[str], Path]) -> None:
    """One file serves a model whatever its parts, as long as all are on CPUs."""
    options = {"pack_cache": True, "dtype": "int8"}
    plain = load("qwen2", "cpu", **options)
    split = load("qwen2", "cpu=2,cpu=3", **options)
    assert [plain.pack_cache[0], split.pack_cache[0]] == ["written", "read"]
    assert np.array_equal(split.forward(IDS), plain.forward(IDS))
    assert len(list(directory("qwen2").glob("*.pack"))) == 1


def test_auto_without_a_gpu(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        load("llama", "cuda")
    except _core.Unsupported:
        assert load("llama", "auto").device == load("llama", "cpu").device
    else:
        pytest.skip("there is a GPU, or its emulation")


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("{'cuda:0': 20, 'cpu': 8}", "cpu=8,cuda:0=20"),
        ('{"cpu": 3}', "cpu=3"),
        ("cuda:0=20,cpu=8", "cuda:0=20,cpu=8"),
    ],
)
def test_maps_as_fastllm_writes_them(text: str, device: str) -> None:
    args = ftllm.build_parser().parse_args(["run", "model", "--device", text])
    assert args.device == device


@pytest.mark.parametrize("text", ["{'cuda:0': 20,", "{}", "{1: 2}", "{'cpu'}", "{'cpu': 'x'}"])
def test_bad_maps(text: str, directory: Callable[[str], Path], capsys: Any) -> None:
    try:
        code = ftllm.main(["run", str(directory("llama")), "--device", text])
    except SystemExit as exit:
        code = int(exit.code or 0)
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "expected" in error


def test_python_api(directory: Callable[[str], Path]) -> None:
    model = Model(directory("llama"), device="cpu=2,cpu=3", threads=1)
    assert model.device.startswith("2 layers on ")
    assert model.forward([1, 2, 3]).shape == (3, tiny.VOCAB)
