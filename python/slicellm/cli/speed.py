"""`slicellm bench`: how fast a model runs at a given batch, with `ftllm bench`'s flags."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import LatencyModel, _core
from ..errors import InvalidArgument, make_error
from ..model import Model
from .common import add_model_flags, load_model, parse_bytes, real, whole
from .fastllm_flags import MODEL_FLAGS, add_other_flags, check_other_flags

EPILOG = """\
All requests start at once and run to their full length. Prefill speed counts steps that hold prompt
tokens, decode speed steps that hold none; the best and the median of --repeat runs are shown.

examples:
  slicellm bench model.flm
  slicellm bench model.flm --batch 8 --input_tokens 128 --output_tokens 64 -t 2
  slicellm bench qwen/ --dtype int4g128 --repeat 5 --json
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    group = parser.add_argument_group("what is measured")
    count = whole(1, 1 << 20)
    group.add_argument("--input_tokens", type=count, default=64, metavar="N", help="default 64")
    group.add_argument("--output_tokens", type=count, default=256, metavar="N", help="default 256")
    group.add_argument(
        "-b", "--batch", type=whole(1, 4096), default=1, metavar="N", help="requests (default 1)"
    )
    group.add_argument(
        "--warmup", type=whole(0, 100), default=1, metavar="N", help="runs before (default 1)"
    )
    group.add_argument(
        "--repeat", type=whole(1, 1000), default=3, metavar="N", help="runs (default 3)"
    )
    group.add_argument(
        "--prompt_unit",
        metavar="TEXT",
        help="text that fills the prompt (default: token ids at random, the same each time)",
    )
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", type=real(-100, 100), default=0.0, metavar="X", help="0 = most likely"
    )
    group.add_argument("--top_p", type=real(0, 1), default=1.0, metavar="X")
    group.add_argument("--top_k", type=whole(0, 1 << 30), default=1, metavar="N", help="default 1")
    group.add_argument(
        "--repeat_penalty", "--repetition_penalty", type=real(0.01, 100), default=1.0, metavar="X"
    )
    group = parser.add_argument_group("memory and output")
    group.add_argument(
        "--kv_cache_limit", "--kv-cache-limit", type=parse_bytes, default=0, metavar="SIZE"
    )
    group.add_argument("--json", action="store_true", help="print JSON")
    add_other_flags(parser, MODEL_FLAGS)


def run(args: argparse.Namespace) -> None:
    check_other_flags(args, MODEL_FLAGS)
    model = load_model(args)
    length = args.input_tokens + args.output_tokens
    if length > model.spec["max_positions"]:
        expected = f"at most the model's {model.spec['max_positions']} together"
        raise make_error(
            InvalidArgument, "--input_tokens and --output_tokens", f"{length} tokens", expected
        )
    prompts = make_prompts(model, args)
    engine = _core.Engine(
        model.core,
        f"orca:max_batch={args.batch}",
        LatencyModel.from_decode_table([1.0]),  # first come, first served asks for no prediction
        kv_cache_bytes=args.kv_cache_limit,
        host_kv_bytes=0,
        max_rows=args.batch,
        max_step_tokens=max(2048, args.batch),
    )
    try:
        runs = [measure(engine, prompts, args) for _ in range(args.warmup + args.repeat)]
    finally:
        engine.close()
    runs = runs[args.warmup :]
    if args.json:
        config = {"model": model.path, "device": model.device, "fingerprint": model.fingerprint}
        names = ("batch", "input_tokens", "output_tokens", "warmup", "repeat")
        config.update({name: getattr(args, name) for name in names})
        print(json.dumps({"config": config, "runs": runs}, indent=2))
    else:
        print_runs(model, args, runs)


