"""The `slicellm` command: measure a model, look into it, list the policies."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import __version__, _core, calibration
from ..bench import report
from ..errors import InvalidArgument, make_error, show
from . import profiles, speed
from .common import (
    Parser,
    add_model_flags,
    load_model,
    progress_bar,
    real,
    run_command,
)
from .info import describe_model, print_model

DESCRIPTION = """\
LLM inference that keeps a promise per request: tools around the engine.

  slicellm info MODEL        what a model file holds
  slicellm calibrate MODEL   measure how long this machine takes for a step of this model
  slicellm bench MODEL       tokens per second at a given batch
  slicellm policies          the scheduling policies and their parameters
  slicellm profiles          the machines that the simulator can stand for
  slicellm roofline          such a machine from a data sheet

To run many tasks with objectives under several policies, use `benchmark`; to talk to a model, use
`ftllm run`.
"""

EPILOG = """\
examples:
  slicellm info model.flm
  slicellm bench model.flm --batch 8 --input_tokens 128 --output_tokens 64 -t 2
  slicellm calibrate model.flm -t 2 --refresh
  slicellm policies slice

`slicellm COMMAND -h` explains a command. Exit codes: 0 done, 1 failed, 2 wrong input.
"""

CALIBRATE_EPILOG = """\
The policies believe about time only what is measured here: how long a decode step of b tasks takes,
l(b), and what prompts cost. The result is kept per model, types, thread count and CPU (in
SLICELLM_CACHE, or slicellm/ of XDG_CACHE_HOME or ~/.cache) and corrects itself while serving.

examples:
  slicellm calibrate model.flm -t 2
  slicellm calibrate model.flm --refresh --seconds 60 --profile my-box.json
  benchmark --executor sim --latency-profile my-box.json --slice --poisson
"""


def build_parser() -> Parser:
    parser = Parser(prog="slicellm", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("-v", "--version", action="version", version=f"slicellm {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=Parser, title="commands"
    )
    speed.add_flags(
        commands.add_parser("bench", help="tokens per second at a given batch", epilog=speed.EPILOG)
    )
    calibrate = commands.add_parser("calibrate", help="measure step times", epilog=CALIBRATE_EPILOG)
    add_model_flags(calibrate)
    calibrate.add_argument(
        "--seconds",
        type=real(0.1, 3000),
        default=calibration.DEFAULT_SECONDS,
        metavar="S",
        help=f"about how long (default {calibration.DEFAULT_SECONDS:g})",
    )
    calibrate.add_argument(
        "--refresh", action="store_true", help="measure again even if it was measured before"
    )
    calibrate.add_argument(
        "--profile", metavar="FILE", help="also write a profile of this machine for the simulator"
    )
    calibrate.add_argument(
        "--name", metavar="NAME", help="the profile's name (default: the file's)"
    )
    info = commands.add_parser("info", help="what a model file holds")
    info.add_argument("model", nargs="?", metavar="MODEL", help="a model file or directory")
    info.add_argument("-p", "--path", metavar="MODEL", help="the same, as a flag")
    info.add_argument("--tokenizer", metavar="DIR", help="directory with tokenizer files")
    info.add_argument("--json", action="store_true", help="print JSON")
    policies = commands.add_parser("policies", help="scheduling policies and their parameters")
    policies.add_argument("name", nargs="?", metavar="NAME", help="only this one")
    policies.add_argument("--json", action="store_true", help="print JSON")
    profiles.add_profiles_flags(
        commands.add_parser("profiles", help="machines that the simulator can stand for")
    )
    profiles.add_roofline_flags(
        commands.add_parser(
            "roofline", help="a machine from its data sheet", epilog=profiles.ROOFLINE_EPILOG
        )
    )
    return parser


def calibrate(args: argparse.Namespace) -> None:
    if args.profile is not None:
        report.check_writable(args.profile, "--profile")
    model = load_model(args)
    with progress_bar("measuring") as progress:
        latency = calibration.latency_model(model, args.seconds, args.refresh, progress)
    rows = (1, 2, 4, 8, 16, 32, 64)
    table = Table(title=f"step times, {model.device}", title_justify="left")
    table.add_column("decode rows", justify="right")
    table.add_column("l(b) ms", justify="right")
    table.add_column("tokens/s", justify="right")
    for count in rows:
        step = latency.decode_step_ms(count, 64.0)
        table.add_row(str(count), f"{step:.2f}", f"{1000 * count / step:.1f}" if step else "-")
    console = Console()
    console.print(table)
    for tokens in (128, 512):
        step = latency.predict_ms(tokens, 1, 0.0, tokens * tokens / 2, 0.0, tokens)[0]
        rate = f", {1000 * tokens / step:.0f} tokens/s" if step else ""
        console.print(f"prompt of {tokens} tokens: {step:.1f} ms{rate}")
    console.print(f"kept in {calibration.cache_file(model)}", soft_wrap=True)
    if args.profile is not None:
        profiles.write_measured(args.profile, model, latency, args.name, args.seconds)


def info(args: argparse.Namespace) -> None:
    facts = describe_model(args)
    if args.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print_model(facts)


def policies(args: argparse.Namespace) -> None:
    # Dispatchers (several simulated machines) are listed behind the policies.
    found: list[dict[str, Any]] = [
        {**entry, "flag": flag}
        for flag, entries in (
            ("--policy", _core.list_policies()),
            ("--dispatch", _core.list_dispatchers()),
        )
        for entry in entries
    ]
    if args.name is not None:
        names = ", ".join(policy["name"] for policy in found)
        found = [policy for policy in found if policy["name"] == args.name]
        if not found:
            raise make_error(InvalidArgument, "policy", show(args.name), f"one of {names}")
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for policy in found:
        print(f"{policy['name']}: {policy['summary']}")
        print(f"  source: {policy['source']}; used by {policy['flag']}")
        for parameter in policy["parameters"]:
            name, default = parameter["name"], parameter["default"]
            print(f"  {name}={default}".ljust(30) + parameter["help"])
        print()
    if args.name is None:
        example = next((p for p in found if p["parameters"]), None)
        if example is not None:
            parameter = example["parameters"][0]
            text = f"{example['name']}:{parameter['name']}={parameter['default']}"
            print(f"With parameters: --policy {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    actions = {
        "bench": speed.run,
        "calibrate": calibrate,
        "info": info,
        "policies": policies,
        "profiles": profiles.profiles,
        "roofline": profiles.roofline,
    }
    return run_command(f"slicellm {args.command}", lambda: actions[args.command](args))


if __name__ == "__main__":
    sys.exit(main())
