"""What hosts say of their devices, folded into few classes: their words are theirs, and could be anything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

OTHER = "other"
CLASSES_MAX = 16
"""Classes told apart at once; the rarest beyond are `other`."""
_FORM = re.compile(r"(?:cpu|cuda|rocm|mps)-[a-z0-9_.-]{1,32}")


def device_class(numerics_class: str) -> str:
    """The part of a numerics class that names the hardware; `other` for what no volunteer of ours would say.

    >>> device_class("cuda-sm90/torch-2.13.0"), device_class("cpu-x86_64-avx512/torch-2.6.0")
    ('cuda-sm90', 'cpu-x86_64-avx512')
    >>> device_class('cuda-"} 1'), device_class("simulated/1")
    ('other', 'other')
    """
    hardware = numerics_class.partition("/")[0]
    return hardware if _FORM.fullmatch(hardware) else OTHER


def commonest(classes: Iterable[str], most: int = CLASSES_MAX) -> frozenset[str]:
    """The classes to tell apart: at most so many, those seen most often; of equals the first by name.

    >>> sorted(commonest(["cuda-sm90", "cpu-arm", "cuda-sm90", "cpu-x86", "other"], most=2))
    ['cpu-arm', 'cuda-sm90']
    """
    counts = Counter(name for name in classes if name != OTHER)
    return frozenset(sorted(counts, key=lambda name: (-counts[name], name))[:most])
