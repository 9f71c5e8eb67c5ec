"""CTranslate2, for prefill only: a model directory made by its converter, int8.

Usage: ctranslate2_worker.py DIRECTORY THREADS
"""

from __future__ import annotations

import sys
import time
from typing import Any

from pipe import serve


class CTranslate2:
    """A prompt's first token by generate_batch; tokens are the words "w0", "w1", ..."""

    def __init__(self, directory: str, threads: str) -> None:
        import ctranslate2

        self.lib = ctranslate2
        self.generator = ctranslate2.Generator(
            directory, device="cpu", compute_type="int8", intra_threads=int(threads)
        )

    def info(self) -> dict[str, Any]:
        return {"ctranslate2": self.lib.__version__}

    def prefill(self, ids: list[int]) -> float:
        words = [f"w{i}" for i in ids]
        start = time.perf_counter()
        self.generator.generate_batch(
            [words], max_length=1, min_length=1, include_prompt_in_result=False
        )
        return time.perf_counter() - start


if __name__ == "__main__":
    serve(lambda: CTranslate2(*sys.argv[1:]))
