"""Whole models on device "cuda" (emulated, or a GPU with --device cuda) beside the CPU, as a
user runs them: logits, greedy tokens, and results that do not depend on how a task is scheduled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_model_fixtures
from ops_module import Array, assert_same_bits, ops
from random_policy import RandomPolicy
from reference import models, tiny
from reference.layers import Weights
from reference.loading import decode_steps, relative_error

import slicellm
from slicellm import _core

FAMILIES = list(models.FAMILIES)
IDS = tiny.token_ids()
STEPS = decode_steps(tiny.PROMPT, len(IDS))
LATENCY = _core.LatencyModel.from_decode_table([1.0])

# Relative error of a token's logits, Euclidean. Inputs of matrix products are rounded to 11 bits
# (8 with bfloat16 weights), and so are the decoded weights of int types; the CPU's are not.
BOUND = {"float16": 2e-3, "bfloat16": 1e-2, "int8": 2e-3, "int4": 2e-3, "int4g32": 2e-3}

Load = Callable[..., _core.Model]


@pytest.fixture(autouse=True)
def needs_cuda(request: pytest.FixtureRequest) -> None:
    if ops.cuda != "simt" and request.config.getoption("--device") != "cuda":
        pytest.skip("device cuda is neither emulated (SLICELLM_SIMT) nor asked for (--device cuda)")


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """load(family, device, dtype, **options), each loaded once."""
    directory = tmp_path_factory.mktemp("families")
    loaded: dict[Any, _core.Model] = {}

    def get(family: str, device: str, dtype: str, **options: Any) -> _core.Model:
        key = family, device, dtype, tuple(options.items())
        if key not in loaded:
            path = directory / family
            if not path.exists():
                config = models.FAMILIES[family]
                tiny.write_directory(path, config, tiny.weights(config))
            loaded[key] = _core.Model.load(
                str(path), device=device, dtype=dtype, activation="float32", threads=1, **options
            )
        return loaded[key]

    return get


def assert_near(got: Array, cpu: Array, bound: float) -> None:
    """Within the bound, and the same first choice wherever the CPU's leads by more than rounding
    could take away."""
    assert relative_error(got, cpu) < bound
    second, first = np.sort(cpu, axis=-1)[:, -2:].T
    clear = first - second > 2 * bound * np.linalg.norm(cpu, axis=-1)
    assert clear.any()
    assert np.array_equal(got.argmax(-1)[clear], cpu.argmax(-1)[clear])


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_near_cpu(family: str, dtype: str, load: Load) -> None:
    cpu, cuda = (load(family, name, dtype) for name in ("cpu", "cuda"))
    expected, got = (model.forward(IDS, STEPS, tiny.PROMPT) for model in (cpu, cuda))
    assert_near(got, expected, BOUND[dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_near_reference(family: str, load: Load) -> None:
    """Against numpy float64 on the float16-rounded weights, which the CPU has no part in."""
    config = models.FAMILIES[family]
    tensors = {
        name: value.astype(np.float16) if models.is_linear(name, value) else value
        for name, value in models.with_own_head(config, tiny.weights(config)).items()
    }
    expected = models.logits(config, Weights(tensors), IDS, tiny.PROMPT)
    got = load(family, "cuda", "float16").forward(IDS, STEPS, tiny.PROMPT)
    assert_near(got, expected, BOUND["float16"])


@pytest.mark.parametrize("dtype", ["float16", "int4g32"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "chatglm1"])
def test_chunks_give_the_same_bits(family: str, dtype: str, load: Load) -> None:
    model = load(family, "cuda", dtype)
    whole = model.forward(IDS)
    for chunk in (1, 7, 16, STEPS):
        assert_same_bits(model.forward(IDS, chunk), whole)


def test_chatglm1_recomputed_gives_the_same_bits(load: Load) -> None:
    """Its prompt comes in one step; what follows may be decoded or computed again with it."""
    model = load("chatglm1", "cuda", "float16")
    prompt, n = tiny.PROMPT, len(IDS)
    decoded = model.forward(IDS, STEPS, prompt)
    for steps in ([n], [prompt, 7, n - prompt - 7]):
        assert_same_bits(model.forward(IDS, steps, prompt), decoded)


def tasks() -> list[dict[str, Any]]:
    """Greedy and sampled ones, of different lengths."""
    rng = np.random.default_rng(5)
    return [
        {
            "prompt": [int(i) for i in rng.integers(3, tiny.VOCAB, 2 + 3 * k)],
            "max_tokens": 3 + k,
            "temperature": 0.0 if k % 2 else 0.9,
            "top_k": 5 if k == 2 else 0,
            "top_p": 0.8 if k == 4 else 1.0,
            "seed": k,
            "ignore_eos": True,
            "logprobs": 2 if k % 3 == 0 else None,
        }
        for k in range(6)
    ]


def run(model: _core.Model, policy: Any, specs: list[dict[str, Any]], **options: Any) -> list[Any]:
    """Each task's tokens and log-probabilities."""
    settings = {"kv_cache_bytes": 64 * model.kv_block_bytes, **options}
    engine = _core.Engine(model, policy, LATENCY, **settings)
    handles = engine.submit_all([_core.TaskSpec(**spec) for spec in specs])
    results = [handle.wait(120) for handle in handles]
    engine.wait_idle()
    engine.check_integrity()
    engine.close()
    assert [result["error"] for result in results] == [""] * len(specs)
    return [(r["token_ids"], r["logprobs"], r["top_logprobs"]) for r in results]


