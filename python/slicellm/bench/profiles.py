"""Profiles: machines that the simulator can stand for, as JSON files with provenance.

    {"name", "about", "provenance": {NUMBER: what is published and where, or "ours: ..."},
     "latency": a latency model (LatencyModel.to_json: kind table or piecewise),
     "jitter": sigma; a step takes the latency model's median times exp(jitter * N(0, 1)),
     "residuals": measured instead, with a jitter of 0: quantiles of time / median at equal steps,
     "kv": {"blocks", "host_blocks", "block_tokens", "bytes_per_token"},
     "max_rows": most tasks in a step, "max_step_tokens": most tokens in a step}

The profile is the simulator's truth. A policy is shown a belief, made as a calibration would make
it: noisy measurements of the truth, their medians fitted; while it runs the belief corrects itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from slicellm._core import LatencyModel
from slicellm.bench import checks
from slicellm.bench.lengths import read_text
from slicellm.bench.workload import generator
from slicellm.errors import Error

REPEATS = 9  # measurements of a step whose median a belief is fitted to
MAX_COUNT = (1 << 31) - 1
_DECODE_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)  # what `slicellm calibrate` measures
_CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048)
_CONTEXT = 512
# tokens, rows, context, chunk_work, swap_bytes, prefill_tokens
Step = tuple[int, int, float, float, float, int]


def decode_step(rows: int, context: int) -> Step:
    """`rows` decode rows with `context` tokens in KV each."""
    return rows, rows, float(rows * context), 0.0, 0.0, 0


def chunk_step(tokens: int, start: int = 0) -> Step:
    """One prefill chunk after `start` tokens."""
    return tokens, 1, 0.0, tokens * (start + tokens / 2), 0.0, tokens


def swap_step(size: float) -> Step:
    """KV of `size` bytes moved between device and host."""
    return 0, 0, 0.0, 0.0, size, 0


@dataclass(frozen=True)
class Profile:
    """A machine; the fields are those of the file."""

    name: str
    about: str
    provenance: Mapping[str, str]
    latency: Mapping[str, Any]
    jitter: float
    blocks: int
    host_blocks: int
    block_tokens: int
    bytes_per_token: int
    max_rows: int
    max_step_tokens: int
    residuals: tuple[float, ...] = ()

    def truth(self) -> LatencyModel:
        """How long steps take, jitter apart."""
        return LatencyModel.from_json(json.dumps(self.latency))

    def belief(self, seed: int) -> LatencyModel:
        """What a calibration of this machine comes to believe; the noise is drawn from `seed`."""
        truth, rng = self.truth(), generator(seed, "belief")

        def measured(step: Step) -> list[float]:
            """Milliseconds of single measurements; none if such a step takes no time."""
            median = truth.predict_ms(*step)[0]
            if self.residuals:
                places = np.linspace(0, 1, len(self.residuals))
                noise = np.interp(rng.random(REPEATS), places, self.residuals)
            else:
                noise = np.exp(self.jitter * rng.standard_normal(REPEATS))
            return [float(median * factor) for factor in noise] if median > 0 else []

        if self.latency["kind"] == "table":
            return self._table_belief(measured)
        steps = [decode_step(rows, 16) for rows in _DECODE_ROWS]
        steps += [decode_step(rows, _CONTEXT) for rows in (1, 4, 8, 16, 32)]
        steps += [chunk_step(tokens) for tokens in _CHUNKS]
        steps += [chunk_step(tokens, _CONTEXT) for tokens in (32, 128, 512)]
        steps += [swap_step(16 * self.block_tokens * self.bytes_per_token)]
        times = [(step, measured(step)) for step in steps]
        samples = [(*step, float(np.median(ms))) for step, ms in times if ms]
        belief = LatencyModel.fit(samples, f"measured on {self.name}, with noise")
        ratios = [t / belief.predict_ms(*step)[0] for step, ms in times for t in ms]
        return _with_quantile(belief, ratios)

    def _table_belief(self, measured: Any) -> LatencyModel:
        rows = range(1, len(self.latency["decode_seconds"]) + 1)
        times = [measured(decode_step(b, 0)) for b in rows]
        decode = [float(np.median(ms)) for ms in times]
        # A line through the medians of prompts of several lengths, each weighted by its size.
        prompts = [(n, float(np.median(ms))) for n in _CHUNKS for ms in [measured(chunk_step(n))]
                   if ms]  # fmt: skip
        fixed, per_token = 0.0, 0.0
        if prompts:
            weight = np.array([1 / ms for _, ms in prompts])
            design = np.array([[1.0, n] for n, _ in prompts]) * weight[:, None]
            fixed, per_token = np.maximum(
                np.linalg.lstsq(design, np.ones(len(prompts)), rcond=None)[0], 0.0
            ).tolist()
        ratios = [t / median for ms, median in zip(times, decode) for t in ms]
        return _with_quantile(LatencyModel.from_decode_table(decode, fixed, per_token), ratios)

    def to_json(self) -> str:
        """The file's text."""
        body = {
            "name": self.name,
            "about": self.about,
            "provenance": dict(self.provenance),
            "jitter": self.jitter,
            **({"residuals": list(self.residuals)} if self.residuals else {}),
            "kv": {
                "blocks": self.blocks,
                "host_blocks": self.host_blocks,
                "block_tokens": self.block_tokens,
                "bytes_per_token": self.bytes_per_token,
            },
            "max_rows": self.max_rows,
            "max_step_tokens": self.max_step_tokens,
        }
        # The latency model in the layout that the core writes: a sample a line.
        text = json.dumps(body, indent=1, ensure_ascii=False)
        return f'{text[:-2]},\n "latency": {self.truth().to_json().strip()}\n}}\n'


