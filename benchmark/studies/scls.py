#!/usr/bin/env python3
"""SCLS against static batching (SLS) and conservative continuous batching (ILS), simulated.

Requests with ShareGPT's lengths arrive as a Poisson process of so many requests a second and
instance; one and eight instances serve them to the end. SLS and ILS get them in turn (round robin);
SCLS's central scheduler makes batches of one slice and offloads them by max-min. Nobody has an SLO;
what is measured is what arXiv 2406.13511 measures. Runs every cell of overhead x instances x rate x
seed x policy that has no result yet, then writes the tables and the comparison with the
published +315.8 % from whatever cells there are.

    python benchmark/studies/scls.py --trace ../shared/traces/sharegpt_lengths.csv
    python benchmark/studies/scls.py --report
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study

from slicellm import _core
from slicellm.bench.arrivals import Gamma
from slicellm.bench.lengths import read_trace
from slicellm.bench.profiles import Profile
from slicellm.bench.roofline import Hardware, Shape, roofline_profile
from slicellm.bench.workload import generator
from slicellm.cli.benchmark_flags import listed

KEYS = ("overhead_ms", "instances", "rate_per_instance", "seed", "label")
PUBLISHED = 315.8  # percent more throughput than SLS and ILS, at most
CAP = 1024  # tokens of output; also the longest prompt that takes part
MAX_ROWS = 256
MAX_STEP_TOKENS = 32768  # a static batch computes all of its prompts at once

# label -> policy of the instances, dispatcher
POLICIES = {
    "SLS, batches of 8": ("static:batch=8", "round_robin"),
    "SLS, batches of 16": ("static:batch=16", "round_robin"),
    "SLS, KV is the only cap": (f"static:batch={MAX_ROWS}", "round_robin"),
    "ILS, 8 in parallel": ("ils:max_parallel=8", "round_robin"),
    "ILS, 16 in parallel": ("ils:max_parallel=16", "round_robin"),
    "SCLS, S = 64": (f"static:batch={MAX_ROWS}", "scls:slice=64"),
    "SCLS, S = 128": (f"static:batch={MAX_ROWS}", "scls:slice=128"),
    "SCLS, S = 256": (f"static:batch={MAX_ROWS}", "scls:slice=256"),
    "SCLS, S = 512": (f"static:batch={MAX_ROWS}", "scls:slice=512"),
    "orca, KV is the only cap": (f"orca:max_batch={MAX_ROWS}", "round_robin"),
}
METRICS = {
    "throughput_rps": "requests/s",
    "mean_response_s": "mean response (s)",
    "p95_response_s": "p95 response (s)",
    "invalid_tokens": "invalid tokens a request",
    "pad_tokens": "pad tokens a request",
    "batch_rows": "rows a step",
    "slices": "slices a request",
    "early_return": "early returns",
    "completion_std_s": "std of completion over instances (s)",
}


@functools.lru_cache
def machine(overhead_ms: float) -> Profile:
    """Llama-2-13B on an A100 80 GB: the roofline of public numbers; nothing was measured. The
    overhead of a step tells an engine of fused kernels (2 ms) from an eager framework (30 ms); both
    are ours."""
    return roofline_profile(
        "a100-80g-llama2-13b",
        Hardware(bandwidth_gb_s=2039, tflops=312, memory_gb=80, overhead_ms=overhead_ms),
        Shape(layers=40, hidden=5120, heads=40, kv_heads=40, ffn=13824, vocab=32000),
        source="NVIDIA's A100 80 GB SXM data sheet and Llama-2-13B's public configuration",
    )


@functools.lru_cache(maxsize=1)  # all policies of a cell serve the same
def requests(trace: Path, rate: float, count: int, seed: int) -> dict[str, Any]:
    """Columns of `count` requests: pairs of lengths from the trace, both cut at CAP."""
    lengths = read_trace(trace)
    rows = lengths.rows(count, generator(seed, "trace"))
    return {
        "arrival": Gamma(rate).times(count, generator(seed, "arrivals")),
        "prompt_tokens": np.minimum(lengths.prompt_tokens[rows], CAP),
        "output_tokens": np.minimum(lengths.output_tokens[rows], CAP),
        "max_tokens": np.full(count, CAP),
        "class_id": np.zeros(count, dtype=np.int64),
    }


def metrics(run: Mapping[str, Any]) -> dict[str, float | None]:
    """The study's metrics of one run. The times are those at which results were ready."""
    count = len(run["finish"])
    response = run["finish"] - run["arrival"]
    state = json.loads(run["dispatch_state"])
    batches, slices = state.get("batches"), state.get("rows")
    return {
        "throughput_rps": count / run["end"],
        "mean_response_s": float(np.mean(response)),
        "p95_response_s": float(np.quantile(response, 0.95)),
        "invalid_tokens": run["invalid_tokens"] / count,
        "pad_tokens": run["pad_tokens"] / count,
        "batch_rows": run["decode_rows"] / run["decode_steps"],
        "slices": slices / count if batches else None,
        "early_return": state["early_returns"] / batches if batches else None,
        "completion_std_s": float(np.std([i["end"] for i in run["instances"]])),
    }