def make_prompts(model: Model, args: argparse.Namespace) -> list[list[int]]:
    """Prompts of the same length; different ones, unless a text fills them."""
    if args.prompt_unit is not None:
        unit = model.tokenizer.encode(args.prompt_unit)
        if not unit:
            raise make_error(InvalidArgument, "--prompt_unit", "no tokens", "a text")
        copies = -(-args.input_tokens // len(unit))
        return [(unit * copies)[: args.input_tokens]] * args.batch
    rng = np.random.default_rng(0)
    table = rng.integers(0, model.spec["vocab"], (args.batch, args.input_tokens))
    return [list(map(int, row)) for row in table]


def measure(
    engine: _core.Engine, prompts: list[list[int]], args: argparse.Namespace
) -> dict[str, float | None]:
    """One run of all prompts: speeds in tokens per second, times in milliseconds."""
    specs = [
        _core.TaskSpec(
            prompt,
            max_tokens=args.output_tokens,
            ignore_eos=True,
            temperature=max(args.temperature, 0.0),
            top_p=args.top_p,
            top_k=args.top_k,
            repetition_penalty=args.repeat_penalty,
        )
        for prompt in prompts
    ]
    outputs = [handle.wait() for handle in engine.submit_all(specs)]
    for output in outputs:
        if output["reason"] != "length":
            expected = "a run to its full length"
            raise make_error(
                InvalidArgument, "bench", output["error"] or output["reason"], expected
            )
    engine.drain_events()
    return summarise(outputs, engine.drain_steps())


def summarise(
    outputs: list[dict[str, Any]], steps: dict[str, npt.NDArray[Any]]
) -> dict[str, float | None]:
    """What the runs' token times and step records say."""
    first = np.array([o["token_times"][0] - o["arrival"] for o in outputs]) * 1000
    times = [np.array(o["token_times"]) for o in outputs]
    gaps = np.array([1000 * (t[-1] - t[0]) / (len(t) - 1) for t in times if len(t) > 1])
    end = max(t[-1] for t in times)
    start = min(o["arrival"] for o in outputs)
    has_prompt = steps["prefill_tokens"] > 0
    prefill_s = float(steps["duration"][has_prompt].sum())
    decode_s = float(steps["duration"][~has_prompt].sum())
    tokens = sum(len(t) for t in times)
    prefill, decode = (
        int(steps["prefill_tokens"].sum()),
        int(steps["decode_rows"][~has_prompt].sum()),
    )
    return {
        "prefill_tokens_per_s": prefill / prefill_s if prefill_s else None,
        "decode_tokens_per_s": decode / decode_s if decode_s else None,
        "total_tokens_per_s": tokens / (end - start) if end > start else None,
        "ttft_ms_mean": float(first.mean()),
        "ttft_ms_min": float(first.min()),
        "ttft_ms_max": float(first.max()),
        "tpot_ms_mean": float(gaps.mean()) if gaps.size else None,
        "tpot_ms_min": float(gaps.min()) if gaps.size else None,
        "tpot_ms_max": float(gaps.max()) if gaps.size else None,
    }


def print_runs(model: Model, args: argparse.Namespace, runs: list[dict[str, float | None]]) -> None:
    print(f"model   {model.path}")
    print(f"device  {model.device}")
    print(
        f"batch   {args.batch} x ({args.input_tokens} prompt + {args.output_tokens} output tokens),"
        f" {len(runs)} runs"
    )

    def values(key: str) -> list[float]:
        return [value for run in runs if (value := run[key]) is not None]

    for label, key in (
        ("prefill", "prefill_tokens_per_s"),
        ("decode", "decode_tokens_per_s"),
        ("total", "total_tokens_per_s"),
    ):
        found = values(key)
        if found:
            best, median = max(found), float(np.median(found))
            print(f"{label:8}{median:10.1f} tokens/s median, {best:.1f} best")
    for label, key in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms")):
        parts = [values(f"{key}_{what}") for what in ("mean", "min", "max")]
        if parts[0]:
            mean, low, high = float(np.median(parts[0])), min(parts[1]), max(parts[2])
            print(f"{label:8}{mean:10.2f} ms mean, {low:.2f} min, {high:.2f} max")
