"""Runs each test that takes a `device` on every device that the module _ops has."""

from __future__ import annotations

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """cpu always; simt where _ops was built with the emulator; cuda with --device cuda."""
    if "device" not in metafunc.fixturenames:
        return
    from ops_module import ops

    names = ["cpu"]
    if ops.cuda == "simt" or metafunc.config.getoption("--device") == "cuda":
        names.append(ops.cuda or "cuda")
    metafunc.parametrize("device", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """An `_ops.Device`: the CPU, the emulated GPU or the GPU."""
    from ops_module import ops

    return ops.Device("cpu" if request.param == "cpu" else "cuda")
