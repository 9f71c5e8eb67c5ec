"""ONNX Runtime GenAI: a model directory made by its model builder, greedy sampling included.

Usage: genai_worker.py DIRECTORY THREADS
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipe import serve


class GenAi:
    """One model; every question computes its prompts anew."""

    def __init__(self, directory: str, threads: str) -> None:
        import numpy
        import onnxruntime_genai

        self.numpy, self.lib = numpy, onnxruntime_genai
        source = Path(directory)
        with tempfile.TemporaryDirectory() as temporary:
            # The same files with the number of threads said.
            for file in source.iterdir():
                (Path(temporary) / file.name).symlink_to(file.resolve())
            config = json.loads((source / "genai_config.json").read_text())
            options = config["model"]["decoder"]["session_options"]
            options["intra_op_num_threads"] = int(threads)
            (Path(temporary) / "genai_config.json").unlink()
            (Path(temporary) / "genai_config.json").write_text(json.dumps(config))
            self.model = onnxruntime_genai.Model(temporary)
        self.generator: Any = None

    def info(self) -> dict[str, Any]:
        return {"onnxruntime-genai": self.lib.__version__}

    def _begin(self, prompts: list[list[int]], steps: int) -> float:
        """Computes the prompts up to their first tokens; the seconds it took."""
        length = len(prompts[0])
        params = self.lib.GeneratorParams(self.model)
        room = length + steps + 2
        params.set_search_options(
            batch_size=len(prompts), min_length=room, max_length=room, do_sample=False
        )
        self.generator = self.lib.Generator(self.model, params)
        start = time.perf_counter()
        self.generator.append_tokens(self.numpy.array(prompts, self.numpy.int32))
        self.generator.generate_next_token()
        return time.perf_counter() - start

    def prefill(self, ids: list[int]) -> float:
        return self._begin([ids], 1)

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        self._begin(prompts, steps)
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.generator.generate_next_token()
            seconds.append(time.perf_counter() - start)
        return seconds


if __name__ == "__main__":
    serve(lambda: GenAi(*sys.argv[1:]))
