"""Kernels compile without a warning, and those of decode steps keep their values in registers.
Needs nvcc, but no GPU."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "cuda_resources"
ARCHITECTURES = ["80", "120"]  # the oldest and the newest that are supported

PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4heldPf' for 'sm_80'
ptxas info    : Function properties for _Z4heldPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function '_Z7spilledPf' for 'sm_80'
ptxas info    : Function properties for _Z7spilledPf
    24 bytes stack frame, 16 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 24 bytes cumulative stack size
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("cuda_resources", str(TOOL))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_reads_ptxas(tool: ModuleType) -> None:
    held, spilled = tool.parse(PTXAS)
    assert held == {
        "kernel": "_Z4heldPf",
        "architecture": "sm_80",
        "stack_bytes": 0,
        "spill_store_bytes": 0,
        "spill_load_bytes": 0,
        "registers": 40,
        "static_shared_bytes": 2048,
    }
    assert spilled["spill_store_bytes"] == 16 and spilled["spill_load_bytes"] == 8
    assert spilled["registers"] == 255 and spilled["stack_bytes"] == 24


def test_no_decode_kernel_spills(tool: ModuleType) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on the PATH")
    kernels = tool.measure(nvcc, ARCHITECTURES)
    names = " ".join(kernel["kernel"] for kernel in kernels)
    for name in ("narrow_linear", "wide_linear", "attend_kernel", "append_kernel", "norm_kernel"):
        assert name in names
    assert {kernel["architecture"] for kernel in kernels} == {"sm_80", "sm_120"}
    # Those for many tokens may spill a little: wide_linear, attend_kernel<head_dim, int8, wide>.
    many = re.compile(r"wide_linear|attend_kernel<\d+, \w+, true>")
    spills = [k for k in kernels if k["spill_store_bytes"] or k["spill_load_bytes"]]
    assert not [kernel for kernel in spills if not many.search(kernel["kernel"])]
    assert all(k["spill_store_bytes"] < 1024 for k in spills)
