"""Every family in every number format, beside the numpy float64 references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from reference import chatglm2, models, tiny
from reference.layers import Array, Weights
from reference.loading import decode_steps, load, relative_error

from slicellm import _core

FAMILIES = list(models.FAMILIES)
IDS = tiny.token_ids()
STEPS = decode_steps(tiny.PROMPT, len(IDS))


def converted(config: dict[str, Any], tensors: dict[str, Array], dtype: str) -> dict[str, Array]:
    """The values that linear layers hold after conversion; others as they are."""
    return {
        name: _core.Weight.from_numpy(name, value).convert(dtype).decode()
        if models.is_linear(name, value)
        else value
        for name, value in models.with_own_head(config, tensors).items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_within_1e_5(family: str, isa: str, tmp_path: Path) -> None:
    config = models.FAMILIES[family]
    tensors = tiny.weights(config)
    path = tiny.write_directory(tmp_path, config, tensors)
    model = load(path, isa, dtype="float32", kv_cache_dtype="float32")
    got = model.forward(IDS, STEPS, tiny.PROMPT)
    expected = models.logits(config, Weights(tensors), IDS, tiny.PROMPT)
    assert relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_float16_weights_within_1e_3(family: str, isa: str, tmp_path: Path) -> None:
    """Against the original float32 weights; and 1e-5 against the same rounded weights."""
    config = models.FAMILIES[family]
    tensors = tiny.weights(config)
    path = tiny.write_directory(tmp_path, config, tensors)
    got = load(path, isa, dtype="float16", kv_cache_dtype="float32").forward(
        IDS, STEPS, tiny.PROMPT
    )
    original = models.logits(config, Weights(tensors), IDS, tiny.PROMPT)
    assert relative_error(got, original) < 1e-3
    rounded = Weights(
        {
            name: value.astype(np.float16) if models.is_linear(name, value) else value
            for name, value in models.with_own_head(config, tensors).items()
        }
    )
    assert relative_error(got, models.logits(config, rounded, IDS, tiny.PROMPT)) < 1e-5


@pytest.mark.parametrize("stored", ["F16", "BF16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_16_bit_types(family: str, stored: str, isa: str, tmp_path: Path) -> None:
    """Files of float16 and bfloat16, kept as they are or widened: float32 arithmetic on their
    values, 1e-5. `auto` is float16 for both (as in fastllm), which bfloat16 values mostly fit."""
    config = models.FAMILIES[family]
    tensors = tiny.weights(config)
    path = tiny.write_directory(tmp_path, config, tensors, stored)
    values = {
        name: (
            value.astype(np.float16)
            if stored == "F16"
            else tiny.from_bfloat16(tiny.to_bfloat16(value))
        )
        for name, value in tensors.items()
    }
    expected = models.logits(config, Weights(values), IDS, tiny.PROMPT)
    for dtype in ("float32", "float16" if stored == "F16" else "bfloat16", "auto"):
        model = load(path, isa, dtype=dtype, kv_cache_dtype="float32")
        assert relative_error(model.forward(IDS, STEPS, tiny.PROMPT), expected) < 1e-5, dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_float16_kv_cache_effect(family: str, tmp_path: Path) -> None:
    """Measured: a float16 cache moves logits by 9e-5 (ChatGLM-6B) to 4e-4 of their norm."""
    config = models.FAMILIES[family]
    tensors = tiny.weights(config)
    path = tiny.write_directory(tmp_path, config, tensors)
    got = load(path, dtype="float32").forward(IDS, STEPS, tiny.PROMPT)
    expected = models.logits(config, Weights(tensors), IDS, tiny.PROMPT)
    assert 1e-6 < relative_error(got, expected) < 1e-3


@pytest.mark.parametrize("dtype", ["int8", "int4", "int4g32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_weights_exactly(family: str, dtype: str, isa: str, tmp_path: Path) -> None:
    """The same decoded weights, activations in float32: within 1e-4 (measured below 1e-6)."""
    config = models.FAMILIES[family]
    tensors = tiny.weights(config)
    path = tiny.write_directory(tmp_path, config, tensors)
    model = load(path, isa, dtype=dtype, activation="float32", kv_cache_dtype="float32")
    decoded = Weights(converted(config, tensors, dtype))
    expected = models.logits(config, decoded, IDS, tiny.PROMPT)
    assert relative_error(model.forward(IDS, STEPS, tiny.PROMPT), expected) < 1e-4


def block_steps(x: Array, group: int) -> Array:
    """The distance of two 8-bit codes for each element of x [n, width]: the largest magnitude of
    its block over 127. Blocks are at most 64 columns and end with a weight group."""
    steps = np.empty_like(x)
    width = x.shape[1]
    for first in range(0, width, group):
        for begin in range(first, min(first + group, width), 64):
            block = slice(begin, min(begin + 64, first + group, width))
            steps[:, block] = np.abs(x[:, block]).max(axis=1, keepdims=True) / 127
    return steps


@pytest.mark.parametrize("dtype", ["int8", "int4", "int4g32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_activations_within_derived_bound(
    family: str, dtype: str, isa: str, tmp_path: Path
) -> None:
    """8-bit activations, beside the same decoded weights with exact activations.

    Derivation. A linear layer's input block of at most 64 columns with the largest magnitude m is
    rounded to multiples of s = m / 127, so each element is off by at most s / 2, and by a uniform
    error of deviation s / sqrt(12) on average. For y = W x the error W d then has the expected
    square sum_i |W_i|^2 s_i^2 / 12 over columns i. With columns of like size that is
    |dy| / |y| = (m / rms(x)) / (127 sqrt(12)), which is 0.4 to 0.7 % for m = 2 to 3 rms(x), the
    range of a block of 32 to 64 values. A model of L layers has 4 L + 1 linear layers in a row
    whose errors are independent and pass the residual stream with a gain of about one, so logits
    are off by sqrt(4 L + 1) times that: 1.2 to 2.1 % for two layers.

    The bound used is the same model carried through the reference instead of estimated: uniform
    noise of +-s/2 on every linear layer's input in float64, root mean square over seeds, times
    two for the spread between one rounding pattern and the mean. Half of it must be there as
    well, or activations were not quantised.
    """
    config = models.FAMILIES[family]
    tensors = tiny.weights(config)
    path = tiny.write_directory(tmp_path, config, tensors)
    model = load(path, isa, dtype=dtype, activation="int8", kv_cache_dtype="float32")
    decoded = converted(config, tensors, dtype)
    exact = models.logits(config, Weights(decoded), IDS, tiny.PROMPT)

    def off(logits: Array) -> float:
        return float(np.linalg.norm(logits - exact) / np.linalg.norm(exact))

    group = 32 if dtype == "int4g32" else 1 << 20
    rng = np.random.default_rng(5)

    def noise(x: Array, name: str) -> Array:
        return x + rng.uniform(-0.5, 0.5, x.shape) * block_steps(x, group)

    noisy = Weights(decoded, disturb=noise)
    seeds = [off(models.logits(config, noisy, IDS, tiny.PROMPT)) for _ in range(6)]
    typical = float(np.sqrt(np.mean(np.square(seeds))))
    assert 0.003 < typical < 0.04  # as derived
    error = off(model.forward(IDS, STEPS, tiny.PROMPT))
    assert typical / 2 < error < 2 * typical


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_activations_as_documented(family: str, isa: str, tmp_path: Path) -> None:
    """The scheme itself, computed in float64: codes are x / s rounded to nearest even.

    Agreement is to float32 rounding (measured 6e-8), unless some value lies on the edge between
    two codes: then its token and all that see it go another, equally good way. So the middle token
    is compared, and in most of the dtypes.
    """
    config = models.FAMILIES[family]
    tensors = tiny.weights(config)
    path = tiny.write_directory(tmp_path, config, tensors)
    errors = []
    for dtype, group in (("int8", 1 << 20), ("int4", 1 << 20), ("int4g32", 32)):

        def rounded(x: Array, name: str, group: int = group) -> Array:
            steps = block_steps(x, group)
            return np.rint(x / steps) * steps

        w = Weights(converted(config, tensors, dtype), disturb=rounded)
        expected = models.logits(config, w, IDS, tiny.PROMPT)
        model = load(path, isa, dtype=dtype, activation="int8", kv_cache_dtype="float32")
        difference = np.linalg.norm(model.forward(IDS, STEPS, tiny.PROMPT) - expected, axis=1)
        errors.append(float(np.median(difference / np.linalg.norm(expected, axis=1))))
    assert sorted(errors)[1] < 1e-6, errors


@pytest.mark.parametrize("version", [0, 1])
def test_old_flm_files_are_chatglm(version: int, isa: str, tmp_path: Path) -> None:
    """Version 0 states nothing: layers and sizes are those of the tensors, heads are 32."""
    config = {**tiny.CHATGLM1, "hidden_size": 256, "num_attention_heads": 32}
    tensors = tiny.weights(config)
    text = {"num_attention_heads": "32", "layernorm_epsilon": "1e-05"}
    path = tiny_models.write_flm(
        tmp_path / "old.flm", text, [], tensors, use_score=False, version=version
    )
    model = load(path, isa, kv_cache_dtype="float32")
    assert model.file.version == version and model.spec["layers"] == 2
    assert model.spec["bos_id"] == 130004 and model.spec["eos_ids"] == [130005]
    expected = models.logits(config, Weights(tensors), IDS, tiny.PROMPT)
    assert relative_error(model.forward(IDS, STEPS, tiny.PROMPT), expected) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "int4"])
@pytest.mark.parametrize("later", [False, True])
def test_long_chatglm_variants(later: bool, dtype: str, tmp_path: Path) -> None:
    """rope_ratio divides positions in ChatGLM2-6B-32K and multiplies the base in ChatGLM3."""
    config = {**tiny.CHATGLM2, "rope_ratio": 4.0}
    if later:
        config["classifier_dropout"] = None
    tensors = tiny.weights(config)
    path = tiny.write_directory(tmp_path, config, tensors)
    model = load(path, dtype=dtype, activation="float32", kv_cache_dtype="float32")
    scales = {"base_scale": 4.0} if later else {"position_scale": 4.0}
    w = Weights(converted(config, tensors, dtype))
    expected = chatglm2.logits(config, w, IDS, **scales)
    assert relative_error(model.forward(IDS, STEPS), expected) < 1e-5
