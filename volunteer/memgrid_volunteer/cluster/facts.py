"""What a grid is told of a cluster that is one host."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace

from memgrid.units import HostFacts
from memgrid_volunteer.isolation import Isolation


def facts_of(own: HostFacts, others: Sequence[HostFacts]) -> HostFacts:
    """Every device with its own class of rounding, processors and memory of all, and the weakest of the walls.

    Release, system and architecture are the same everywhere: other machines are not taken up.

    >>> own = HostFacts(os="Linux 6", arch="x86_64", cpu_count=8, memory_bytes=16, devices=(), client_version="0.1.0",
    ...     isolation="bubblewrap")
    >>> there = replace(own, cpu_count=64, isolation="filters")
    >>> facts_of(own, [there]).cpu_count, facts_of(own, [there]).isolation
    (72, 'filters')
    """
    all_of_it = (own, *others)
    strength = [level.value for level in Isolation]
    return replace(
        own,
        cpu_count=sum(each.cpu_count for each in all_of_it),
        memory_bytes=sum(each.memory_bytes for each in all_of_it),
        devices=tuple(device for each in all_of_it for device in each.devices),
        isolation=max((each.isolation for each in all_of_it), key=strength.index),
    )


def platform_here() -> str:
    """What all machines of one host have in common.

    >>> platform_here() == f"{platform.system()} {platform.machine()}"
    True
    """
    return f"{platform.system()} {platform.machine()}"
