"""What the tests share: the recorded fixtures of other software and tiny models of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
from api_cases import LATENCY
from reference.loading import ISAS

import slicellm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="cuda: tests of ops, whole models and engines also run on device cuda: the GPU (a "
        "build with USE_CUDA=ON) or the emulated one (SLICELLM_SIMT=ON)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test that takes a `device_name`, itself or by a fixture, on the CPU and with
    --device cuda there too, but for those marked cpu_only; `-k "[cuda"` then leaves out the CPU."""
    if "device_name" in metafunc.fixturenames:
        names = ["cpu"]
        one = metafunc.definition.get_closest_marker("cpu_only")
        if metafunc.config.getoption("--device") == "cuda" and one is None:
            names.append("cuda")
        metafunc.parametrize("device_name", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def device_name(request: pytest.FixtureRequest) -> str:
    """The `device` of the models that a test loads."""
    return str(request.param)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Directory of model files written by other software; tests skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    path = Path(os.environ.get("SLICELLM_FIXTURES", default))
    if not path.is_dir():
        pytest.skip(f"no fixtures at {path} (set SLICELLM_FIXTURES)")
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer llama .flm with a sentencepiece vocabulary; text in, noise out."""
    return tiny_models.make_llama_flm(tmp_path_factory.mktemp("tiny") / "tiny_llama.flm")


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a Hugging Face directory: config, safetensors, tokenizer, chat template."""
    return tiny_models.make_llama_directory(tmp_path_factory.mktemp("tiny") / "tiny_llama")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of the CPU kernels; `reference.loading.load` skips what is missing."""
    return str(request.param)


# Of the Python API; the tests of the core make their own of the same names.


@pytest.fixture(scope="session")
def model(tiny_llama: Path) -> slicellm.Model:
    return slicellm.load(tiny_llama, threads=1)


@pytest.fixture(scope="session")
def patient_model(tmp_path_factory: pytest.TempPathFactory) -> slicellm.Model:
    """The tiny model with room for answers that take far longer than any test."""
    path = tmp_path_factory.mktemp("patient") / "patient.flm"
    return slicellm.load(tiny_models.make_llama_flm(path, positions=1 << 17), threads=1)


@pytest.fixture
def engine(patient_model: slicellm.Model) -> Iterator[slicellm.Engine]:
    with slicellm.Engine(patient_model, "orca", latency=LATENCY, record_events=True) as engine:
        yield engine
        engine.wait_idle()
        engine.core.check_integrity()
