"""How much work a workload offers to a machine, from the machine's latency model.

Work of a task with p prompt and n output tokens = the predicted time of its prefill alone, which
also gives the first token, + (n - 1) * min over b of l(b) / b, its decode steps at the best batch.
**Saturation** is the rate in tasks/s at which the mean work a second equals one second. l(b) is
taken at the workload's mean context, the mean KV length that its decode steps see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from slicellm.bench import checks
from slicellm.bench.tasks import Counts

PAPER_DECODE_MS = 14.0  # l(1) of the SLICE paper's GPU: its targets are meant for that speed
SAMPLE = 4096  # tasks that stand for a workload's mean; seed 0, so it does not vary with the run


class Latency(Protocol):
    """What is asked of a latency model; `slicellm._core.LatencyModel` has it."""

    def decode_step_ms(self, rows: int, mean_context: float = 0.0) -> float: ...

    def predict_ms(
        self,
        tokens: int,
        rows: int,
        context: float = 0.0,
        chunk_work: float = 0.0,
        swap_bytes: float = 0.0,
        prefill_tokens: int = 0,
    ) -> tuple[float, float]: ...


@dataclass(frozen=True)
class OfferedWork:
    """Mean cost of one task of a workload on a machine."""

    mean_context: float  # tokens in KV that a decode step sees
    decode_1_ms: float  # l(1) at that context
    best_rows: int  # the b with the least l(b) / b
    best_decode_ms: float  # l(b) / b there
    prefill_ms: float  # a task's prefill, mean
    decode_ms: float  # a task's decode steps, mean

    @property
    def saturation(self) -> float:
        """Tasks per second at which offered work equals 1."""
        return 1000.0 / (self.prefill_ms + self.decode_ms)

    @property
    def slo_scale(self) -> float:
        """The factor of `--slo-scale auto`: l(1) / 14 ms."""
        return self.decode_1_ms / PAPER_DECODE_MS


def offered_work(prompts: Counts, outputs: Counts, latency: Latency, max_rows: int) -> OfferedWork:
    """The mean over tasks of `prompts` and `outputs` tokens, on a machine that runs at most
    `max_rows` rows a step."""
    steps = np.maximum(outputs - 1, 0).astype(np.float64)
    # Step k of a task (k = 1 .. n-1) sees p + k tokens, on the average p + n/2.
    context = prompts + outputs / 2.0
    total = steps.sum()
    mean_context = float((steps * context).sum() / total) if total > 0 else float(prompts.mean())
    per_row = [latency.decode_step_ms(b, mean_context) / b for b in range(1, max_rows + 1)]
    best = int(np.argmin(per_row))
    lengths, counts = np.unique(prompts, return_counts=True)
    prefill = [
        latency.predict_ms(int(p), 1, 0.0, float(p) * float(p) / 2.0, 0.0, int(p))[0]
        for p in lengths
    ]
    prefill_ms = float(np.average(prefill, weights=counts))
    decode_ms = float(steps.mean() * per_row[best])
    if prefill_ms + decode_ms <= 0:  # one token each, on a machine whose prefill is free
        raise checks.invalid("workload", "tasks that take 0 ms", "some work for this machine")
    return OfferedWork(
        mean_context=mean_context,
        decode_1_ms=latency.decode_step_ms(1, mean_context),
        best_rows=best + 1,
        best_decode_ms=float(per_row[best]),
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
    )
