"""The command line of `benchmark`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ..bench import checks
from ..bench.tasks import Slo
from ..errors import InvalidArgument
from .common import Parser, add_model_flags, parse_bytes, real, whole

DESCRIPTION = """\
Runs a workload of tasks, each with its own service-level objectives (SLOs), on a model under one or
more scheduling policies, and reports who kept how many promises.

A bare `benchmark -p MODEL --slice --poisson` runs 60 tasks of the built-in workload `edge` (70 %
real-time control with a deadline, 15 % voice chat, 15 % question answering) at exactly the rate
that this machine can serve (1x saturation), with targets scaled to this machine's speed.
"""

EPILOG = """\
examples:
  benchmark -p model.flm --slice --poisson              SLICE at the machine's limit
  benchmark -p model.flm --policy slice,orca,fastserve --poisson --load 2 --plot figure.png
                                                        three policies, the same arrivals, twice
                                                        what the machine can serve, with a figure
  benchmark -p model.flm --policy slice:ratio=1,slice:ratio=.5 --lambda 3 --seeds 0,1,2
                                                        two settings of SLICE at 3 tasks a second,
                                                        mean and spread over three seeds
  benchmark -p model.flm --slice --test-mode            twelve real prompts, each token's time
  benchmark -p model.flm --slice --concurrent 8 -t 2    eight tasks at once on two threads
  benchmark -p DIR --dtype int4 -f prompts.txt          your own prompts, one a line

