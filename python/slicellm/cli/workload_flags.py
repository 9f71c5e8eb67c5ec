"""The flags of `benchmark` that say what the tasks are and when they come: parts that go with one
another in any combination."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..bench import checks
from ..bench.arrivals import MAX_RATE, parse_ramp
from ..errors import InvalidArgument
from ..simulation import MAX_SEED
from .common import real, whole

MAX_LOAD = 1e3
SMALLEST = 1e-9  # stands for "above 0"


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type from a function that raises InvalidArgument; argparse names the flag."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except InvalidArgument as error:
            sentence = str(error)
            if error.field.startswith("--"):
                sentence = sentence.removeprefix(f"{error.field}: ")
            raise argparse.ArgumentTypeError(sentence) from None

    return convert


def listed(item: Callable[[str], Any]) -> Callable[[str], Any]:
    """Comma-separated values."""
    return lambda text: [item(part) for part in text.split(",")]


def slo_scale(text: str) -> Any:
    """`auto` or a factor."""
    return text if text == "auto" else real(SMALLEST, 1e6)(text)


@dataclass(frozen=True)
class Rate:
    """Tasks per second, or a multiple of saturation."""

    value: float
    is_load: bool


def ramp(text: str) -> tuple[Rate, Rate]:
    """`0.5,4` in tasks/s, or `0.5x,2x` in multiples of saturation."""
    match = re.fullmatch(r"([0-9.eE+-]+)(x?),([0-9.eE+-]+)(x?)", text)
    try:
        values = [float(match.group(i)) for i in (1, 3)] if match else []
    except ValueError:
        values = []
    if match is None or not values:
        raise checks.invalid("--ramp", text, "two rates A,B in tasks/s, or Ax,Bx of saturation")
    first, last = parse_ramp("--ramp", values)
    return Rate(first, match.group(2) == "x"), Rate(last, match.group(4) == "x")


def utilities(text: str) -> dict[str, float]:
    """`realtime=10,voice=2`."""
    found: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            found[name] = checks.number(name, float(value), 0, 1e12)
        except ValueError as error:
            if isinstance(error, InvalidArgument):
                raise
            raise checks.invalid("--utility", item, "CLASS=NUMBER") from None
    return found


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """What the tasks are."""
    count = whole(1, checks.MAX_TASKS)
    g = parser.add_argument_group("workload: what the tasks are")
    g.add_argument(
        "--workload",
        "--dataset-name",
        metavar="NAME",
        help="edge, tiers or a workload file in JSON (default edge)",
    )
    g.add_argument(
        "--dataset-path",
        metavar="CSV",
        help="a trace with num_prefill_tokens, num_decode_tokens and perhaps arrived_at: its "
        "lengths, unless --workload has its own, and its arrivals",
    )
    g.add_argument(
        "--slo-class",
        metavar="SPEC",
        action="append",
        default=[],
        help="a class, repeatable: NAME:TTFT:TPOT:DEADLINE:UTILITY:SHARE in ms, empty = not "
        "declared, or NAME:share=0.05,utility=10,ttft_ms=2000,tpot_ms=100,max_tokens=1024; lengths "
        "from --dataset-path or the next two (default: the workload's; tiers' for a trace)",
    )
    g.add_argument(
        "--prompt-length",
        metavar="SPEC",
        help="prompts of every class: fixed:N, uniform:LOW:HIGH, lognormal:MU:SIGMA:LOW:HIGH or "
        "trace (a column of --dataset-path)",
    )
    g.add_argument(
        "--output-length",
        metavar="SPEC",
        help="the same for outputs, which still end at their class's max_tokens",
    )
    g.add_argument(
        "--utility",
        metavar="CLASS=U",
        type=checked(utilities),
        default={},
        help="another utility for a class, e.g. realtime=10 (edge is studied with 100, 10 and 1)",
    )
    g.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="one prompt a line, or JSON lines with prompt, utility, tpot_ms, ttft_ms, "
        "deadline_ms, arrival_s, max_tokens",
    )
    g.add_argument("--tasks", metavar="FILE", help="the JSON lines of -f")
    g.add_argument(
        "--test-mode",
        action="store_true",
        help="twelve built-in prompts with their own arrivals; prints each token's time",
    )
    g.add_argument(
        "--total-tasks",
        "--num-prompts",
        metavar="N",
        type=count,
        help="number of tasks (default 60, or what the file has)",
    )
    g.add_argument(
        "-l",
        "--limit",
        metavar="N",
        type=whole(1, checks.MAX_TOKENS),
        help="at most N output tokens a task",
    )
    g.add_argument(
        "--slo-scale",
        metavar="X",
        type=slo_scale,
        help="multiplies every target; auto = l(1) of this machine / 14 ms, so that it faces "
        "the same problem as the paper's GPU (default auto; 1 for files, --slo-class, "
        "--test-mode)",
    )
    seeds = g.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed",
        metavar="N",
        type=whole(0, MAX_SEED),
        default=0,
        help="same seed, same tasks (default 0)",
    )
    seeds.add_argument(
        "--seeds",
        metavar="N,N,...",
        type=listed(whole(0, MAX_SEED)),
        help="one run a seed; prints mean and standard deviation",
    )


def add_arrival_flags(parser: argparse.ArgumentParser) -> None:
    """When the tasks come."""
    count = whole(1, checks.MAX_TASKS)
    g = parser.add_argument_group("arrivals: when the tasks come")
    g.add_argument(
        "--poisson", action="store_true", help="random arrivals (the default of edge and tiers)"
    )
    g.add_argument("--uniform", action="store_true", help="equal gaps")
    g.add_argument(
        "--ramp",
        metavar="A,B",
        type=checked(ramp),
        help="random arrivals whose rate goes from A to B tasks/s over the run, or from Ax to Bx "
        "times saturation",
    )
    g.add_argument(
        "--lambda",
        "--request-rate",
        dest="rate",
        metavar="R",
        type=real(SMALLEST, MAX_RATE),
        help="tasks per second",
    )
    g.add_argument(
        "--load",
        metavar="X",
        type=real(SMALLEST, MAX_LOAD),
        help="the rate as a multiple of saturation (default 1); saturation = the rate at which "
        "prefill and decode at the best batch take all of the machine's time",
    )
    g.add_argument(
        "--rates",
        metavar="R,R,...",
        type=listed(real(SMALLEST, MAX_RATE)),
        help="one run a rate, in tasks/s: a line each",
    )
    g.add_argument(
        "--loads",
        metavar="X,X,...",
        type=listed(real(SMALLEST, MAX_LOAD)),
        help="one run a load: a line each",
    )
    g.add_argument(
        "--capacity",
        metavar="P",
        type=real(SMALLEST, 1),
        help="searches the highest rate at which a share P of the tasks is met",
    )
    g.add_argument(
        "--burstiness",
        metavar="X",
        type=real(SMALLEST, 1e6),
        help="gamma instead of Poisson arrivals: below 1 burstier, above 1 more even",
    )
    g.add_argument(
        "--intervals",
        metavar="S,S,...",
        type=listed(real(0, 1e9)),
        help="given gaps in seconds, repeated",
    )
    g.add_argument(
        "--concurrent",
        metavar="N",
        type=count,
        help="N tasks at once; more in --total-tasks follow as earlier ones end",
    )
    g.add_argument(
        "--max-concurrency",
        metavar="N",
        type=count,
        help="closed loop: N tasks in flight, a new one whenever one ends",
    )


def exclusive(flags: dict[str, bool]) -> None:
    """Refuses flags that contradict each other."""
    given = [flag for flag, is_given in flags.items() if is_given]
    if len(given) > 1:
        raise checks.invalid("flags " + " and ".join(given), len(given), "only one of them")


def check_workload(args: argparse.Namespace) -> None:
    """Flags of one part that exclude each other."""
    given = {
        "-f": args.file is not None,
        "--tasks": args.tasks is not None,
        "--test-mode": args.test_mode,
    }
    for flag, is_given in (
        ("--workload", args.workload is not None),
        ("--dataset-path", args.dataset_path is not None),
        ("--prompt-length", args.prompt_length is not None),
        ("--output-length", args.output_length is not None),
        ("--slo-class", bool(args.slo_class)),
    ):
        exclusive({flag: is_given, **given})
    exclusive({"--workload": args.workload is not None, "--slo-class": bool(args.slo_class)})
    rates = {
        "--lambda": args.rate is not None,
        "--load": args.load is not None,
        "--rates": args.rates is not None,
        "--loads": args.loads is not None,
        "--capacity": args.capacity is not None,
    }
    rated = any(rates.values())
    exclusive({**rates, "--ramp": args.ramp is not None})
    random = args.poisson or args.burstiness is not None
    exclusive({"--poisson or --burstiness": random, "--uniform": args.uniform})
    exclusive({"--poisson": args.poisson, "--ramp": args.ramp is not None})
    exclusive(
        {
            "--poisson, --lambda, --load or --burstiness": rated or random,
            "--uniform": args.uniform and not rated,
            "--ramp": args.ramp is not None and not random,
            "--intervals": args.intervals is not None,
            "--concurrent": args.concurrent is not None,
            "--max-concurrency": args.max_concurrency is not None,
        },
    )
    if args.concurrent and args.total_tasks and args.total_tasks < args.concurrent:
        raise checks.invalid(
            "--total-tasks", args.total_tasks, f"at least the {args.concurrent} of --concurrent"
        )