def _with_quantile(belief: LatencyModel, ratios: list[float]) -> LatencyModel:
    """The belief with the 95th percentile of measured / predicted of single measurements."""
    body = json.loads(belief.to_json())
    body["quantile"] = max(1.0, float(np.quantile(ratios, 0.95)))
    return LatencyModel.from_json(json.dumps(body))


def names() -> list[str]:
    """The profiles that come with the package."""
    folder = resources.files("slicellm") / "profiles"
    files = [file.name for file in folder.iterdir()]
    return sorted(name.removesuffix(".json") for name in files if name.endswith(".json"))


def load_profile(name_or_path: str) -> Profile:
    """A profile of the package by name, or a file."""
    if name_or_path in names():
        file = resources.files("slicellm") / "profiles" / f"{name_or_path}.json"
        return parse_profile(file.read_text(encoding="utf-8"), name_or_path)
    if not Path(name_or_path).is_file():
        expected = f"{', '.join(names())} or a profile file"
        raise checks.invalid("--latency-profile", name_or_path, expected)
    return parse_profile(read_text(name_or_path, "--latency-profile"), name_or_path)


def _residuals(where: str, body: Mapping[str, Any]) -> tuple[float, ...]:
    given = body.get("residuals", [])
    expected = "at least two numbers above 0 that ascend, with a jitter of 0"
    if not isinstance(given, list) or (given and body.get("jitter") != 0):
        raise checks.invalid(where, given, expected)
    values = tuple(checks.number(where, value, 0, 1e6, above=True) for value in given)
    if len(values) == 1 or list(values) != sorted(values):
        raise checks.invalid(where, given, expected)
    return values


def parse_profile(text: str, where: str = "profile") -> Profile:
    """A profile from a file's text; every fault is one sentence."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise checks.invalid(where, str(error), "a JSON object") from None
    body = checks.mapping(where, spec)
    keys = (
        "name", "about", "provenance", "latency", "jitter", "residuals", "kv", "max_rows",
        "max_step_tokens",
    )  # fmt: skip
    checks.known_keys(where, body, keys)
    provenance = checks.mapping(f"{where}: provenance", body.get("provenance", {}))
    kv = checks.mapping(f"{where}: kv", body.get("kv"))
    sizes = {"blocks": 1, "host_blocks": 0, "block_tokens": 1, "bytes_per_token": 4}
    checks.known_keys(f"{where}: kv", kv, tuple(sizes))
    latency = checks.mapping(f"{where}: latency", body.get("latency"))
    try:
        LatencyModel.from_json(json.dumps(latency))
    except Error as error:
        raise checks.invalid(f"{where}: latency", error.value, error.expected) from None
    return Profile(
        name=checks.text(f"{where}: name", body.get("name")),
        about=checks.text(f"{where}: about", body.get("about")),
        provenance={k: checks.text(f"{where}: provenance.{k}", v) for k, v in provenance.items()},
        latency=latency,
        jitter=checks.number(f"{where}: jitter", body.get("jitter"), 0, 1),
        residuals=_residuals(f"{where}: residuals", body),
        **{
            key: checks.integer(f"{where}: kv.{key}", kv.get(key), low, MAX_COUNT)
            for key, low in sizes.items()
        },
        max_rows=checks.integer(f"{where}: max_rows", body.get("max_rows"), 1, 1 << 16),
        max_step_tokens=checks.integer(
            f"{where}: max_step_tokens", body.get("max_step_tokens"), 1, checks.MAX_TOKENS
        ),
    )
