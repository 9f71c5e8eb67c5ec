"""`ftllm download`: models from the Hugging Face Hub or a mirror of it, by huggingface-hub."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from ..errors import InvalidArgument, IoError, Unsupported, make_error, show
from .common import whole

EPILOG = """\
A dropped connection is taken up again; after an interruption the same command fetches what is
missing and leaves complete files alone. --endpoint or the environment variable HF_ENDPOINT names a
mirror. Needs `pip install slicellm[hub]`.

examples:
  ftllm download Qwen/Qwen2.5-0.5B-Instruct --local-dir qwen
  ftllm download Qwen/Qwen2.5-0.5B-Instruct --include "*.safetensors" "*.json"
  ftllm download THUDM/chatglm2-6b --endpoint https://hub.example.org --revision main
  ftllm download Qwen/Qwen2.5-0.5B-Instruct --offline      (only looks in the cache)
"""

# Weights come as safetensors; other formats would only take space and are not read here.
DEFAULT_EXCLUDE = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ckpt"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", metavar="REPO", help="owner/name on the Hub")
    parser.add_argument(
        "--include", nargs="+", metavar="PATTERN", help="only these files, e.g. '*.safetensors'"
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        metavar="PATTERN",
        help="not these files (default: weights in formats other than safetensors)",
    )
    parser.add_argument("--revision", default="main", metavar="REV", help="branch, tag or commit")
    parser.add_argument(
        "--local-dir",
        "--local_dir",
        metavar="DIR",
        help="where to put the files (default: the Hub's cache)",
    )
    parser.add_argument("--hf_token", metavar="TOKEN", help="for private or gated models")
    parser.add_argument("--endpoint", metavar="URL", help="a mirror (default: HF_ENDPOINT)")
    parser.add_argument("--offline", action="store_true", help="only what is here already")
    parser.add_argument(
        "-j", type=whole(1, 32), default=5, metavar="N", help="files at once (default 5)"
    )
    for name in ("--hf_username", "--tool", "--dataset", "-x"):
        parser.add_argument(name, nargs="?", const="", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Downloads a repository and prints where it is."""
    if args.dataset is not None:
        raise make_error(Unsupported, "--dataset", "a data set", "a model's repository")
    for name, reason in (
        ("tool", "huggingface-hub downloads, with -j files at once"),
        ("x", "use -j for files at once"),
        ("hf_username", "--hf_token alone identifies you"),
    ):
        if getattr(args, name) is not None:
            flag = "-x" if name == "x" else f"--{name}"
            value = show(getattr(args, name))
            raise make_error(Unsupported, flag, value, f"no such flag: {reason}")
    endpoint = args.endpoint or os.environ.get("HF_ENDPOINT") or None
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise make_error(InvalidArgument, "--endpoint", show(endpoint), "an http(s) address")
    snapshot_download = _import_hub()
    path = _guarded(
        args.repo,
        lambda: snapshot_download(
            args.repo,
            revision=args.revision,
            allow_patterns=args.include,
            ignore_patterns=args.exclude if args.exclude or args.include else DEFAULT_EXCLUDE,
            local_dir=args.local_dir,
            token=args.hf_token,
            endpoint=endpoint,
            local_files_only=args.offline,
            max_workers=args.j,
        ),
    )
    print(path)


def _import_hub() -> Callable[..., str]:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        expected = "huggingface-hub: pip install slicellm[hub]"
        raise make_error(Unsupported, "download", "no huggingface-hub", expected) from None
    download: Callable[..., str] = snapshot_download
    return download


def _guarded(repo: str, download: Callable[[], str]) -> str:
    """The library's errors as one sentence each."""
    from huggingface_hub import errors

    def error(kind: Any, got: str, expected: str) -> Any:
        return make_error(kind, f"repository {show(repo)}", got, expected)

    try:
        return download()
    except errors.HFValidationError:
        raise error(InvalidArgument, "a name that is none", "owner/name") from None
    except errors.GatedRepoError:
        expected = "--hf_token of an account that was granted access"
        raise error(IoError, "a gated model", expected) from None
    except errors.RepositoryNotFoundError:
        expected = "a public model, or --hf_token for a private one"
        raise error(IoError, "no such model", expected) from None
    except errors.RevisionNotFoundError:
        raise error(IoError, "no such revision", "a branch, tag or commit of it") from None
    except errors.LocalEntryNotFoundError:
        expected = "a complete copy (--offline), or a reachable hub or mirror (--endpoint)"
        raise error(IoError, "no local copy", expected) from None
    except Exception as cause:  # the errors of its transports have no other base in common
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise error(IoError, reason, "a hub that answers; run the command again to go on") from None
