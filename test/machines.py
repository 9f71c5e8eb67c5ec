"""Profiles of made-up machines that are easy to work out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slicellm._core import LatencyModel
from slicellm.bench.profiles import Profile


def table_machine(
    decode_ms: Sequence[float],
    prefill_ms: float = 20.0,
    prefill_ms_per_token: float = 1.0,
    **fields: Any,
) -> Profile:
    """l(b) = decode_ms[b - 1]; a prompt of n tokens costs prefill_ms + n * prefill_ms_per_token;
    no jitter and plenty of KV unless said."""
    latency = LatencyModel.from_decode_table(decode_ms, prefill_ms, prefill_ms_per_token)
    kv = {"blocks": 1000, "host_blocks": 1000, "block_tokens": 16, "bytes_per_token": 64}
    given = {
        "name": "made-up",
        "about": "A machine for tests.",
        "provenance": {},
        "latency": json.loads(latency.to_json()),
        "jitter": 0.0,
        **kv,
        "max_rows": 8,
        "max_step_tokens": 2048,
        **fields,
    }
    return Profile(**given)
