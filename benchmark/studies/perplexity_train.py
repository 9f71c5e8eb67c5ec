#!/usr/bin/env python3
"""Trains a small llama on the documentation strings of Python's standard library, with PyTorch.

A tool of `perplexity.py`, which runs it where its model is not there yet;
it needs torch, transformers and sentencepiece, and nothing of slicellm:

    python benchmark/studies/perplexity_train.py FOLDER

FOLDER becomes a Hugging Face directory (config.json, model.safetensors, tokenizer.model) with
reference.json beside it: the documentation strings of the modules that were held out, their token
ids, and PyTorch's float32 negative log-likelihood of each window of them.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import platform
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 2048, 256, 768, 3, 4, 2
WINDOW = 256  # tokens, in training and in evaluation
BATCH = 8  # windows of a training step
HELD_OUT_EVERY = 12  # of the sorted top-level modules, each 12th
SKIPPED = {"site-packages", "test", "tests", "idlelib", "__pycache__"}


def docstrings() -> dict[str, list[str]]:
    """The documentation strings of each top-level module of the standard library, in a fixed
    order, each once."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED & set(parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # files that test how those are met
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text and text not in seen:
                seen.add(text)
                found.setdefault(parts[0].removesuffix(".py"), []).append(text)
    return found


def train_tokenizer(texts: Sequence[str]) -> bytes:
    """A sentencepiece BPE model as Llama's: byte fallback, no normalisation, lines kept."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line.strip()),
        model_writer=out,
        model_type="bpe",
        vocab_size=VOCAB,
        character_coverage=0.9999,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def windows(ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """All tokens end to end, cut into [n, WINDOW]; the rest is left out."""
    flat = torch.tensor([token for text in ids for token in text])
    return flat[: len(flat) // WINDOW * WINDOW].view(-1, WINDOW)


def train(model: Any, data: torch.Tensor, steps: int, rate: float, seed: int) -> None:
    """AdamW with a linear warm-up and a cosine to a tenth of `rate`."""
    chooser = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    start = time.monotonic()
    for step in range(steps):
        warm, done = min(1.0, (step + 1) / 50), step / steps
        for group in optimiser.param_groups:
            group["lr"] = rate * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        # Windows begin anywhere, so that no epoch shows the same cuts.
        at = torch.randint(data.numel() - WINDOW, (BATCH,), generator=chooser)
        batch = torch.stack([data.view(-1)[i : i + WINDOW] for i in at.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            took = time.monotonic() - start
            print(f"step {step + 1} of {steps}, {took:.0f} s, loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def negative_log_likelihood(model: Any, data: torch.Tensor) -> list[float]:
    """Of each window [WINDOW]: nats, summed over its tokens but the first."""
    sums = []
    for window in data:
        logits = model(input_ids=window[None]).logits[0, :-1].double()
        sums.append(float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum")))
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=500, help="training steps (default 500)")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate (default 0.003)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    torch.manual_seed(args.seed)

    by_module = docstrings()
    held_out = sorted(by_module)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    train_texts = [t for name in sorted(by_module) if name not in held_out for t in by_module[name]]
    test_texts = [text for name in held_out for text in by_module[name]]
    tokenizer = train_tokenizer(train_texts)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    train_ids = [[pieces.bos_id(), *pieces.encode(text)] for text in train_texts]
    test_ids = [[pieces.bos_id(), *pieces.encode(text)] for text in test_texts]
    data, test = windows(train_ids), windows(test_ids)
    print(f"{data.numel()} tokens to train on, {test.numel()} held out: {', '.join(held_out)}")

    config = transformers.LlamaConfig(
        vocab_size=pieces.get_piece_size(),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=pieces.bos_id(),
        eos_token_id=pieces.eos_id(),
    )
    model = transformers.LlamaForCausalLM(config)
    train(model, data, args.steps, args.rate, args.seed)
    model.eval()
    sums = negative_log_likelihood(model, test)

    model.save_pretrained(args.folder)
    (args.folder / "tokenizer.model").write_bytes(tokenizer)
    tokens = test.numel() - len(test)
    reference = {
        "texts": test_texts,
        "ids": test_ids,
        "window": WINDOW,
        "nll": sums,
        "tokens": tokens,
        "perplexity": math.exp(sum(sums) / tokens),
        "about": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "train_tokens": data.numel(),
            "held_out_modules": held_out,
            "steps": args.steps,
            "seed": args.seed,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time(), 1),
        },
    }
    (args.folder / "reference.json").write_text(json.dumps(reference) + "\n", encoding="utf-8")
    print(f"held-out perplexity {reference['perplexity']:.3f}, {reference['about']}")


if __name__ == "__main__":
    main()
