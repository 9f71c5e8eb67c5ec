"""benchmark/peers: questions through pipes, shares of the machine's limits, the table."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PEERS = Path(__file__).resolve().parents[1] / "benchmark" / "peers"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peers_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PEERS))
    return load(PEERS / "llama_cpp.py")


def test_a_worker_answers_and_keeps_what_libraries_print_apart(tmp_path: Path) -> None:
    pipe = load(PEERS / "parts" / "pipe.py")
    script = tmp_path / "engine.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(PEERS / 'parts')!r})\nfrom pipe import serve\n"
        "class Engine:\n"
        "    def prefill(self, ids):\n"
        "        os.write(1, b'noise\\n')\n"
        "        return sum(ids)\n"
        "serve(Engine)\n"
    )
    worker = pipe.Worker("engine", [sys.executable, str(script)])
    assert [worker.ask("prefill", ids) for ids in ([1, 2], [5])] == [3, 5]
    worker.close()
    assert worker.process.returncode == 0


def test_an_engine_that_ends_is_named(tmp_path: Path) -> None:
    pipe = load(PEERS / "parts" / "pipe.py")
    worker = pipe.Worker("engine", [sys.executable, "-c", "input()"])
    with pytest.raises(SystemExit, match="the engine worker ended"):
        worker.ask("info")


def test_shares_of_the_limits(command: ModuleType) -> None:
    def machine(read: float) -> dict[str, Any]:
        limits = {"threads": 2, "read_gb_per_s": read, "int8_gop_per_s": 900, "float_gop_per_s": 90}
        work = {"bytes": 4e8, "int8_operations": 9e9, "float_operations": 9e8}
        return {"limits": [limits], "steps": [{"step": "decode", "tokens": 8, **work}]}

    # Rounds of 100 ms, but one of 200 ms that fell into a minute of slow memory.
    rounds = [machine(read) for read in (40, 20, 80)]
    found = command.limits_and_shares(rounds, "decode", 8, [0.1, 0.2, 0.1])
    assert found["limits"]["read_gb_per_s"] == 40
    # 0.4 GB at 40 GB/s; 9 GOP at 900 GOP/s and 0.9 GOP at 90 GOP/s.
    assert found["least_ms"] == pytest.approx({"memory": 10, "arithmetic": 20})
    shares = found["share_of_rounds"]
    assert [s["memory"] for s in shares] == pytest.approx([0.1, 0.1, 0.05])
    assert [s["arithmetic"] for s in shares] == pytest.approx([0.2, 0.1, 0.2])
    assert found["share"] == pytest.approx({"memory": 0.1, "arithmetic": 0.2})


def test_engines_take_part_where_they_can(command: ModuleType) -> None:
    cells = [("decode", 16), ("decode", 32), ("decode", 64), ("prefill", 512)]
    took = {n: [command.takes_part(n, *c) for c in cells] for n in ("slicellm", "llama.cpp")}
    assert took == {"slicellm": [True] * 4, "llama.cpp": [True, True, False, True]}
    assert [command.takes_part("genai", *c) for c in cells] == [True, False, False, True]
    assert [command.takes_part("ctranslate2", *c) for c in cells] == [False] * 3 + [True]


def test_the_table_says_what_is_met(command: ModuleType, tmp_path: Path) -> None:
    def cell(tokens: int, ms: float, ratio: float) -> dict[str, Any]:
        rate = tokens / ms * 1e3
        return {
            "commit": "c0ffee",
            "tokens_per_s": {"slicellm": rate, "llama.cpp": rate / ratio},
            "ratio": {"llama.cpp": ratio},
            "limits": {"read_gb_per_s": 36, "int8_gop_per_s": 900, "float_gop_per_s": 230},
            "least_ms": {"memory": 6, "arithmetic": 0.5},
            "share": {"memory": 0.95, "arithmetic": 0.1},
            "share_of_rounds": [{"memory": 0.95, "arithmetic": 0.1}],
        }

    record = {
        "shape": "qwen2.5-0.5b",
        "dtype": "int4g32",
        "gguf_type": "Q4_0",
        "engines": {"slicellm": {"device": "CPU"}, "llama.cpp": {"llama-cpp-python": "1.2"}},
        "logits_distance": 0.05,
        "cells": {
            "prefill 512": cell(512, 700, 2.0),
            "decode 16": cell(16, 20, 1.7),
            "decode 2": cell(2, 7, 2.0),
            "decode 1": cell(1, 6, 1.31),
        },
    }
    (tmp_path / "qwen2.5-0.5b-int4g32.json").write_text(json.dumps(record))
    lines = command.table.write(tmp_path).read_text().splitlines()
    rows = [[f.strip() for f in line.split("|")[1:7]] for line in lines if "| 95 %" in line]
    assert rows == [
        ["decode 1", "166.7", "127.2", "1.31", "1.3", "yes"],
        ["decode 2", "285.7", "142.9", "2.00", "", ""],
        ["decode 16", "800.0", "470.6", "1.70", "1.8", "**no**"],
        ["prefill 512", "731.4", "365.7", "2.00", "1.5", "yes"],
    ]
    # A cell whose limits were measured around it says so.
    del record["cells"]["decode 2"]["share_of_rounds"]
    assert command.table.cell_line(record, "decode 2").endswith("| ~95 % | ~10 % |")
    # 7 ms are within 1.25 x 6 ms, 20 ms are not; 6 ms of memory are 12 x 0.5 ms of arithmetic.
    assert "| qwen2.5-0.5b | int4g32 | 1: 6.0, 2: 7.0, 16: 20.0 | 2 | 12 |" in lines
