"""Where a result comes from; for programs that run where slicellm need not be installed."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def machine() -> str:
    """The CPU of this machine."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores, {platform.machine()}"
    return platform.machine()


def commit() -> str:
    """The commit of the sources, "-dirty" where they differ from it; results do not count."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    sources = [".", ":!benchmark/results"]
    clean = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *sources], check=False)
    return head if clean.returncode == 0 else f"{head}-dirty"
