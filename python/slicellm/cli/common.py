"""What the command lines share: parsing, one-sentence errors, loading with progress."""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import Error, InvalidArgument, make_error, show
from ..model import Model
from ..sizes import parse_size

# Exit codes: 0 done, 1 failed for reasons outside the input, 2 wrong input, 130 Ctrl-C.
WRONG_INPUT = 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence; flags are never abbreviated."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.removeprefix("argument ").split())
        self.exit(WRONG_INPUT, f"{self.prog}: {text} (see {self.prog} -h)\n")


def run_command(prog: str, command: Callable[[], int | None]) -> int:
    """Runs a command; its errors become one sentence on stderr and an exit code."""
    try:
        return command() or 0
    except Error as error:
        return _fail(prog, str(error), WRONG_INPUT)
    except KeyboardInterrupt:
        return _fail(prog, "interrupted", 130)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail(prog, "out of memory", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(prog, f"{where}{error.strerror or error}", WRONG_INPUT)


def _fail(prog: str, text: str, code: int) -> int:
    print(f"{prog}: {' '.join(text.split())}", file=sys.stderr)
    return code


# ---- values --------------------------------------------------------------------------------------
def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"got {show(text)}, expected a whole number from {low} to {high}"
            )
        return int(text)

    return convert


def real(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"got {show(text)}, expected a number from {low:g} to {high:g}"
            )
        return value

    return convert


def parse_bytes(text: str) -> int:
    """An argparse type: a size (see `parse_size`); "auto" is 0.

    >>> parse_bytes("5G"), parse_bytes("2GiB"), parse_bytes("auto")
    (5000000000, 2147483648, 0)
    """
    if text.lower() == "auto":
        return 0
    try:
        return parse_size(text, "size")
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(f"got {error.value}, expected {error.expected}") from None


def switch(text: str) -> bool:
    """An argparse type: true or false."""
    if text.lower() not in ("true", "false", "1", "0", "on", "off"):
        raise argparse.ArgumentTypeError(f"got {show(text)}, expected true or false")
    return text.lower() in ("true", "1", "on")


def device_map(text: str) -> str:
    """An argparse type: a device, where fastllm's {'cuda:0': 20, 'cpu': 8} is cpu=8,cuda:0=20; like
    there, parts are in the order of their names."""
    if not text.startswith("{"):
        return text
    try:
        layers = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        layers = None
    if not isinstance(layers, dict) or not all(isinstance(name, str) for name in layers):
        raise argparse.ArgumentTypeError(f"got {show(text)}, expected {{'cuda:0': 20, 'cpu': 8}}")
    return ",".join(f"{name}={count}" for name, count in sorted(layers.items()))


# ---- models --------------------------------------------------------------------------------------
def add_model_flags(parser: argparse._ActionsContainer, kv_cache: bool = True) -> None:
    """The model and how it is loaded; names as fastllm has them."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=".flm file, `ftllm export` directory or Hugging Face directory",
    )
    parser.add_argument("-p", "--path", metavar="MODEL", help="the same, as a flag")
    parser.add_argument(
        "-t",
        "--threads",
        type=whole(-1, 1024),
        default=-1,
        metavar="N",
        help="CPU threads (default: every usable core)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="D",
        help="linear layers of a Hugging Face directory: float16, bfloat16, float32, int8, int4, "
        "int4gN with N columns a group (default auto: float16)",
    )
    parser.add_argument(
        "--device",
        type=device_map,
        default="cpu",
        metavar="DEVICE",
        help="where to run: cpu (the default), numa (a CPU of several nodes), cuda, cuda:N, layers "
        "on several as in cuda:0=20,cpu=8, or auto (on a GPU as many as fit)",
    )
    parser.add_argument(
        "--atype",
        default="auto",
        choices=["auto", "float32", "int8"],
        help="activations that meet quantised weights (default auto: int8)",
    )
    if kv_cache:
        parser.add_argument(
            "--kv_cache_dtype",
            "--kv-cache-dtype",
            default="auto",
            choices=["auto", "float16", "float32", "int8"],
            help="keys and values (default auto: float16; float32 on a CPU only)",
        )
    parser.add_argument(
        "--gpu_mem_ratio",
        "--gpu-mem-ratio",
        type=real(0.01, 1),
        metavar="X",
        help="share of a GPU's memory that may be in use, keys and values included (default 0.9)",
    )
    parser.add_argument(
        "--vram_limit",
        "--vram-limit",
        type=parse_bytes,
        default=0,
        metavar="SIZE",
        help="most memory of a GPU that is held at any time: 6G, 6GiB (default: what there is)",
    )
    parser.add_argument(
        "--pack-cache",
        action="store_true",
        help="keep packed weights in a file beside the model, for a quick next start (CPU)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="directory with tokenizer files (default: beside or inside the model)",
    )


def model_path(args: argparse.Namespace) -> str:
    """The one model that a command line names."""
    if args.model is not None and args.path is not None:
        expected = "the model once, as an argument or with -p"
        raise make_error(InvalidArgument, "model", "two models", expected)
    path = args.model if args.model is not None else args.path
    if not path:
        raise make_error(InvalidArgument, "model", "none", "a path, as an argument or with -p")
    return str(path)


def threads(args: argparse.Namespace) -> int | None:
    """-t as the API takes it; -1 is fastllm's "you decide"."""
    if args.threads == 0:
        raise make_error(InvalidArgument, "--threads", "0", "1 to 1024, or -1 for every core")
    return None if args.threads < 0 else int(args.threads)


def load_model(args: argparse.Namespace, chat_template: str | None = None) -> Model:
    """Loads the model of a command line, with a progress bar on a terminal."""
    with progress_bar("loading") as progress:
        return Model(
            model_path(args),
            None if args.dtype == "auto" else args.dtype,
            args.device,
            threads(args),
            activation=args.atype,
            kv_cache_dtype=getattr(args, "kv_cache_dtype", "auto"),
            pack_cache=args.pack_cache,
            gpu_mem_ratio=args.gpu_mem_ratio,
            vram_limit=args.vram_limit or None,
            tokenizer=args.tokenizer,
            chat_template=chat_template,
            progress=progress,
        )


class progress_bar:
    """A bar on a terminal's stderr, as a context that gives a progress(done, total) function;
    nothing where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what)

    def __enter__(self) -> Callable[[int, int], None]:
        self._progress.start()
        return self._update

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def _update(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)