@pytest.mark.parametrize("family", ["llama", "chatglm1", "chatglm2"])
def test_schedules_give_the_same_bits(family: str, load: Load) -> None:
    """Alone, together, and under a policy that cuts prompts, pauses, swaps to the host, drops and
    pads at random: the same tokens and log-probabilities; greedy tokens are the first choices of
    the whole forward pass."""
    model = load(family, "cuda", "int4g32")
    alone = [run(model, "orca", [task])[0] for task in tasks()]
    assert run(model, "orca", tasks()) == alone
    policy = RandomPolicy(3, padding=0.5)
    few = {"kv_cache_bytes": 8 * model.kv_block_bytes, "host_kv_bytes": 6 * model.kv_block_bytes}
    assert run(model, policy, tasks(), max_rows=5, max_step_tokens=48, **few) == alone
    assert policy.moves["swap_out"] > 0 and policy.moves["swap_in"] > 0, policy.moves
    for task, (tokens, _, _) in zip(tasks(), alone):
        if task["temperature"] == 0:
            prompt = task["prompt"]
            logits = model.forward(prompt + tokens[:-1], 0, len(prompt))
            assert tokens == logits[len(prompt) - 1 :].argmax(-1).tolist()


def test_python_api(tiny_llama: Path) -> None:
    """Text in, text out; the same tokens as from the CPU as long as its choice is clear."""
    results = {}
    for device in ("cpu", "cuda"):
        model = slicellm.load(tiny_llama, device=device, threads=1)
        with slicellm.Engine(model, "slice", latency=LATENCY) as engine:
            results[device] = engine.generate("the value of the", max_tokens=8, ignore_eos=True)
    assert ops.cuda != "simt" or "SIMT emulator" in model.device
    ids = model.encode("the value of the")
    cpu, cuda = (list(results[device].token_ids) for device in ("cpu", "cuda"))
    logits = slicellm.load(tiny_llama, threads=1).forward(ids + cpu[:-1])[len(ids) - 1 :]
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    unclear = first - second <= 2 * BOUND["float16"] * np.linalg.norm(logits, axis=-1)
    length = int(unclear.argmax()) if unclear.any() else len(cpu)
    assert length > 0
    assert cuda[:length] == cpu[:length]


@pytest.mark.parametrize("name", test_model_fixtures.FILES)
def test_files_written_by_fastllm(name: str, fixtures: Path) -> None:
    """The recorded logits of exact arithmetic on the files' decoded weights, and its tokens where
    they are clear."""
    expected = test_model_fixtures.recorded(fixtures, name)
    model = _core.Model.load(
        str(fixtures / f"{name}.flm"), device="cuda", activation="float32", threads=1
    )
    logits = test_model_fixtures.run(model, expected, "ref_dequant")
    record = expected["ref_dequant"]
    assert test_model_fixtures.max_error(logits[0], record["first_step_logits"]) < 3e-3
    largest = float(np.abs(logits).max())
    test_model_fixtures.check_tokens(
        logits, record, record["top2_margin"], clear=2 * 3e-3 * largest
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_kv_near_float16_kv(family: str, load: Load) -> None:
    """K and V are off by at most 1/254 of each token and head's largest. Chunks give equal bits."""
    model = load(family, "cuda", "float16", kv_cache_dtype="int8")
    got = model.forward(IDS, STEPS, tiny.PROMPT)
    half = load(family, "cuda", "float16").forward(IDS, STEPS, tiny.PROMPT)
    assert 0 < relative_error(got, half) < 2e-2
    assert_same_bits(model.forward(IDS, 0, tiny.PROMPT), got)


def test_kv_types_of_a_gpu(load: Load) -> None:
    with pytest.raises(_core.Unsupported, match="kv_cache_dtype: got float32 on device cuda"):
        load("llama", "cuda", "float16", kv_cache_dtype="float32")
