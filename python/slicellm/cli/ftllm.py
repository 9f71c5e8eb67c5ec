"""The `ftllm` command: fastllm's command lines on this engine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import InvalidArgument, Unsupported, make_error, show
from . import chat_terminal, download
from .common import (
    Parser,
    add_model_flags,
    model_path,
    parse_bytes,
    progress_bar,
    real,
    run_command,
    switch,
    threads,
    whole,
)
from .fastllm_flags import MODEL_FLAGS, add_other_flags, check_other_flags

DESCRIPTION = """\
Large language models on your own machine, with fastllm's command lines.

  ftllm run MODEL            talk to a model in the terminal
  ftllm export MODEL -o OUT  convert and quantise a model
  ftllm download REPO        fetch a model from the Hugging Face Hub
  ftllm -v                   the version
"""

EPILOG = """\
examples:
  ftllm download Qwen/Qwen2.5-0.5B-Instruct --local-dir qwen
  ftllm export qwen -o qwen-int4.flm --dtype int4g128
  ftllm run qwen-int4.flm -t 4

`ftllm COMMAND -h` explains a command. MODEL is a .flm file, an `ftllm export` directory or a
Hugging Face directory with safetensors. `benchmark` and `slicellm` are the commands for scheduling
many requests. Exit codes: 0 done, 1 failed, 2 wrong input.
"""

# What fastllm has and this version does not, with where to go instead.
NOT_YET = {
    "serve": "an OpenAI server is not there yet; `ftllm run` talks in the terminal",
    "server": "an OpenAI server is not there yet; `ftllm run` talks in the terminal",
    "webui": "a web page is not there yet; `ftllm run` talks in the terminal",
    "bench": "use `slicellm bench`, which takes the same flags",
    "benchmark": "use `slicellm bench`, or `benchmark` for many requests with objectives",
    "config": "configuration files are not there yet; give flags instead",
    "tui": "the wizard is not there; `ftllm run MODEL` starts at once",
    "launch": "the launcher is not there; `ftllm run MODEL` starts at once",
}

RUN_EPILOG = """\
In the chat: "clear" forgets the conversation, "stop" (or Ctrl-D) ends it, Ctrl-C ends an answer.
Without sampling flags the model's own generation_config decides; where that does not ask for
sampling, each answer is the most likely one.

examples:
  ftllm run model.flm
  ftllm run qwen/ --dtype int4g128 -t 4 --system "Answer in one sentence."
  echo "Why is the sky blue?" | ftllm run model.flm --max_tokens 64
"""

EXPORT_EPILOG = """\
The output is a .flm file if its name ends in .flm, otherwise a directory; both hold the tokenizer.

examples:
  ftllm export qwen/ -o qwen-int4.flm --dtype int4g128
  ftllm export qwen/ -o qwen-int8 --dtype int8 -t 4
  ftllm export old.flm -o new.flm --dtype auto       (keeps the types, for instance to add a name)
"""


def build_parser() -> Parser:
    parser = Parser(prog="ftllm", description=DESCRIPTION, epilog=EPILOG)
    version = f"ftllm (slicellm) {__version__}"
    parser.add_argument("-v", "--version", action="version", version=version)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=Parser, title="commands"
    )
    for name in ("run", "chat"):
        _add_run(commands.add_parser(name, help="talk to a model", epilog=RUN_EPILOG))
    _add_export(
        commands.add_parser("export", help="convert and quantise a model", epilog=EXPORT_EPILOG)
    )
    download.add_flags(
        commands.add_parser("download", help="fetch a model", epilog=download.EPILOG)
    )
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", default="", metavar="TEXT", help="what the model is told first")
    group.add_argument(
        "--chat_template", metavar="FILE", help="jinja2 chat template (default: the model's own)"
    )
    group.add_argument(
        "--enable_thinking",
        type=switch,
        metavar="BOOL",
        help="passed to the model's chat template, if it knows it",
    )
    group.add_argument(
        "--max_tokens",
        type=whole(1, 1 << 20),
        default=4096,
        metavar="N",
        help="most tokens of an answer (default 4096, and what the context allows)",
    )
    group = parser.add_argument_group("sampling (default: the model's generation_config)")
    group.add_argument("--temperature", type=real(0, 100), metavar="X", help="0 = most likely")
    group.add_argument("--top_p", type=real(0, 1), metavar="X")
    group.add_argument("--top_k", type=whole(0, 1 << 30), metavar="N", help="0 = all tokens")
    group.add_argument(
        "--repeat_penalty", "--repetition_penalty", type=real(0.01, 100), metavar="X"
    )
    group.add_argument(
        "--seed", type=whole(0, (1 << 63) - 1), metavar="N", help="default: another each time"
    )
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--kv_cache_limit",
        "--kv-cache-limit",
        type=parse_bytes,
        default=0,
        metavar="SIZE",
        help="memory for keys and values: 5G, 100M (default auto: from free memory)",
    )
    group.add_argument(
        "--tokens",
        type=whole(-1, 1 << 30),
        default=-1,
        metavar="N",
        help="the same, as a number of tokens",
    )
    group.add_argument(
        "--chunked_prefill_size",
        type=whole(-1, 1 << 20),
        default=-1,
        metavar="N",
        help="most prompt tokens in one step (default 2048)",
    )
    # One conversation is one task at a time.
    group.add_argument("--max_batch", type=whole(-1, 4096), default=-1, help=argparse.SUPPRESS)
    add_other_flags(parser, MODEL_FLAGS)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="model to convert")
    parser.add_argument("-p", "--path", metavar="MODEL", help="the same, as a flag")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="a .flm file or a directory"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="D",
        help="linear layers: float16, bfloat16, float32, int8, int4, int4gN (default auto: "
        "float16 for Hugging Face input, else as it is)",
    )
    parser.add_argument(
        "-t",
        "--threads",
        type=whole(-1, 1024),
        default=-1,
        metavar="N",
        help="CPU threads (default: every usable core)",
    )
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    add_other_flags(parser, MODEL_FLAGS)


def run(args: argparse.Namespace) -> None:
    check_other_flags(args, MODEL_FLAGS)
    if args.max_batch > 1:
        print("note: --max_batch has no effect: a conversation is one task", file=sys.stderr)
    chat_terminal.run(args)


def export(args: argparse.Namespace) -> None:
    from ..convert import export as convert

    check_other_flags(args, MODEL_FLAGS)
    source, output = model_path(args), str(args.output)
    if not output:
        raise make_error(InvalidArgument, "--output", "no name", "a .flm file or a directory")
    if source.lower().endswith(".gguf") or output.lower().endswith(".gguf"):
        expected = "a .flm file or a directory; GGUF comes later"
        raise make_error(Unsupported, "model", "GGUF", expected)
    if args.device != "cpu":
        raise make_error(Unsupported, "--device", show(args.device), "cpu")
    if Path(output).exists() and Path(source).exists() and Path(output).samefile(source):
        raise make_error(InvalidArgument, "--output", show(output), "another place than the input")
    with progress_bar("converting") as progress:
        convert(source, output, args.dtype, threads(args) or 0, progress)
    print(f"{output}: written")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in NOT_YET:
        print(f"ftllm: {given[0]}: {NOT_YET[given[0]]}", file=sys.stderr)
        return 2
    parser = build_parser()
    args = parser.parse_args(given)
    if args.command is None:
        parser.print_help()
        return 0
    actions = {"run": run, "chat": run, "export": export, "download": download.run}
    return run_command(f"ftllm {args.command}", lambda: actions[args.command](args))


if __name__ == "__main__":
    sys.exit(main())
