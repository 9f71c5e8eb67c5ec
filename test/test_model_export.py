"""Exported models give their source's logits, for every family and both kinds of output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import models, tiny
from reference.loading import decode_steps, load, relative_error

from slicellm import convert

FAMILIES = [*models.FAMILIES, "llama_yarn", "llama_llama3", "llama_dynamic"]
IDS = tiny.token_ids()
STEPS = decode_steps(tiny.PROMPT, len(IDS))


@pytest.fixture(params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = models.FAMILIES.get(request.param) or tiny.CASES[request.param]
    return tiny.write_directory(tmp_path / "source", config, tiny.weights(config))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("output", ["model.flm", "exported"])
def test_float_exports_are_equal(source: Path, output: str, dtype: str, tmp_path: Path) -> None:
    """Bit for bit: a float export holds the very values that loading the source computes."""
    path = tmp_path / output
    convert.export(str(source), str(path), dtype)
    expected = load(source, dtype=dtype).forward(IDS, STEPS, tiny.PROMPT)
    # A float32 directory is one that Hugging Face could have written: its dtype must be asked for.
    model = load(path, dtype=dtype)
    assert model.file.kind == ("flm" if output.endswith(".flm") else "hf_dir")
    assert np.array_equal(model.forward(IDS, STEPS, tiny.PROMPT), expected)


@pytest.mark.parametrize("dtype", ["int8", "int4", "int4g32"])
@pytest.mark.parametrize("output", ["model.flm", "exported"])
def test_quantised_exports(source: Path, output: str, dtype: str, tmp_path: Path) -> None:
    """Directories store the grid itself; .flm files store minimum and maximum, from which a reader
    recovers it up to float32 rounding (relative 1e-6 of a weight's range)."""
    path = tmp_path / output
    convert.export(str(source), str(path), dtype)
    options = {"activation": "float32", "kv_cache_dtype": "float32"}
    expected = load(source, dtype=dtype, **options).forward(IDS, STEPS, tiny.PROMPT)
    got = load(path, **options).forward(IDS, STEPS, tiny.PROMPT)
    if output.endswith(".flm"):
        assert relative_error(got, expected) < 5e-6
    else:
        assert np.array_equal(got, expected)
