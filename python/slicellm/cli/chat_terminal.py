"""`ftllm run`: a conversation with a model in the terminal."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path
from typing import Any

from .. import LatencyModel
from ..engine import Engine
from ..errors import Error, InvalidArgument, make_error
from ..model import Model
from ..task import Result, Task
from .common import load_model

Message = dict[str, str]


def run(args: argparse.Namespace) -> None:
    """Loads the model and talks until "stop" or the end of input."""
    model = load_model(args, args.chat_template)
    model.encode("a")  # a model without a tokenizer is refused before the first question
    settings = sampling(args, model)
    limit = args.kv_cache_limit
    if args.tokens > 0:
        if limit:
            expected = "only one of them"
            raise make_error(InvalidArgument, "flags", "--tokens and --kv_cache_limit", expected)
        limit = args.tokens * model.kv_bytes_per_token
    step_tokens = args.chunked_prefill_size if args.chunked_prefill_size > 0 else 2048
    # One task at a time: the policy has nothing to decide, so time need not be predicted.
    with Engine(
        model,
        "orca",
        latency=LatencyModel.from_decode_table([1.0]),
        kv_cache_bytes=limit,
        host_kv_bytes=0,
        max_rows=1,
        max_step_tokens=step_tokens,
    ) as engine:
        most = longest(engine, step_tokens)
        Conversation(engine, args, settings, most).talk()


def longest(engine: Engine, step_tokens: int) -> int:
    """Most tokens of a conversation with its answer; the last token needs no K and V."""
    model = engine.model
    block_tokens = round(model.core.kv_block_bytes / model.kv_bytes_per_token)
    held = int(engine.stats()["total_blocks"]) * block_tokens
    if not model.spec["prefill_divisible"]:
        held = min(held, step_tokens)
    return min(int(model.spec["max_positions"]), held + 1)


def sampling(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Task settings: the model's generation_config if it asks for sampling, then the flags."""
    settings: dict[str, Any] = {}
    config = generation_config(model)
    if config.get("do_sample") is True:
        for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
            if isinstance(config.get(name), (int, float)):
                settings[name] = config[name]
        settings.setdefault("temperature", 1.0)
    flags = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "repetition_penalty": args.repeat_penalty,
    }
    settings.update({name: value for name, value in flags.items() if value is not None})
    if args.temperature is None and (args.top_p is not None or args.top_k is not None):
        settings.setdefault("temperature", 1.0)  # who cuts the choice wants to choose
    return settings


def generation_config(model: Model) -> dict[str, Any]:
    """generation_config.json of a directory, or the keys of a .flm, which holds its values."""
    path = Path(model.path)
    if path.is_dir():
        try:
            config = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}
    config = {}
    for name in ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty"):
        text = model.core.file.config.get(name, "")
        try:
            config[name] = json.loads(text.lower())
        except ValueError:
            continue
    return config


class Conversation:
    """What was said so far, and how the next answer is made."""

    def __init__(
        self, engine: Engine, args: argparse.Namespace, settings: dict[str, Any], most: int
    ) -> None:
        self._engine = engine
        self._most = most
        self._args = args
        self._settings = settings
        self._messages: list[Message] = []
        self._interactive = sys.stdin.isatty()
        self.clear()

    def clear(self) -> None:
        system = self._args.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def talk(self) -> None:
        if self._interactive:
            print('Ask away; "clear" starts anew, "stop" ends.', file=sys.stderr)
        while True:
            try:
                question = self._read()
            except (EOFError, KeyboardInterrupt):
                return
            if question.strip() == "stop":
                return
            if question.strip() == "clear":
                self.clear()
            elif question.strip():
                try:
                    self._answer(question)
                except Error as error:
                    if not self._interactive:
                        raise
                    print(f"ftllm run: {error}", file=sys.stderr)

    def _read(self) -> str:
        if self._interactive:
            return input("\nUser: ")
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise make_error(InvalidArgument, "input", "invalid UTF-8", "UTF-8 text") from None

    def _answer(self, question: str) -> None:
        """Streams an answer; Ctrl-C ends it, and what came of it stays in the conversation."""
        messages = [*self._messages, {"role": "user", "content": question}]
        parts: list[str] = []
        stream = self._engine.stream(self._task(messages))
        try:
            for piece in stream:
                # The space in front of a first word belongs to the text, not to the screen.
                text = piece.text if parts else piece.text.lstrip(" ")
                if text:
                    parts.append(text)
                    print(text, end="", flush=True)
        except KeyboardInterrupt:
            stream.close()
        result = stream.result()
        print(flush=True)
        self._explain(result)
        if result.finish_reason in ("stop", "length", "cancelled"):
            self._messages = [*messages, {"role": "assistant", "content": "".join(parts)}]

    def _task(self, messages: list[Message]) -> Task:
        model = self._engine.model
        variables: dict[str, Any] = {}
        if self._args.enable_thinking is not None:
            variables["enable_thinking"] = self._args.enable_thinking
        text = model.chat_template.render(messages, **variables)
        ids = model.tokenizer.encode_chat(text)
        room = self._most - len(ids)
        if room < 1:
            expected = f'at most {self._most - 1}; "clear" starts anew'
            raise make_error(InvalidArgument, "conversation", f"{len(ids)} tokens", expected)
        seed = self._args.seed if self._args.seed is not None else secrets.randbits(63)
        limit = min(self._args.max_tokens, room)
        return Task(ids, max_tokens=limit, seed=seed, **self._settings)

    def _explain(self, result: Result) -> None:
        if result.finish_reason == "length":
            print(f"[ended after {len(result.token_ids)} tokens]", file=sys.stderr)
        elif result.finish_reason in ("rejected", "error"):
            print(f"ftllm run: {result.error}", file=sys.stderr)
