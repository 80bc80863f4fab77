"""Numbers as people read them."""

from __future__ import annotations

import re

_BYTES = ["B", "kB", "MB", "GB", "TB"]
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))
_FLOPS = ["", "k", "M", "G", "T", "P", "E"]


def bytes_text(count: float) -> str:
    """Bytes with a decimal unit.

    >>> bytes_text(512), bytes_text(47_185_920)
    ('512 B', '47.2 MB')
    """
    return _scaled(count, _BYTES)


def flops_text(count: float) -> str:
    """Floating-point operations.

    >>> flops_text(5.8e11)
    '580.0 GFLOP'
    """
    return _scaled(count, [f"{prefix}FLOP" for prefix in _FLOPS])


def count_text(count: float) -> str:
    """A count: exact while it is small, then with a prefix.

    >>> count_text(9_999), count_text(12_500), count_text(3_400_000)
    ('9,999', '12.5 k', '3.4 M')
    """
    for size, prefix in _COUNTS:
        if abs(count) >= size:
            return f"{count / (1000 if prefix == 'k' else size):.1f} {prefix}"
    return f"{count:,.0f}"


def seconds_text(seconds: float) -> str:
    """A duration, as finely as it matters.

    >>> seconds_text(0.0421), seconds_text(3.21), seconds_text(412)
    ('42 ms', '3.2 s', '6 min 52 s')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def inline(text: str) -> str:
    """Text from outside on one line of Markdown, where it can't become markup of its own.

    >>> inline("a [link](x)\\nand `code`")
    'a \\\\[link\\\\](x) and \\\\`code\\\\`'
    """
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _scaled(count: float, units: list[str]) -> str:
    for unit in units[:-1]:
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == units[0] else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {units[-1]}"
