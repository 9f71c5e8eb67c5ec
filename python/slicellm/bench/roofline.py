"""Profiles of machines that nobody has measured, from data sheets: the roofline model.

A step reads the weights once and the KV of its decode rows (memory), and multiplies every token
with every weight (compute); it takes the longer of the two for the matrix products, then attention:

    overhead + max(weight bytes / bandwidth, 2 * parameters * tokens / flops)
             + context * KV bytes a token / bandwidth + attention pairs * 4 * width * layers / flops

Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009. Real kernels reach a part of either
peak: `bandwidth_share` and `flops_share` are ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from slicellm._core import LatencyModel
from slicellm.bench import checks
from slicellm.bench.profiles import Profile, chunk_step, decode_step, swap_step

BLOCK_TOKENS = 16
MAX_ROWS = 64
MAX_STEP_TOKENS = 2048
JITTER = 0.03  # of step times; ours
SWAP_GB_S = 12.0  # KV between device and host; ours


@dataclass(frozen=True)
class Shape:
    """A decoder's public numbers; `kv_heads` for grouped-query attention."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Weights that each token meets: attention, gated feed-forward, output layer."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.ffn) + self.vocab * self.hidden


@dataclass(frozen=True)
class Hardware:
    """A device's data sheet."""

    bandwidth_gb_s: float
    tflops: float  # dense, of the type that products are computed in
    memory_gb: float  # for weights and KV
    bandwidth_share: float = 0.7
    flops_share: float = 0.5
    overhead_ms: float = 2.0  # launches, sampling, the host's work: a step


def parse_shape(text: str) -> Shape:
    """`layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=128256`."""
    fields = list(Shape.__dataclass_fields__)
    found: dict[str, int] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key not in fields or key in found:
            raise checks.invalid("--shape", text, f"each once: {', '.join(fields)}")
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else value
        found[key] = checks.integer(f"--shape: {key}", number, 1, checks.MAX_TOKENS)
    if len(found) < len(fields):
        raise checks.invalid("--shape", text, f"each once: {', '.join(fields)}")
    shape = Shape(**found)
    if shape.hidden % shape.heads:
        raise checks.invalid("--shape: heads", shape.heads, f"a divisor of hidden {shape.hidden}")
    return shape


def roofline_profile(
    name: str,
    hardware: Hardware,
    shape: Shape,
    *,
    weight_bits: float = 16.0,
    kv_bits: int = 16,
    about: str = "",
    source: str = "",
) -> Profile:
    """The profile of a model of `shape` on `hardware`.

    Args:
        weight_bits: of a weight, scales included (int4 in groups of 128: 4.25).
        kv_bits: of a number in the KV cache.
        source: where the hardware's numbers and the shape are published.

    Raises InvalidArgument where the weights leave no room for KV.
    """
    bandwidth = hardware.bandwidth_gb_s * 1e9 * hardware.bandwidth_share
    flops = hardware.tflops * 1e12 * hardware.flops_share
    weight_bytes = shape.parameters * weight_bits / 8
    kv_bytes = round(2 * shape.layers * shape.kv_heads * shape.head_dim * kv_bits / 8)
    blocks = int((0.9 * hardware.memory_gb * 1e9 - weight_bytes) / (kv_bytes * BLOCK_TOKENS))
    if blocks < 1:
        raise checks.invalid(
            "memory",
            f"{hardware.memory_gb:g} GB",
            f"more than the weights' {weight_bytes / 1e9:.1f} GB",
        )

    def milliseconds(tokens: int, context: float, work: float, swap: float) -> float:
        products = max(weight_bytes / bandwidth, 2 * shape.parameters * tokens / flops)
        attention = context * kv_bytes / bandwidth + work * 4 * shape.hidden * shape.layers / flops
        fixed = hardware.overhead_ms / 1e3 + products if tokens else 0.0
        return 1e3 * (fixed + attention + swap / (SWAP_GB_S * 1e9))

    rows = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
    steps = [decode_step(b, context) for b in rows for context in (0, 512, 4096)]
    chunks = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    steps += [chunk_step(n, start) for n in chunks for start in (0, 2048)]
    steps += [swap_step(size) for size in (1e6, 1e8)]
    samples = [(*s, milliseconds(s[0], s[2], s[3], s[4])) for s in steps]
    fitted = LatencyModel.fit(samples, f"roofline of {name}")
    worst = max(abs(fitted.predict_ms(*s[:6])[0] / s[6] - 1) for s in samples)
    body = json.loads(fitted.to_json())
    body["quantile"] = 1.0
    ours = (
        f"{hardware.bandwidth_share:g} of peak bandwidth, {hardware.flops_share:g} of peak FLOP/s, "
        f"{hardware.overhead_ms:g} ms of overhead a step, swaps at {SWAP_GB_S:g} GB/s"
    )
    return Profile(
        name=name,
        about=about or f"Roofline of {name}; nothing was measured.",
        provenance={
            "hardware": f"{hardware.bandwidth_gb_s:g} GB/s, {hardware.tflops:g} TFLOP/s dense, "
            f"{hardware.memory_gb:g} GB; {source or 'source not given'}",
            "shape": f"{shape.layers} layers, hidden {shape.hidden}, {shape.heads} heads, "
            f"{shape.kv_heads} KV heads, feed-forward {shape.ffn}, vocabulary {shape.vocab}, "
            f"{weight_bits:g} bits a weight: {weight_bytes / 1e9:.2f} GB",
            "latency": f"ours: the roofline of these numbers with {ours}; the fitted model is off "
            f"by at most {100 * worst:.1f} %",
            "jitter": "ours: not published",
            "kv": f"ours: 0.9 of the memory without the weights, at {kv_bytes} bytes a token "
            f"({kv_bits} bits a number); as much on the host",
            "max_rows": "ours",
            "max_step_tokens": "ours",
        },
        latency=body,
        jitter=JITTER,
        blocks=blocks,
        host_blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        bytes_per_token=kv_bytes,
        max_rows=MAX_ROWS,
        max_step_tokens=MAX_STEP_TOKENS,
    )
