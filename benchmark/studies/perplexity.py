#!/usr/bin/env python3
"""Perplexity of a small trained model in every weight type, beside PyTorch's in float32.

    python benchmark/studies/perplexity.py MODEL --torch-python PYTHON --output FILE.json

MODEL is the folder that `perplexity_train.py` makes in a few minutes; where it is not there yet,
PYTHON, an interpreter with torch, transformers and sentencepiece, is made to run that. Each type is
exported as `ftllm export` does it and loaded from the .flm. The text is the documentation of the
modules that were held out, encoded by the exported tokenizer, in windows of 256 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import study

from slicellm.convert import export
from slicellm.model import Model

DTYPES = ("float32", "float16", "bfloat16", "int8", "int4g32", "int4g64", "int4g128", "int4")
INTEGER_DTYPES = ("int8", "int4")  # beginnings of types that may meet quantised activations
BAR = 0.01  # perplexity beyond float32's, of int8 and of int4 in groups


def log_likelihood(logits: npt.NDArray[np.float32], ids: Sequence[int]) -> float:
    """Nats, summed over the tokens but the first, of logits [tokens, vocab]."""
    rows = logits[:-1].astype(np.float64)
    best = rows.max(axis=1)
    totals = best + np.log(np.exp(rows - best[:, None]).sum(axis=1))
    return float((rows[np.arange(len(rows)), ids[1:]] - totals).sum())


def windows(model: Model, reference: dict[str, Any]) -> list[list[int]]:
    """The held-out text as the model's own tokenizer encodes it; it must do it as the trainer's."""
    texts = [model.encode(text) for text in reference["texts"]]
    for text, got, expected in zip(reference["texts"], texts, reference["ids"]):
        if got != expected:
            sys.exit(f"the tokenizer differs from the trainer's on {text[:60]!r}")
    flat = [token for ids in texts for token in ids]
    size = reference["window"]
    return [flat[i : i + size] for i in range(0, len(flat) - size + 1, size)]


def perplexity(model: Model, data: list[list[int]]) -> float:
    total = sum(log_likelihood(model.core.forward(ids), ids) for ids in data)
    return math.exp(-total / sum(len(ids) - 1 for ids in data))


def measure(folder: Path, reference: dict[str, Any], threads: int | None) -> list[dict[str, Any]]:
    """Perplexity of each type, with each way in which its weights may meet activations."""
    rows = []
    with tempfile.TemporaryDirectory() as made:
        for dtype in DTYPES:
            path = Path(made) / f"{dtype}.flm"
            export(str(folder), str(path), dtype)
            row: dict[str, Any] = {"dtype": dtype, "bytes": path.stat().st_size}
            ways = ("float32", "int8") if dtype.startswith(INTEGER_DTYPES) else ("float32",)
            for activation in ways:
                model = Model(path, threads=threads, activation=activation)
                found = perplexity(model, windows(model, reference))
                row[activation] = found
                row[f"{activation}_over_torch"] = found / reference["perplexity"] - 1
                print(
                    f"{dtype:10} {activation:8} {found:8.3f} "
                    f"{100 * row[f'{activation}_over_torch']:+.2f} %",
                    flush=True,
                )
            rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--torch-python", help="interpreter that trains a missing model")
    parser.add_argument("-t", "--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--output", type=Path, help="result file")
    args = parser.parse_args()
    if not (args.model / "reference.json").exists():
        if args.torch_python is None:
            parser.error(f"no trained model in {args.model}: --torch-python says who makes it")
        script = Path(__file__).with_name("perplexity_train.py")
        subprocess.run([args.torch_python, str(script), str(args.model)], check=True)
    reference = json.loads((args.model / "reference.json").read_text(encoding="utf-8"))
    rows = measure(args.model, reference, args.threads)
    judged = [r for r in rows if r["dtype"].startswith(("int8", "int4g"))]
    met = all(r[f"{way}_over_torch"] < BAR for r in judged for way in ("float32", "int8"))
    print(f"int8 and int4 in groups within {100 * BAR:.0f} %: {'yes' if met else 'no'}")
    result = {
        **study.origin(),
        "trained": reference["about"],
        "tokens": reference["tokens"],
        "torch_float32": reference["perplexity"],
        "dtypes": rows,
        "within_the_bar": met,
    }
    study.write(args.output, result)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
