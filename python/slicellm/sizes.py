"""Sizes of memory as people write them."""

from __future__ import annotations

import re
from typing import Any

from .errors import InvalidArgument, make_error, show

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(?:([KMGT])(I)?)?B?")


def parse_size(value: Any, field: str) -> int:
    """Bytes of a number or of a text such as "8G" (decimal, as fastllm has it) or "8GiB".

    >>> [parse_size(size, "size") for size in (4096, "5G", "1.5MB", "168K", "2GiB")]
    [4096, 5000000000, 1500000, 168000, 2147483648]
    """
    size = 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.upper())):
        base = 1024 if match.group(3) else 1000
        size = float(match.group(1)) * base ** " KMGT".index(match.group(2) or " ")
    if not 1 <= size < 1 << 60:
        raise make_error(InvalidArgument, field, show(value), "a size such as 5G, 100M or 8GiB")
    return int(size)