def setup(args: argparse.Namespace) -> dict[str, Any]:
    """What all cells share."""
    profiles = {f"{overhead:g}": machine(overhead) for overhead in args.overheads}
    return {
        "trace": args.trace.name,
        "seconds": args.seconds,
        "max_tokens": CAP,
        "max_rows": MAX_ROWS,
        "max_step_tokens": MAX_STEP_TOKENS,
        "policies": {label: " behind ".join(pair) for label, pair in POLICIES.items()},
        "profiles": {
            name: {**p.provenance, "blocks": p.blocks, "jitter": p.jitter}
            for name, p in profiles.items()
        },
    }


def measure(
    overhead: float, instances: int, rate: float, seed: int, label: str, trace: Path, seconds: float
) -> dict[str, Any]:
    """One cell: so many requests a second and instance."""
    profile = machine(overhead)
    policy, dispatch = POLICIES[label]
    count = round(rate * instances * seconds)
    run = _core.simulate(
        policy,
        profile.truth(),
        profile.belief(seed),
        [("request", None, None, None, 1.0)],
        requests(trace, rate * instances, count, seed),
        instances=instances,
        dispatch=dispatch,
        blocks=profile.blocks,
        block_tokens=profile.block_tokens,
        jitter=profile.jitter,
        seed=seed,
        max_rows=MAX_ROWS,
        max_step_tokens=MAX_STEP_TOKENS,
    )
    return {"requests": count, **metrics(run)}


# label -> metrics of each seed
Group = dict[str, list[Mapping[str, Any]]]


def grouped(cells: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[float, int, float], Group]]:
    """Cells by overhead, instances and rate, in that order."""
    groups: dict[tuple[float, int, float], Group] = {}
    for cell in cells:
        key = cell["overhead_ms"], cell["instances"], cell["rate_per_instance"]
        groups.setdefault(key, {}).setdefault(cell["label"], []).append(cell)
    return sorted(groups.items())


def best(group: Group, kind: str) -> tuple[float, str]:
    """The highest mean throughput of the variants of one kind, and its label."""
    means = {
        label: float(np.mean([m["throughput_rps"] for m in runs]))
        for label, runs in group.items()
        if label.startswith(kind)
    }
    label = max(means, key=lambda name: means[name])
    return means[label], label


