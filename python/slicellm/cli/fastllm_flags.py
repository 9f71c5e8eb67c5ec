"""Flags of fastllm's command lines that slicellm does not have: none of them is ignored silently.

A flag that asks for something we cannot do is refused with what to do instead; one that could not
change the outcome here is said to be without effect. A flag given with fastllm's own default asks
for nothing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from ..errors import Unsupported, make_error, show


@dataclass(frozen=True)
class OtherFlag:
    names: tuple[str, ...]
    reason: str
    refused: bool  # else: without effect
    default: str = ""  # fastllm's
    is_switch: bool = False  # takes no value


def _refused(names: str, reason: str, default: str = "", is_switch: bool = False) -> OtherFlag:
    return OtherFlag(tuple(names.split()), reason, True, default, is_switch)


def _no_effect(names: str, reason: str, default: str = "", is_switch: bool = False) -> OtherFlag:
    return OtherFlag(tuple(names.split()), reason, False, default, is_switch)


_NO_MOE = "mixture-of-experts models are not supported yet"
_WHOLE_LAYERS = "--device cuda:0=16,cuda:1=16 gives each GPU whole layers"
_ALL_ON_GPU = "with --device cuda the whole model is on the GPU"
_NO_SPECULATION = "the only speculation is Engine(prompt_lookup=K), without a draft model"
_CACHED = "what prompts have in common is computed once in any case"

MODEL_FLAGS = (
    _no_effect("-l --low", "weights are memory-mapped and packed once in any case", "", True),
    _no_effect("--cuda_embedding", _ALL_ON_GPU, "", True),
    _no_effect("--cuda_shared_expert --cuda_se", _ALL_ON_GPU, "true"),
    _no_effect("--cuda_slab", _ALL_ON_GPU, "0"),
    _no_effect("--enable_amx --amx", "kernels are chosen by the CPU's features", "false"),
    _no_effect("--page_size", "KV blocks hold 16 tokens", "-1"),
    _no_effect("--moe_dtype", "the models that load here have no expert layers"),
    _no_effect("--moe_atype", "the models that load here have no expert layers", "auto"),
    _refused("--moe_device", _NO_MOE),
    _refused("--moe_device_layers", _NO_MOE, "-1"),
    _refused("--moe_experts", _NO_MOE, "-1"),
    _refused("--tp", _WHOLE_LAYERS),
    _refused("--triton", "kernels are our own", "", True),
    _no_effect("--cache_history", _CACHED),
    _no_effect("--cache_fast", _CACHED),
    _no_effect("--prefix_cache", _CACHED, "false"),
    _no_effect("--prefix_cache_snapshot_interval_pages", _CACHED),
    _no_effect("--prefix_cache_snapshot_max_per_request", _CACHED),
    _no_effect("--prefix_cache_snapshot_max_records", _CACHED),
    _refused("--mtp", _NO_SPECULATION, "0"),
    _refused("--dspark", _NO_SPECULATION, "0"),
    _refused("--speculative_model", _NO_SPECULATION),
    _refused("--speculative_num_tokens", _NO_SPECULATION),
    _refused("--custom", "model code from files is never run"),
    _refused("--lora", "merge the adapter into the model first (peft's merge_and_unload)"),
    _refused("--dtype_config", "one --dtype holds for all linear layers"),
    _refused("--ori", "GGUF files are not supported yet"),
    _refused("--cache_dir", "`ftllm download --local-dir DIR` puts a model where you want it"),
    _refused("--tool_call_parser", "a server is not there yet", "auto"),
)


def add_other_flags(parser: argparse.ArgumentParser, flags: tuple[OtherFlag, ...]) -> None:
    """Makes the parser know the flags, without a line in its help."""
    for flag in flags:
        if flag.is_switch:
            parser.add_argument(*flag.names, action="store_true", help=argparse.SUPPRESS)
        else:
            parser.add_argument(*flag.names, metavar="VALUE", help=argparse.SUPPRESS)


def check_other_flags(args: argparse.Namespace, flags: tuple[OtherFlag, ...]) -> None:
    """Raises Unsupported for a flag that is refused, notes one that has no effect."""
    for flag in flags:
        long_name = next(name for name in flag.names if name.startswith("--"))
        value = getattr(args, long_name.removeprefix("--").replace("-", "_"))
        if not value or (not flag.is_switch and value.lower() == flag.default):
            continue
        if flag.refused:
            shown = "the flag" if flag.is_switch else show(value)
            raise make_error(Unsupported, long_name, shown, f"no such flag: {flag.reason}")
        print(f"note: {long_name} has no effect: {flag.reason}", file=sys.stderr)
