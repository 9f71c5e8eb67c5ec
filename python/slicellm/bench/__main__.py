"""`python -m slicellm.bench LOG`: the tables of an event log, from nothing but the log."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .eventlog import read
from .metrics import compute
from .report import print_results


def main(arguments: Sequence[str]) -> int:
    """Prints one table a seed."""
    if len(arguments) != 1:
        print("usage: python -m slicellm.bench LOG", file=sys.stderr)
        return 2
    try:
        runs = read(arguments[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for seed in dict.fromkeys(seed for _, seed in runs):
        print_results(
            {policy: compute(log) for (policy, s), log in runs.items() if s == seed}, f"seed {seed}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
