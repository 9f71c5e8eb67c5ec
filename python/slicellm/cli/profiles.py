"""`slicellm profiles`, `slicellm roofline` and `slicellm calibrate --profile`: machines for the
simulator."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..bench import report
from ..bench.arrivals import Gamma
from ..bench.profiles import MAX_COUNT, Profile, load_profile, names
from ..bench.roofline import Hardware, parse_shape, roofline_profile
from ..bench.runner import Run, Runner
from ..bench.saturation import SAMPLE, offered_work
from ..bench.workload import load_workload, prompt_ids
from ..errors import InvalidArgument, make_error, show
from ..model import Model
from .common import Parser, real, whole

MAX_ROWS = 64  # the engine's default
RESIDUALS = 65  # quantiles kept
SERVED_SEED = 999_983  # of the tasks that a profile is measured with

ROOFLINE_EPILOG = """\
A step reads the weights and the KV of its decode rows once and multiplies each token with each
weight; it takes the longer of memory and compute. Nothing is measured: use it to see what a machine
that is not here could do.

example:
  slicellm roofline --bandwidth 204.8 --tflops 42.5 --memory 64 --weight-bits 4.25 \\
    --shape layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=128256 -o orin.json
  benchmark --executor sim --latency-profile orin.json --slice --poisson