def write_report(results: Path) -> None:
    """summary.md from the cells."""
    config, cells = study.read_setup(results), study.read_cells(results)
    groups = grouped(cells)
    profile = next(iter(config["profiles"].values()))
    gains = [
        "",
        f"## Beside the published +{PUBLISHED} %",
        "",
        "Throughput of the best SCLS over SLS and ILS: over the best and over the smallest size.",
        "",
        "| overhead (ms) | instances | requests/s each | SCLS | over best SLS | over SLS of 8 "
        "| over best ILS | over ILS of 8 | std of completion (s): SLS of 8, ILS of 8, SCLS |",
        "|---" * 9 + "|",
    ]
    tables: list[str] = []
    for (overhead, instances, rate), group in groups:
        ours, label = best(group, "SCLS")
        percent = [
            f"{100 * (ours / best(group, kind)[0] - 1):+.1f} %"
            for kind in ("SLS", "SLS, batches of 8", "ILS", "ILS, 8")
        ]
        stds = [
            f"{np.mean([m['completion_std_s'] for m in group[name]]):.3g}"
            for name in ("SLS, batches of 8", "ILS, 8 in parallel", label)
        ]
        row = [f"{overhead:g}", f"{instances}", f"{rate:g}", f"{ours:.3g} ({label[6:]})", *percent]
        row.append(", ".join(stds) if instances > 1 else "")
        gains.append("| " + " | ".join(row) + " |")
        plural = "s" if instances > 1 else ""
        title = (
            f"## Overhead {overhead:g} ms, {instances} instance{plural}, {rate:g} requests/s each"
        )
        tables += ["", title, "", "| | " + " | ".join(METRICS.values()) + " |"]
        tables.append("|---" * (len(METRICS) + 1) + "|")
        for name in POLICIES:
            if name in group:
                texts = [study.spread_text([m[metric] for m in group[name]]) for metric in METRICS]
                tables.append(f"| {name} | " + " | ".join(texts) + " |")
    head = [
        "# SCLS against SLS and ILS, simulated",
        "",
        f"Made by `{config.get('command', 'benchmark/studies/scls.py')}` at commit "
        f"{config['commit']}, seeds {', '.join(map(str, sorted({c['seed'] for c in cells})))}. "
        "Mean ± half the spread over seeds.",
        "",
        f"* Workload: {config['trace']}, pairs drawn without replacement, prompts and outputs cut "
        f"at {CAP} tokens, every request's cap {CAP}; Poisson arrivals for {config['seconds']:g} s,"
        " then to the end. No SLOs.",
        f"* Each instance: {profile['hardware']}; {profile['shape']}. Latency: "
        f"{profile['latency']}. {profile['blocks']} KV blocks of 16 tokens, at most {MAX_ROWS} rows"
        f" and {MAX_STEP_TOKENS} tokens a step.",
        "* Overhead a step, ours: 2 ms as in an engine of fused kernels, 30 ms as in an eager "
        "framework; the rest of the machine is the same.",
        "* Throughput: requests / time of the last one's end. Response: from arrival to the last "
        "token, which is told at once and not when its batch returns. Invalid tokens: decode rows "
        "computed past their request's end. Pad tokens: of prompts filled up to the batch's "
        "longest. Rows a step: of steps that decode, padding included. SCLS: lambda 0.5, Gamma 3 "
        "s, zeta 0.9, our reading of the paper.",
        "* `KV is the only cap`: as many rows as KV for every row's prompt and cap can be reserved "
        "for. `orca` so is no part of the published comparison: it shows what continuous batching "
        "does without a conservative cap.",
    ]
    lines = head + gains + tables
    (results / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(gains))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = study.TRACES / "sharegpt_lengths.csv"
    parser.add_argument("--trace", type=Path, default=default, help="CSV of lengths")
    parser.add_argument("--overheads", type=listed(float), default=[2.0, 30.0], help="ms a step")
    parser.add_argument("--instances", type=listed(int), default=[1, 8])
    parser.add_argument("--rates", type=listed(float), default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--seeds", type=listed(int), default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=300.0, help="of arrivals (default 300)")
    parser.add_argument("--results", type=Path, default=study.RESULTS / "scls")
    parser.add_argument("--report", action="store_true", help="only the summary, no runs")
    args = parser.parse_args()
    if not args.report:
        study.begin(args.results, setup(args))
        grid = itertools.product(args.overheads, args.instances, args.rates, args.seeds, POLICIES)
        run = functools.partial(measure, trace=args.trace, seconds=args.seconds)
        study.fill(args.results, KEYS, grid, run)
    write_report(args.results)


if __name__ == "__main__":
    main()