words: TTFT = time to first token, TPOT = mean time per further token, E2EL = time to the last
token, all from the scheduled arrival. A task is met when it finished normally and held every target
that it declares. Attainment = met / submitted tasks. Exit codes: 0 done, 1 failed, 2 wrong input.
"""

WITH_SIMULATOR = "comes with the simulator, which this version does not have"


MAX_SEED = 10**18 - 1
SMALLEST = 1e-9  # stands for "above 0"


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type from a function that raises InvalidArgument."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except InvalidArgument as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def listed(item: Callable[[str], Any]) -> Callable[[str], Any]:
    """Comma-separated values."""
    return lambda text: [item(part) for part in text.split(",")]


def slo_scale(text: str) -> Any:
    """`auto` or a factor."""
    return text if text == "auto" else real(SMALLEST, 1e6)(text)


def split_policies(text: str) -> list[str]:
    """`slice:ratio=.9,mask_layout=spread,orca` -> two policies: a piece that is only NAME=VALUE
    goes on with the policy before it."""
    policies: list[str] = []
    for piece in text.split(","):
        name = piece.strip()
        if "=" in name and ":" not in name and policies:
            policies[-1] += "," + name
        elif name:
            policies.append(name)
        else:
            raise checks.invalid("policies", text, "names separated by commas")
    return policies


def parse_goodput(pairs: list[str]) -> Slo:
    """`ttft:2000 tpot:125 e2el:5000`, as in vLLM, in milliseconds."""
    names = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2el": "deadline_ms"}
    targets: dict[str, float | None] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        if name not in names:
            raise checks.invalid("--goodput", pair, "ttft:MS, tpot:MS or e2el:MS")
        try:
            targets[names[name]] = checks.target(f"--goodput {name}", float(value))
        except ValueError:
            raise checks.invalid(f"--goodput {name}", value, "milliseconds above 0") from None
    return Slo(**targets)


def build_parser(prog: str = "benchmark") -> Parser:
    """Every flag, grouped; `check` then looks at them together."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} -p MODEL [flags]",
        description=DESCRIPTION,
        epilog=EPILOG,
        add_help=False,
    )
    count = whole(1, checks.MAX_TASKS)

    g = parser.add_argument_group("model and machine")
    add_model_flags(g)
    g.add_argument(
        "--kv-cache-limit",
        metavar="SIZE",
        type=parse_bytes,
        default=0,
        help="memory for keys and values, such as 2G (default: from free memory)",
    )
    g.add_argument(
        "-b",
        "--batch",
        metavar="N",
        type=whole(1, 4096),
        default=64,
        help="most tasks in one step; a policy may keep to fewer (default 64)",
    )
    g.add_argument(
        "--executor",
        default="cpu",
        metavar="cpu",
        help="what runs the steps; this version has cpu",
    )

    g = parser.add_argument_group("policies")
    g.add_argument(
        "--slice", action="store_true", help="the SLICE policy (the same as --policy slice)"
    )
    g.add_argument(
        "--policy",
        metavar="A,B,C",
        type=_checked(split_policies),
        help="policies to run on the same tasks, the model loaded once; with parameters: "
        "slice:ratio=0.9 (`slicellm policies` lists them; default orca)",
    )
    g.add_argument(
        "--ratios",
        metavar="R[,R]",
        type=listed(real(SMALLEST, 1)),
        help="SLICE's period ratio, the part of each second that it plans for; several "
        "run SLICE once with each",
    )
    g.add_argument(
        "--long-threshold", metavar="N", help="accepted for old command lines; no effect"
    )
    g.add_argument(
        "--degrade-threshold", metavar="N", help="accepted for old command lines; no effect"
    )

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
        help="lengths (and arrivals) from a trace with num_prefill_tokens, "
        "num_decode_tokens and perhaps arrived_at",
    )
    g.add_argument(
        "--slo-class",
        metavar="SPEC",
        action="append",
        default=[],
        help="a class for --dataset-path, repeatable: "
        "NAME:share=0.05,utility=10,ttft_ms=2000,tpot_ms=100,max_tokens=1024 "
        "(default: those of tiers)",
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
        "the same problem as the paper's GPU (default auto; 1 for files, --test-mode)",
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

    g = parser.add_argument_group("arrivals: when the tasks come")
    g.add_argument(
        "--poisson", action="store_true", help="random arrivals (the default of edge and tiers)"
    )
    g.add_argument(
        "--lambda",
        "--request-rate",
        dest="rate",
        metavar="R",
        type=real(SMALLEST, 1e6),
        help="tasks per second",
    )
    g.add_argument(
        "--load",
        metavar="X",
        type=real(SMALLEST, 1e3),
        help="the rate as a multiple of saturation (default 1); saturation = the rate at which "
        "prefill and decode at the best batch take all of the machine's time",
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

    g = parser.add_argument_group("output")
    g.add_argument("--save-result", metavar="FILE", help="every metric as JSON")
    g.add_argument(
        "--event-log",
        metavar="FILE",
        help="every event as JSON lines; `python -m slicellm.bench.metrics FILE` computes "
        "the tables from it again",
    )
    g.add_argument("--plot", metavar="FILE", help="figure as .png, .svg or .pdf (needs matplotlib)")
    g.add_argument(
        "-o", "--output", metavar="FILE", help="prompt and answer of each task as JSON lines"
    )
    g.add_argument(
        "--metric-percentiles",
        metavar="P,P",
        default=[50.0, 99.0],
        type=listed(real(0, 100)),
        help="beside p50 and p99, in the result file",
    )
    g.add_argument(
        "--goodput",
        metavar="NAME:MS",
        nargs="+",
        help="also count tasks/s that meet these targets, e.g. ttft:2000 tpot:125 e2el:9000",
    )
    g.add_argument("-h", "--help", action="help", help="this help")

    later = parser.add_argument_group(f"not yet: {WITH_SIMULATOR}")
    later.add_argument("--capacity", metavar="P", help="highest rate with attainment of at least P")
    later.add_argument("--bound", action="store_true", help="the clairvoyant upper bound")
    return parser


def _exclusive(flags: dict[str, bool]) -> None:
    given = [flag for flag, is_given in flags.items() if is_given]
    if len(given) > 1:
        raise checks.invalid("flags " + " and ".join(given), len(given), "only one of them")


def check(args: argparse.Namespace) -> None:
    """What single flags cannot tell: unsupported requests and flags that contradict each other."""
    if args.executor == "cuda":
        raise checks.invalid("--executor", "cuda", "cpu, as this version has no CUDA kernels yet")
    if args.executor == "sim":
        raise checks.invalid("--executor", "sim", f"cpu, as sim {WITH_SIMULATOR}")
    if args.executor != "cpu":
        raise checks.invalid("--executor", args.executor, "cpu")
    if args.capacity is not None:
        raise checks.invalid("--capacity", args.capacity, f"no such flag, as it {WITH_SIMULATOR}")
    if args.bound:
        raise checks.invalid("--bound", "the flag", f"none, as it {WITH_SIMULATOR}")
    random = args.poisson or args.burstiness is not None
    rated = random or args.rate is not None or args.load is not None
    _exclusive(
        {
            "-f": args.file is not None,
            "--tasks": args.tasks is not None,
            "--test-mode": args.test_mode,
            "--workload": args.workload is not None,
        },
    )
    _exclusive(
        {
            "--dataset-path": args.dataset_path is not None,
            "-f": args.file is not None,
            "--tasks": args.tasks is not None,
            "--test-mode": args.test_mode,
        },
    )
    _exclusive({"--lambda": args.rate is not None, "--load": args.load is not None})
    _exclusive(
        {
            "--poisson, --lambda, --load or --burstiness": rated,
            "--intervals": args.intervals is not None,
            "--concurrent": args.concurrent is not None,
            "--max-concurrency": args.max_concurrency is not None,
        },
    )
    if args.slo_class and args.dataset_path is None:
        raise checks.invalid("--slo-class", args.slo_class[0], "--dataset-path beside it")
    if args.concurrent and args.total_tasks and args.total_tasks < args.concurrent:
        raise checks.invalid(
            "--total-tasks", args.total_tasks, f"at least the {args.concurrent} of --concurrent"
        )
    if args.plot and not args.plot.lower().endswith((".png", ".svg", ".pdf")):
        raise checks.invalid("--plot", args.plot, "a name ending in .png, .svg or .pdf")


def policy_names(args: argparse.Namespace) -> list[str]:
    """The policies to run, by their full text, each once; --ratios spelled out."""
    names = list(args.policy or (["slice"] if args.slice else ["orca"]))
    if args.slice and not any(name.partition(":")[0] == "slice" for name in names):
        names.insert(0, "slice")
    expanded: list[str] = []
    for name in names:
        plain = name.partition(":")[0] == "slice" and "ratio=" not in name
        if plain and args.ratios:
            joint = "," if ":" in name else ":"
            expanded += [f"{name}{joint}ratio={ratio:g}" for ratio in args.ratios]
        else:
            expanded.append(name)
    return list(dict.fromkeys(expanded))


def seeds(args: argparse.Namespace) -> list[int]:
    """The seeds to run, each once."""
    return list(dict.fromkeys(args.seeds if args.seeds is not None else [args.seed]))


def note_ineffective(args: argparse.Namespace) -> None:
    """Says that an old flag does nothing."""
    for flag in ("long_threshold", "degrade_threshold"):
        if getattr(args, flag) is not None:
            print(f"note: --{flag.replace('_', '-')} has no effect", file=sys.stderr)
