"""The recorded cells as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# What is aimed at: ratios to llama.cpp at batch 1, at batches 4 to 32, in prefill.
AIMS = {"int4g32": (1.3, 1.8, 1.5), "int8": (1.2, 1.6, 1.5), "float16": (1.1, 1.3, 1.3)}
NO_ROOM = 0.92  # float16 at batch 1: this share of the memory bandwidth will do as well
FLAT = 1.25  # a step that takes at most this much longer than that of batch 1 is bound by memory

Record = dict[str, Any]


def aim(dtype: str, cell: str) -> float | None:
    """The ratio to llama.cpp aimed at, if there is one."""
    kind, tokens = cell.split()
    one, several, prefill = AIMS[dtype]
    if kind == "prefill":
        return prefill
    return one if tokens == "1" else several if 4 <= int(tokens) <= 32 else None


def cell_line(record: Record, cell: str) -> str:
    """A row of the table of ratios."""
    found = record["cells"][cell]
    rates, ratios, share = found["tokens_per_s"], found["ratio"], found["share"]
    goal = aim(record["dtype"], cell)
    ours = ratios.get("llama.cpp")
    verdict = "" if goal is None or ours is None else "yes" if ours >= goal else "**no**"
    if (record["dtype"], cell) == ("float16", "decode 1") and share["memory"] >= NO_ROOM:
        verdict = "yes"
    about = "" if "share_of_rounds" in found else "~"
    others = [f"{n} {rates[n]:.0f} ({r:.2f})" for n, r in ratios.items() if n != "llama.cpp"]
    fields = [
        cell,
        f"{rates['slicellm']:.1f}",
        f"{rates['llama.cpp']:.1f}" if ours is not None else "",
        f"{ours:.2f}" if ours is not None else "",
        f"{goal}" if goal else "",
        verdict,
        ", ".join(others),
        f"{about}{100 * share['memory']:.0f} %",
        f"{about}{100 * share['arithmetic']:.0f} %",
    ]
    return "| " + " | ".join(fields) + " |"


def ordered(record: Record) -> list[str]:
    """Its cells: decode by batch, then prefill."""
    return sorted(record["cells"], key=lambda c: (c.split()[0], int(c.split()[1])))


def section(record: Record, isa: str) -> list[str]:
    """One shape and weight type."""
    engines = record["engines"]
    cells = ordered(record)
    limits = [record["cells"][cell]["limits"] for cell in cells]
    low, high = (
        {key: choose(x[key] for x in limits) for key in limits[0]} for choose in (min, max)
    )
    spans = [
        f"{low[key]:.0f}-{high[key]:.0f} {unit}"
        for key, unit in (
            ("read_gb_per_s", "GB/s read"),
            ("int8_gop_per_s", "int8 GOP/s"),
            ("float_gop_per_s", "float32 GFLOP/s"),
        )
    ]
    versions = [
        f"{key} {value}"
        for info in engines.values()
        for key, value in info.items()
        if key in ("llama-cpp-python", "onnxruntime-genai", "ctranslate2")
    ]
    commits = sorted({record["cells"][cell]["commit"] for cell in cells})
    title = f"## {record['shape']}, {record['dtype']} and {record['gguf_type']}"
    return [
        title + (f", slicellm held to {isa}" if isa else ""),
        "",
        f"{engines['slicellm']['device']}; {', '.join(versions)}; commit {', '.join(commits)}; "
        f"logits differ by {record['logits_distance']:.1e}. Limits measured with the cells: "
        f"{', '.join(spans)}.",
        "",
        "| cell | slicellm | llama.cpp | ratio | aim | met | others, tokens/s (ratio) "
        "| of read | of arithmetic |",
        "|---|---|---|---|---|---|---|---|---|",
        *(cell_line(record, cell) for cell in cells),
        "",
    ]


def curve(record: Record) -> str | None:
    """A row of the table of l(b), if batch 1 is recorded."""
    cells = [c for c in ordered(record) if c.startswith("decode")]
    if "decode 1" not in cells:
        return None
    steps = {
        int(c.split()[1]): 1e3 * int(c.split()[1]) / record["cells"][c]["tokens_per_s"]["slicellm"]
        for c in cells
    }
    flat = [batch for batch, ms in steps.items() if ms <= FLAT * steps[1]]
    least = record["cells"]["decode 1"]["least_ms"]
    fields = [f"{b}: {ms:.1f}" for b, ms in steps.items()]
    return (
        f"| {record['shape']} | {record['dtype']} | {', '.join(fields)} | {max(flat)} "
        f"| {least['memory'] / least['arithmetic']:.0f} |"
    )


def write(results: Path) -> Path:
    """results/summary.md from the JSON files beside it."""
    records = {path: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    lines = [
        "# slicellm beside other engines",
        "",
        "Written by `python benchmark/peers/llama_cpp.py`; its head says how it measures. Tokens/s "
        "are medians, ratios medians of the rounds' own ratios. `of read`: bytes of weights, keys "
        "and values over time, of the memory bandwidth measured before it in the same round, "
        "median of the rounds; `~`: measured before and after the cell alone, though it may have "
        "changed amid it. `of arithmetic`: the same for exact int8 (float16: float32) "
        "multiply-adds. Memory may be read faster than the plain loop reads, as part of a small "
        "model stays in the last cache. "
        f"float16 at batch 1 meets its aim with {100 * NO_ROOM:.0f} % of read as well.",
        "",
    ]
    curves = []
    for path, record in records.items():
        isa = path.stem.removeprefix(f"{record['shape']}-{record['dtype']}").removeprefix("-")
        lines += section(record, isa)
        row = None if isa else curve(record)
        curves += [row] if row else []
    lines += [
        "## Steps by batch, l(b)",
        "",
        f"`flat to`: the largest batch whose step takes at most {FLAT} times that of batch 1. "
        "`crossing`: the batch at which, by the measured limits, arithmetic takes as long as "
        "reading the weights.",
        "",
        "| shape | weights | ms at batch | flat to | crossing |",
        "|---|---|---|---|---|",
        *curves,
        "",
    ]
    path = results / "summary.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path
