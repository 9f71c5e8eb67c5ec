"""Engines under measurement live in processes of their own and are asked through pipes.

A worker script makes an object and calls `serve`; the other end is a `Worker`. A question is a JSON
line [method, arguments], the answer a JSON line. An engine has these methods:

    info() -> dict                       versions and what it says of itself
    prefill(ids) -> seconds              from the prompt to its first token, nothing cached
    decode(prompts, steps) -> [seconds]  of steps in which every prompt's sequence gets one token;
                                         asked again with the same prompts it begins anew
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any


def serve(make_engine: Callable[[], Any]) -> None:
    """Makes the engine and answers until the input ends; what libraries print goes to the error
    stream, not between the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = make_engine()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answers.write(json.dumps(getattr(engine, name)(*arguments)) + "\n")
        answers.flush()


class Worker:
    """An engine in a process of its own."""

    def __init__(self, name: str, command: Sequence[str], verbose: bool = False) -> None:
        self.name = name
        quiet = None if verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True
        )

    def ask(self, question: str, *arguments: Any) -> Any:
        """The answer; ends the program when the engine has ended."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([question, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the {self.name} worker ended; --verbose shows why")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
