"""What steps cost, as the upper bound needs it: the time of every mixture of decode rows and
prefill tokens, apart from what each task adds by its own context.

A latency model (`latency_model.h`) is monotone in the tokens of a step and linear in context, chunk
work and logit rows. So a step of d decode rows and c prefill tokens takes

    base(d, c) + context_s * sum of contexts + chunk_s * sum of chunk work + row_s * prompts ended

where `base` is what the model predicts for (d, c) without context, read for every d and c that a
step may hold: whatever bends or falls in a table is taken as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicellm.bench.saturation import Latency

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MOST_STEPS = 1 << 23  # mixtures that are tabulated; beyond them the machine is too large
_MOST_CONTEXT = 1e6  # tokens; where linearity is looked at
_DECODE_COLUMNS, _MIXED_ROWS, _MIXED_TOKENS = 16, 8, 7


@dataclass(frozen=True)
class StepTimes:
    """Seconds of steps on one machine."""

    base: Floats  # [rows + 1, tokens + 1] by decode rows and prefill tokens; inf: no such step
    context_s: float  # a token of context of a decode row
    chunk_s: float  # a unit of chunk work: prefilling p tokens is p * p / 2 of them in all
    row_s: float  # the logits of a prompt's last token
    additive: bool  # decode and prefill in one step save nothing

    @property
    def least(self) -> float:
        """The shortest step that yields a token."""
        return float(self.base.flat[1:].min())

    def prefill_alone(self, most: int) -> Floats:
        """[most + 1] the least time in which p prompt tokens can be prefilled, cut in any way."""
        chunk = self.base.min(axis=0)[1:]
        best = np.zeros(most + 1)
        for p in range(1, most + 1):
            size = min(p, len(chunk))
            best[p] = np.min(chunk[:size] + best[p - 1 :: -1][:size])
        tokens = np.arange(most + 1)
        return best + self.chunk_s * tokens * tokens / 2 + self.row_s * (tokens > 0)

    def columns(self) -> tuple[Ints, Ints, Floats]:
        """Decode rows, prefill tokens and times of a few steps that stand for all in the linear
        program. The certificate looks at every step, so a poor choice costs sharpness only."""
        tokens = self.base.shape[1] - 1
        decode = self.base[1:, 0]
        # Rows that more rows serve in no more time are never worth choosing.
        useful = 1 + np.flatnonzero(
            decode < np.append(np.minimum.accumulate(decode[::-1])[-2::-1], np.inf)
        )
        few = _spread(useful, _DECODE_COLUMNS)
        d, c = [few, np.zeros(2, np.int64)], [np.zeros(len(few), np.int64), np.array([1, tokens])]
        if not self.additive:
            grid = np.unique(np.geomspace(1, tokens, _MIXED_TOKENS).astype(np.int64))
            mixed_d, mixed_c = np.meshgrid(np.append(0, _spread(useful, _MIXED_ROWS)), grid)
            mixed_d, mixed_c = (
                mixed_d.ravel(),
                np.minimum(mixed_c.ravel(), tokens - mixed_d.ravel()),
            )
            keep = mixed_c > 0
            d.append(mixed_d[keep])
            c.append(mixed_c[keep])
        pairs = np.unique(np.stack([np.concatenate(d), np.concatenate(c)]), axis=1)
        return pairs[0], pairs[1], self.base[pairs[0], pairs[1]]


def _spread(values: Ints, count: int) -> Ints:
    """About `count` of ascending values: the first half of them, then by ratio to the last."""
    half = count // 2
    if len(values) <= count:
        return values
    places = np.geomspace(half, len(values) - 1, count - half).astype(np.int64)
    return np.concatenate([values[:half], values[np.unique(places)]])


def step_times(latency: Latency, max_rows: int, max_step_tokens: int) -> StepTimes | str:
    """The times of `latency`, or why no bound can be drawn from it."""
    rows, tokens = max_rows, max_step_tokens
    if (rows + 1) * (tokens + 1) > _MOST_STEPS:
        return f"steps of up to {rows} rows and {tokens} tokens are too many to tabulate"
    base = np.full((rows + 1, tokens + 1), np.inf)
    for d in range(min(rows, tokens) + 1):
        base[d, : tokens - d + 1] = [
            latency.predict_ms(d + c, d, 0.0, 0.0, 0.0, c)[0] for c in range(tokens - d + 1)
        ]
    base /= 1e3

    def extra(rows: int = 1, context: float = 0.0, work: float = 0.0) -> float:
        return (latency.predict_ms(1, rows, context, work, 0.0, 1)[0]) / 1e3 - float(base[0, 1])

    context_s = extra(0, _MOST_CONTEXT) / _MOST_CONTEXT
    chunk_s = extra(0, 0.0, _MOST_CONTEXT) / _MOST_CONTEXT
    row_s = extra(1)
    for share in (1e-3, 0.1, 0.5):
        mixed = (
            latency.predict_ms(3, 2, share * _MOST_CONTEXT, share * _MOST_CONTEXT, 0.0, 1)[0] / 1e3
        )
        sum_of_parts = base[min(2, rows), 1] + share * _MOST_CONTEXT * (context_s + chunk_s)
        if rows >= 2 and tokens >= 3 and not np.isclose(mixed, sum_of_parts, rtol=1e-6):
            return "the latency model is not linear in context and chunk work"
    if min(context_s, chunk_s, row_s) < 0 or not base.flat[1:].min() > 0:
        return "the latency model has steps that take no time or gain time by more context"
    possible = np.isfinite(base)
    parts = base[:, :1] + base[:1, :]
    additive = bool(np.allclose(base[possible], parts[possible], rtol=1e-9, atol=0))
    return StepTimes(base, context_s, chunk_s, row_s, additive)
