"""What a loaded model leaves in memory: packed weights, and not the file that they came from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

# Prints growth over the interpreter in bytes: of the peak and, now, of pages of files.
PROBE = """
import sys
from slicellm import _core

def status():
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {key: int(fields[key].split()[0]) << 10 for key in ("VmRSS", "VmHWM", "RssFile")}

before = status()
model = _core.Model.load(sys.argv[1], dtype=sys.argv[2], threads=2)
after = status()
print(after["VmHWM"] - before["VmRSS"], after["RssFile"] - before["RssFile"], model.weight_bytes)
"""


@pytest.fixture(scope="module")
def large_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 MB of embedding and as much of head, little else: the head is most of what is packed."""
    config = tiny_models.llama_config(40_000, hidden=512)
    directory = tmp_path_factory.mktemp("large")
    weights = tiny_models.llama_weights(config)
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"]
    tiny_models.write_safetensors(directory / "model.safetensors", weights)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_the_file_does_not_stay_in_memory(large_directory: Path, dtype: str) -> None:
    out = subprocess.run(
        [sys.executable, "-c", PROBE, str(large_directory), dtype],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, file, packed = (int(number) for number in out.stdout.split())
    assert file < 8 << 20
    # int8: what is converted is held once more until it is packed.
    assert peak < packed * (1 if dtype == "auto" else 2) + (24 << 20)
