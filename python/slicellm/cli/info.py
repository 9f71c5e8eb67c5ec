"""`slicellm info`: what a model file holds, without loading its weights."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import _core
from ..chat import find_chat_template
from ..errors import Error
from ..model import check_path
from ..tokenizer_files import find_tokenizer, tokenizer_family
from .common import model_path

_KINDS = {
    "flm": ".flm file",
    "export_dir": "`ftllm export` directory",
    "hf_dir": "Hugging Face directory",
}
_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}


def describe_model(args: argparse.Namespace) -> dict[str, Any]:
    """Facts about the model of a command line, for people and for JSON."""
    path = check_path(model_path(args))
    file = _core.open_model_file(path)
    spec = _core.model_spec(file)
    heads = spec["layers"] * spec["kv_heads"] * spec["head_dim"]
    facts: dict[str, Any] = {
        "path": path,
        "kind": file.kind,
        "version": file.version,
        "spec": spec,
        "weights": _weights(file),
        "kv_bytes_per_token": {"float16": 4 * heads, "float32": 8 * heads},
        "vocabulary": len(file.tokens),
    }
    try:
        tokenizer, config = find_tokenizer(file, args.tokenizer)
        directory = Path(path) if Path(path).is_dir() else None
        template = find_chat_template(
            tokenizer_family(file), tokenizer, file.config, config, directory
        )
        facts["tokenizer"] = {"source": tokenizer.source, "size": tokenizer.size}
        facts["chat_template"] = template.source
    except Error as error:
        facts["tokenizer"] = {"error": str(error)}
        facts["chat_template"] = None
    return facts


def _weights(file: _core.ModelFile) -> dict[str, Any]:
    """Tensors and bytes of each type; bytes with the scales and minimums of quantised ones."""
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    parameters = 0
    for name in file.names():
        weight = file.weight(name)
        count = 1
        for extent in weight.shape:
            count *= extent
        parameters += count
        kind = weight.dtype
        grouped = len(weight.shape) == 2 and 0 < weight.group_size < weight.shape[1]
        if kind == "int4" and grouped:
            kind = f"int4g{weight.group_size}"
        tensors[kind] += 1
        sizes[kind] += (count * _BITS[weight.dtype] + 7) // 8 + 8 * len(weight.scale)
    types = {k: {"tensors": tensors[k], "bytes": sizes[k]} for k in sorted(tensors)}
    return {"parameters": parameters, "bytes": sum(sizes.values()), "types": types}


def print_model(facts: dict[str, Any]) -> None:
    spec, weights = facts["spec"], facts["weights"]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    version = f", version {facts['version']}" if facts["kind"] == "flm" else ""
    table.add_row("model", facts["path"])
    table.add_row("kind", _KINDS[facts["kind"]] + version)
    table.add_row("family", spec["family"])
    table.add_row(
        "shape",
        f"{spec['layers']} layers of {spec['hidden']}, {spec['heads']} heads of "
        f"{spec['head_dim']} ({spec['kv_heads']} for K and V), inner {spec['inner']}, "
        f"vocabulary {spec['vocab']}",
    )
    table.add_row("context", f"{spec['max_positions']} tokens")
    if not spec["prefill_divisible"]:
        table.add_row("prompts", "attend both ways: computed in one step")
    table.add_row("parameters", f"{weights['parameters'] / 1e6:.1f} million")
    for kind, entry in weights["types"].items():
        table.add_row(f"  {kind}", f"{entry['tensors']} tensors, {megabytes(entry['bytes'])}")
    table.add_row("weights", megabytes(weights["bytes"]))
    half, full = (facts["kv_bytes_per_token"][k] for k in ("float16", "float32"))
    table.add_row("K and V", f"{half} bytes a token in float16, {full} in float32")
    tokenizer = facts["tokenizer"]
    if "error" in tokenizer:
        table.add_row("tokenizer", tokenizer["error"])
    else:
        table.add_row("tokenizer", f"{tokenizer['source']}, {tokenizer['size']} ids")
        table.add_row("chat", facts["chat_template"])
    Console(highlight=False).print(table)


def megabytes(count: float) -> str:
    """
    >>> megabytes(1_500_000)
    '1.5 MB'
    """
    return f"{count / 1e6:.1f} MB"
