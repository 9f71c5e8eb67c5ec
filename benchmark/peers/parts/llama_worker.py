"""llama.cpp through llama-cpp-python's low-level calls: llama_decode on a llama_batch, no sampling.

Usage: llama_worker.py MODEL.gguf THREADS
"""

from __future__ import annotations

import sys
import time
from typing import Any

from pipe import serve

UBATCH = 512
ROOM = 64  # tokens of a sequence's context beyond its prompt


class LlamaCpp:
    """One model; one context at a time."""

    def __init__(self, model: str, threads: str) -> None:
        import llama_cpp

        self.lib, self.threads = llama_cpp, int(threads)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {model}")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.words = llama_cpp.llama_vocab_n_tokens(vocab)
        self.context: Any = None
        self.prompts: list[list[int]] = []

    def info(self) -> dict[str, Any]:
        system = self.lib.llama_print_system_info().decode().strip()
        return {"llama-cpp-python": self.lib.__version__, "system_info": system}

    def _begin(self, prompts: list[list[int]], room: int) -> float:
        """A context with the prompts computed; the seconds of the last."""
        lib = self.lib
        if self.context is not None:
            lib.llama_free(self.context)
        params = lib.llama_context_default_params()
        params.n_ctx = len(prompts) * (len(prompts[0]) + room)
        params.n_batch = params.n_ubatch = UBATCH
        params.n_seq_max = len(prompts)
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = params.type_v = lib.GGML_TYPE_F16
        params.no_perf = True
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context")
        seconds = 0.0
        for sequence, ids in enumerate(prompts):
            last = len(ids) - 1
            seconds = self._decode([(t, i, sequence, i == last) for i, t in enumerate(ids)])
        self.prompts = prompts
        return seconds

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> float:
        """Seconds of one step of (token, position, sequence, wants logits)."""
        batch = self.lib.llama_batch_init(len(rows), 0, 1)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.n_tokens = len(rows)
        start = time.perf_counter()
        status = self.lib.llama_decode(self.context, batch)
        self.lib.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        self.lib.llama_batch_free(batch)
        if status != 0:
            raise SystemExit(f"llama_decode returned {status}")
        return seconds

    def logits(self, ids: list[int]) -> list[float]:
        self._begin([ids], ROOM)
        return list(self.lib.llama_get_logits_ith(self.context, -1)[: self.words])

    def prefill(self, ids: list[int]) -> float:
        return self._begin([ids], 0)

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        if prompts != self.prompts:
            self._begin(prompts, max(ROOM, steps))
        length = len(prompts[0])
        memory = self.lib.llama_get_memory(self.context)
        for sequence in range(len(prompts)):
            self.lib.llama_memory_seq_rm(memory, sequence, length, -1)
        return [
            self._decode([(100 + i, length + i, s, True) for s in range(len(prompts))])
            for i in range(steps)
        ]


if __name__ == "__main__":
    serve(lambda: LlamaCpp(*sys.argv[1:]))
