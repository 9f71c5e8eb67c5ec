"""PyTorch through transformers: float16, greedy, a static cache, decode steps compiled where that
works.

Usage: torch_worker.py MODEL DEVICE     (cuda:0; cpu for a rehearsal)
"""

from __future__ import annotations

import sys
import time
from typing import Any

from pipe import serve


class Torch:
    """One model; a cache for each batch."""

    def __init__(self, model: str, device: str) -> None:
        import torch
        import transformers

        self.torch, self.transformers, self.device = torch, transformers, device
        transformers.logging.set_verbosity_error()
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16)
        self.model = loaded.to(device).eval()
        self.step = self.model.forward
        self.compiled = "not tried"
        if device != "cpu":
            self._compile()

    def _compile(self) -> None:
        """The compiled step, if it runs; else the plain one, and why."""
        self.step = self.torch.compile(self.model.forward, mode="reduce-overhead", fullgraph=True)
        try:
            self.decode([[1, 2, 3]], 3)
            self.compiled = "yes"
        except Exception as error:  # whatever a compiler may throw
            self.step, self.compiled = self.model.forward, f"no: {str(error).splitlines()[0]}"

    def info(self) -> dict[str, Any]:
        return {
            "torch": self.torch.__version__,
            "transformers": self.transformers.__version__,
            "compiled": self.compiled,
        }

    def _run(self, forward: Any, ids: Any, cache: Any, past: int) -> tuple[Any, float]:
        """The next token of each sequence, on the device, and the seconds it took."""
        torch = self.torch
        positions = torch.arange(past, past + ids.shape[1], device=self.device)[None]
        self._wait()
        start = time.perf_counter()
        with torch.inference_mode():
            logits = forward(
                input_ids=ids, past_key_values=cache, position_ids=positions, logits_to_keep=1
            ).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True).clone()
        self._wait()
        return tokens, time.perf_counter() - start

    def _wait(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def _begin(self, prompts: list[list[int]], room: int) -> tuple[Any, Any, float]:
        length = len(prompts[0]) + room
        cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=length)
        ids = self.torch.tensor(prompts, device=self.device)
        tokens, seconds = self._run(self.model.forward, ids, cache, 0)
        return cache, tokens, seconds

    def logits(self, ids: list[int]) -> list[float]:
        with self.torch.inference_mode():
            out = self.model(
                input_ids=self.torch.tensor([ids], device=self.device), use_cache=False
            )
        return list(out.logits[0, -1].float().tolist())

    def prefill(self, ids: list[int]) -> float:
        return self._begin([ids], 1)[2]

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        cache, tokens, _ = self._begin(prompts, steps)
        times = []
        for i in range(steps):
            tokens, seconds = self._run(self.step, tokens, cache, len(prompts[0]) + i)
            times.append(seconds)
        return times


if __name__ == "__main__":
    serve(lambda: Torch(*sys.argv[1:]))