"""


def add_profiles_flags(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this one, in full")


def add_roofline_flags(parser: Parser) -> None:
    positive = real(1e-6, 1e9)
    g = parser.add_argument_group("machine, from its data sheet")
    g.add_argument("--bandwidth", metavar="GB/S", type=positive, required=True, help="of memory")
    g.add_argument(
        "--tflops", metavar="T", type=positive, required=True, help="dense, of the compute type"
    )
    g.add_argument(
        "--memory", metavar="GB", type=positive, required=True, help="for weights and KV"
    )
    for flag, default, words in (
        ("--bandwidth-share", Hardware.bandwidth_share, "of peak bandwidth that kernels reach"),
        ("--flops-share", Hardware.flops_share, "of peak FLOP/s that kernels reach"),
    ):
        g.add_argument(
            flag,
            metavar="X",
            type=real(0.01, 1),
            default=default,
            help=f"share {words} (default {default:g})",
        )
    g.add_argument(
        "--overhead",
        metavar="MS",
        type=real(0, 1e6),
        default=Hardware.overhead_ms,
        help=f"of a step (default {Hardware.overhead_ms:g})",
    )
    g = parser.add_argument_group("model")
    g.add_argument(
        "--shape",
        metavar="SPEC",
        required=True,
        help="layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=128256",
    )
    g.add_argument(
        "--weight-bits",
        metavar="B",
        type=real(1, 32),
        default=16.0,
        help="bits a weight, scales included (default 16; int4g128: 4.25)",
    )
    g.add_argument(
        "--kv-bits", metavar="B", type=whole(2, 32), default=16, help="bits a K or V (default 16)"
    )
    g = parser.add_argument_group("output")
    g.add_argument("-o", "--output", metavar="FILE", required=True, help="the profile")
    g.add_argument("--name", metavar="NAME", help="its name (default: the file's)")
    g.add_argument("--source", metavar="TEXT", default="", help="where the numbers are published")


def profiles(args: argparse.Namespace) -> None:
    """Lists the profiles that ship, or prints one with its provenance."""
    for name in names() if args.name is None else [args.name]:
        profile = load_profile(name)
        truth = profile.truth()
        print(f"{profile.name}: {profile.about}")
        rows = [b for b in (1, 2, 4, 8, 15, 32, 64, 128) if b <= profile.max_rows]
        steps = ", ".join(f"l({b}) {truth.decode_step_ms(b):.1f}" for b in rows)
        print(f"  {steps} ms; {profile.blocks * profile.block_tokens} tokens of KV")
        if args.name is not None:
            for what, text in profile.provenance.items():
                print(f"  {what}: {text}")


def roofline(args: argparse.Namespace) -> None:
    """Writes a profile from data sheets."""
    report.check_writable(args.output, "-o")
    profile = roofline_profile(
        args.name or Path(args.output).stem,
        Hardware(
            args.bandwidth,
            args.tflops,
            args.memory,
            args.bandwidth_share,
            args.flops_share,
            args.overhead,
        ),
        parse_shape(args.shape),
        weight_bits=args.weight_bits,
        kv_bits=args.kv_bits,
        source=args.source,
    )
    _write(args.output, profile)


def _serve(model: Model, latency: _core.LatencyModel, seconds: float) -> Run:
    """`edge` at saturation under orca for about so long: what steps take while serving."""
    workload = load_workload("edge")
    _, prompts, outputs = workload.lengths(SAMPLE, SERVED_SEED)
    work = offered_work(prompts, outputs, latency, MAX_ROWS)
    count = max(10, int(work.saturation * seconds))
    tasks = workload.columns(count, SERVED_SEED, Gamma(work.saturation), work.slo_scale).tasks()
    vocabulary, ends = model.spec["vocab"], model.spec["eos_ids"]
    ids = [
        prompt_ids(i, task.prompt_tokens, SERVED_SEED, vocabulary, ends)
        for i, task in enumerate(tasks)
    ]
    return Runner(model.core, latency.to_json(), max_rows=MAX_ROWS).run("orca", tasks, ids)


def predicted_seconds(
    latency: _core.LatencyModel, steps: Mapping[str, npt.NDArray[Any]]
) -> npt.NDArray[np.float64]:
    """What `latency` expects of recorded steps (columns of the engine's step records)."""
    columns = [steps[k] for k in ("tokens", "rows", "context", "chunk_work", "swap_bytes")]
    columns.append(steps["prefill_tokens"] + steps["padding_tokens"])
    rows = zip(*(column.tolist() for column in columns))
    return np.array([latency.predict_ms(*row)[0] / 1000 for row in rows])


def _weighted_quantiles(
    ratios: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Quantiles at equal steps, a ratio counting by the time it stands for: what disturbs a short
    step by half of itself must not be drawn for a long one as often."""
    order = np.argsort(ratios)
    reached = np.cumsum(weights[order]) - weights[order] / 2
    places = np.linspace(0, 1, RESIDUALS) * weights.sum()
    found: npt.NDArray[np.float64] = np.interp(places, reached, ratios[order])
    return found


def measured_profile(
    model: Model, latency: _core.LatencyModel, name: str, seconds: float
) -> Profile:
    """The profile of a model on this machine: its calibration, as corrected by about `seconds` of
    serving, with the residuals of the steps served."""
    engine = _core.Engine(model.core, "orca", latency)
    try:
        stats = engine.stats()
    finally:
        engine.close()
    served = _serve(model, latency, seconds)
    body = json.loads(served.latency_json)
    body["quantile"] = 1.0
    truth = _core.LatencyModel.from_json(json.dumps(body))
    expected = predicted_seconds(truth, served.steps)
    ratios = served.steps["duration"] / expected
    residuals = _weighted_quantiles(ratios, expected)
    machine = report.machine()
    where = f"{machine['cpu']}, {model.threads} threads"
    bytes_per_token = model.kv_bytes_per_token
    return Profile(
        name=name,
        about=f"{Path(model.path).name} on {where}: measured by slicellm calibrate.",
        provenance={
            "latency": f"measured on {where}, {machine['system']}: {body['provenance']}; corrected "
            f"by {len(ratios)} steps of edge at saturation under orca",
            "residuals": "measured: of those steps over the corrected medians, by time",
            "kv": f"measured: what an engine takes of this machine's free memory; "
            f"{bytes_per_token} bytes a token by the model's shape",
            "max_rows": "ours: the engine's default",
            "max_step_tokens": "ours: the engine's default",
        },
        latency=body,
        jitter=0.0,
        blocks=int(stats["total_blocks"]),
        host_blocks=int(stats["total_host_blocks"]),
        block_tokens=round(model.core.kv_block_bytes / bytes_per_token),
        bytes_per_token=min(bytes_per_token, MAX_COUNT),
        max_rows=MAX_ROWS,
        max_step_tokens=2048,
        residuals=tuple(float(f"{value:.4f}") for value in residuals),
    )


def write_measured(
    path: str, model: Model, latency: _core.LatencyModel, name: str | None, seconds: float
) -> None:
    """`slicellm calibrate --profile FILE`."""
    _write(path, measured_profile(model, latency, name or Path(path).stem, seconds))


def _write(path: str, profile: Profile) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", profile.name):
        expected = "letters, digits, dots, dashes"
        raise make_error(InvalidArgument, "--name", show(profile.name), expected)
    Path(path).write_text(profile.to_json(), encoding="utf-8")
    print(f"{profile.name}: {path}")
