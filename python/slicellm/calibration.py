"""Latency models measured on this machine, kept in a cache.

A calibration takes some seconds and holds for one model, its dtypes, thread count and CPU. It lies
in SLICELLM_CACHE, else in slicellm/ of XDG_CACHE_HOME, else in ~/.cache/slicellm, one JSON file a
calibration. A file that cannot be read as one is measured again.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

from . import _core
from .errors import Error, InvalidArgument, make_error, show
from .model import Model, Progress

DEFAULT_SECONDS = 10.0
_MAX_BYTES = 4 << 20


def cache_directory() -> Path:
    """Where calibrations are kept."""
    own = os.environ.get("SLICELLM_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "slicellm"


def cache_file(model: Model) -> Path:
    """The file of this model's calibration, whether it exists or not."""
    name = model.fingerprint
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", name):
        name = hashlib.sha256(name.encode()).hexdigest()
    return cache_directory() / f"{name}.json"


def latency_model(
    model: Model,
    seconds: float = DEFAULT_SECONDS,
    refresh: bool = False,
    progress: Progress | None = None,
) -> _core.LatencyModel:
    """The latency model of `model` on this machine: from the cache, else measured and stored.

    Args:
        seconds: about how long measuring takes.
        refresh: measure even if the cache has one.
        progress: called with (done, total) while measuring; None = a line on a terminal's stderr.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 3600:
        raise make_error(InvalidArgument, "seconds", show(seconds), "a number above 0, below 3600")
    path = cache_file(model)
    cached = None if refresh else load_cached(path)
    if cached is not None:
        return cached
    if progress is None and sys.stderr.isatty():
        progress = _print_progress
    measured = _core.calibrate(model.core, float(seconds), progress)
    try:
        _store(path, measured.to_json())
    except OSError as error:
        print(f"slicellm: calibration not kept: {path}: {error.strerror}", file=sys.stderr)
    return measured


def load_cached(path: Path) -> _core.LatencyModel | None:
    """The calibration in a file; None if there is none or it is broken."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_BYTES).decode("utf-8")
        return _core.LatencyModel.from_json(text)
    except (OSError, UnicodeDecodeError, Error):
        return None


def _store(path: Path, text: str) -> None:
    """Writes a file that is either whole or not there, whoever writes at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".calibration-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _print_progress(done: int, total: int) -> None:
    end = "\n" if done >= total else ""
    share = 100 * done // max(total, 1)
    print(f"\rmeasuring this model on this machine: {share:3d} %", end=end, file=sys.stderr)
    sys.stderr.flush()
