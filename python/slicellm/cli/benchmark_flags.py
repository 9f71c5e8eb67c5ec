"""The command line of `benchmark`."""

from __future__ import annotations

import argparse
import sys

from .._core import check_dispatcher
from ..bench import checks
from ..bench.tasks import Slo
from ..simulation import DEFAULT_PROFILE
from .common import Parser, add_model_flags, parse_bytes, real, whole
from .workload_flags import (
    SMALLEST,
    add_arrival_flags,
    add_workload_flags,
    check_workload,
    checked,
    listed,
)

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
  benchmark --executor sim --policy slice,orca --loads .5,1,2 --total-tasks 2000
                                                        the paper's GPU in virtual time, no model
  benchmark --executor sim --slice --capacity .95 --utility realtime=10
                                                        how much it can take at 95 % met

words: TTFT = time to first token, TPOT = mean time per further token, E2EL = time to the last
token, all from the scheduled arrival. A task is met when it finished normally and held every target
that it declares. Attainment = met / submitted tasks. Exit codes: 0 done, 1 failed, 2 wrong input.
"""


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
            raise checks.invalid("--policy", text, "names separated by commas")
    return policies


def dispatcher(text: str) -> str:
    """A dispatcher's name and parameters."""
    check_dispatcher(text)
    return text


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
        usage=f"{prog} -p MODEL [flags] | --executor sim [--latency-profile NAME] [flags]",
        description=DESCRIPTION,
        epilog=EPILOG,
        add_help=False,
    )
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
        help="most tasks in one step; a policy may keep to fewer (default 64, or the profile's)",
    )
    g.add_argument(
        "--loop",
        default="plain",
        choices=["plain", "overlap"],
        help="when a step is planned: once the one before has ended (default), or while it runs",
    )
    g.add_argument(
        "--executor",
        default="cpu",
        metavar="cpu|sim",
        help="what runs the steps: the model on this machine's CPU, or a simulated machine in "
        "virtual time, which needs no model and reads none",
    )
    g.add_argument(
        "--latency-profile",
        metavar="NAME",
        help="the machine that sim stands for: a profile of `slicellm profiles` or a file "
        f"(default {DEFAULT_PROFILE})",
    )
    g.add_argument(
        "--jitter",
        metavar="SIGMA",
        type=real(0, 1),
        help="of simulated step times, and of what policies learn from, instead of the profile's",
    )
    g.add_argument(
        "--instances",
        metavar="N",
        type=whole(1, 1024),
        help="so many simulated machines behind a dispatcher (default 1); saturation and --load "
        "stay those of one",
    )
    g.add_argument(
        "--dispatch",
        metavar="NAME",
        type=checked(dispatcher),
        help="which of them serves a task: round_robin, least_loaded or scls:slice=128,...; "
        "`slicellm policies` lists them (default round_robin)",
    )

    g = parser.add_argument_group("policies")
    g.add_argument(
        "--slice", action="store_true", help="the SLICE policy (the same as --policy slice)"
    )
    g.add_argument(
        "--policy",
        metavar="A,B,C",
        type=checked(split_policies),
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

    add_workload_flags(parser)
    add_arrival_flags(parser)
    g = parser.add_argument_group("output")
    g.add_argument("--save-result", metavar="FILE", help="every metric as JSON")
    g.add_argument(
        "--event-log",
        metavar="FILE",
        help="every event as JSON lines; `python -m slicellm.bench FILE` computes the "
        "tables from it again",
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
    g.add_argument(
        "--bound",
        action="store_true",
        help="also what nobody could have beaten, knowing all lengths beforehand, and each "
        "policy's share of it; some seconds a seed up to 1,000 tasks (needs highspy)",
    )
    g.add_argument("-h", "--help", action="help", help="this help")

    return parser


def check(args: argparse.Namespace) -> None:
    """What single flags cannot tell: unsupported requests and flags that contradict each other."""
    if args.executor == "cuda":
        raise checks.invalid(
            "--executor", "cuda", "cpu or sim, as this version has no CUDA kernels"
        )
    if args.executor not in ("cpu", "sim"):
        raise checks.invalid("--executor", args.executor, "cpu or sim")
    for flag in ("latency_profile", "jitter", "instances", "dispatch"):
        if getattr(args, flag) is not None and args.executor != "sim":
            name = f"--{flag.replace('_', '-')}"
            raise checks.invalid(name, getattr(args, flag), "--executor sim beside it")
    if args.ratios and not args.slice and not any(map(is_slice, args.policy or ())):
        expected = "a slice policy beside it, by --slice or --policy"
        raise checks.invalid("--ratios", ",".join(f"{r:g}" for r in args.ratios), expected)
    check_workload(args)
    many = next((f for f in ("rates", "loads", "capacity") if getattr(args, f) is not None), None)
    for flag in ("event_log", "output", "test_mode"):
        if many and getattr(args, flag):
            name = f"--{flag.replace('_', '-')}"
            raise checks.invalid(name, f"--{many} too", "one rate, by --load or --lambda")
    if args.bound and args.instances is not None and args.instances > 1:
        raise checks.invalid("--bound", "the flag", "one instance, as the bound is of one machine")
    if args.capacity is not None and args.bound:
        raise checks.invalid("--bound", "the flag", "no --capacity, whose search has no bound")
    if args.capacity is not None and args.plot:
        raise checks.invalid("--plot", args.plot, "no --capacity, which has no figure")
    if args.plot and not args.plot.lower().endswith((".png", ".svg", ".pdf")):
        raise checks.invalid("--plot", args.plot, "a name ending in .png, .svg or .pdf")


def is_slice(policy: str) -> bool:
    """Whether a policy's text, which may have parameters, names SLICE."""
    return policy.partition(":")[0] == "slice"


def policy_names(args: argparse.Namespace) -> list[str]:
    """The policies to run, by their full text, each once; --ratios spelled out."""
    names = list(args.policy or (["slice"] if args.slice else ["orca"]))
    if args.slice and not any(map(is_slice, names)):
        names.insert(0, "slice")
    expanded: list[str] = []
    for name in names:
        if args.ratios and is_slice(name) and "ratio=" not in name:
            joint = "," if ":" in name else ":"
            expanded += [f"{name}{joint}ratio={ratio:g}" for ratio in args.ratios]
        else:
            expanded.append(name)
    return list(dict.fromkeys(expanded))


def seeds(args: argparse.Namespace) -> list[int]:
    """The seeds to run, each once."""
    return list(dict.fromkeys(args.seeds if args.seeds is not None else [args.seed]))


# How a real model is loaded, which a simulated run does not do, with the values of no flag.
LOADING = {
    "threads": ("-t", -1),
    "dtype": ("--dtype", "auto"),
    "device": ("--device", "cpu"),
    "atype": ("--atype", "auto"),
    "kv_cache_dtype": ("--kv_cache_dtype", "auto"),
    "gpu_mem_ratio": ("--gpu_mem_ratio", None),
    "vram_limit": ("--vram_limit", 0),
    "pack_cache": ("--pack-cache", False),
    "tokenizer": ("--tokenizer", None),
}


def note_ineffective(args: argparse.Namespace) -> None:
    """Says that an old flag, or a simulated run's model, does nothing."""
    for flag in ("long_threshold", "degrade_threshold"):
        if getattr(args, flag) is not None:
            print(f"note: --{flag.replace('_', '-')} has no effect", file=sys.stderr)
    if args.executor != "sim":
        return
    model = args.model if args.model is not None else args.path
    if model is not None:
        print(f"note: --executor sim does not read {model}", file=sys.stderr)
    for field, (flag, default) in LOADING.items():
        if getattr(args, field) != default:
            print(f"note: {flag} has no effect on --executor sim", file=sys.stderr)
