"""--device numa on declared nodes: the same bits as on the plain CPU, and clear errors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from api_cases import LATENCY

import slicellm
from slicellm import InvalidArgument

CPUS = sorted(os.sched_getaffinity(0))
TOPOLOGIES = {  # name -> nodes
    "two nodes": f"{CPUS[0]};{CPUS[-1]}",
    "uneven nodes": f"{CPUS[0]}-{CPUS[0]};{','.join(map(str, CPUS))}",
}
PROMPT = [1, 7, 300, 42, 5, 11, 2, 9, 350, 17]


@pytest.fixture(params=TOPOLOGIES)
def topology(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLICELLM_NUMA_TOPOLOGY", TOPOLOGIES[request.param])
    monkeypatch.delenv("FASTLLM_NUMA_THREADS", raising=False)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4g32"])
@pytest.mark.usefixtures("topology")
def test_same_bits_as_cpu(tiny_llama_dir: Path, dtype: str) -> None:
    plain = slicellm.load(tiny_llama_dir, dtype=dtype, threads=1)
    numa = slicellm.load(tiny_llama_dir, dtype=dtype, device="numa", threads=3)
    assert numa.threads == 3
    assert numa.device.endswith("3 threads, NUMA nodes: 2")
    for chunk in (0, 1, 3):
        np.testing.assert_array_equal(numa.forward(PROMPT, chunk), plain.forward(PROMPT, chunk))


@pytest.mark.usefixtures("topology")
def test_engine(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTLLM_NUMA_THREADS", "2")
    numa = slicellm.load(tiny_llama_dir, device="numa")
    assert numa.threads == 4
    answers = []
    for model in (slicellm.load(tiny_llama_dir, threads=1), numa):
        with slicellm.Engine(model, "orca", latency=LATENCY) as engine:
            tasks = [slicellm.Task(PROMPT[i:], max_tokens=12, ignore_eos=True) for i in range(4)]
            answers.append([result.token_ids for result in engine.run(tasks)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SLICELLM_NUMA_TOPOLOGY", "0-", "lists of CPUs"),
        ("SLICELLM_NUMA_TOPOLOGY", "1023", "CPUs that this process may use, not 1023"),
        ("FASTLLM_NUMA_THREADS", "0", "threads of a node, 1 to "),
        ("FASTLLM_NUMA_THREADS", "many", "threads of a node, 1 to "),
    ],
)
def test_bad_environment(
    tiny_llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    expected: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidArgument, match=f'^{variable}: got "{value}", expected {expected}'):
        slicellm.load(tiny_llama_dir, device="numa")
    slicellm.load(tiny_llama_dir, threads=1)  # of no concern to the plain CPU


@pytest.mark.usefixtures("topology")
def test_too_few_threads(tiny_llama_dir: Path) -> None:
    with pytest.raises(
        InvalidArgument, match="threads: got 1, expected at least one for each of 2"
    ):
        slicellm.load(tiny_llama_dir, device="numa", threads=1)
