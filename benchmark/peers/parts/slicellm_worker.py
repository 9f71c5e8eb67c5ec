"""slicellm through its engine, so that sampling and the loop are part of a step.

Usage: slicellm_worker.py MODEL DTYPE THREADS ISA [DEVICE]
"""

from __future__ import annotations

import sys
from typing import Any

from pipe import serve

KV_BYTES = 1 << 30


class Slicellm:
    """Policy orca, greedy sampling; a step's time is the gap between two tokens. Prompts come from
    the prefix cache when they come again."""

    def __init__(self, model: str, dtype: str, threads: str, isa: str, device: str = "cpu") -> None:
        from slicellm import _core

        self.core = _core
        self.model = _core.Model.load(
            model,
            dtype=dtype,
            device=device,
            threads=int(threads),
            kv_cache_dtype="float16",
            isa=isa,
        )
        belief = _core.LatencyModel.from_decode_table([10.0] * 64)  # orca does not ask it
        self.engine = _core.Engine(
            self.model, "orca:max_batch=64", belief, kv_cache_bytes=KV_BYTES, host_kv_bytes=0
        )

    def info(self) -> dict[str, Any]:
        return {"device": self.model.device, "weight_bytes": self.model.weight_bytes}

    def logits(self, ids: list[int]) -> list[float]:
        return list(self.model.forward(ids)[-1].tolist())

    def prefill(self, ids: list[int]) -> float:
        result = self.engine.submit(self.core.TaskSpec(ids, max_tokens=1)).wait()
        if result["cached_tokens"] > 0:
            raise SystemExit("a prompt that is to be computed was cached")
        return float(result["token_times"][0] - result["arrival"])

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        tasks = [self.core.TaskSpec(p, max_tokens=2 * steps, ignore_eos=True) for p in prompts]
        times = [handle.wait()["token_times"] for handle in self.engine.submit_all(tasks)]
        # Steps in which all sequences take part lie between the last one's first token and the
        # first one's last.
        start, end = max(t[0] for t in times), min(t[-1] for t in times)
        steady = [t for t in times[0] if start <= t <= end]
        gaps = [later - earlier for earlier, later in zip(steady, steady[1:])][:steps]
        if len(gaps) < steps:
            raise SystemExit("the sequences do not run together")
        return gaps


if __name__ == "__main__":
    serve(lambda: Slicellm(*sys.argv[1:]))
