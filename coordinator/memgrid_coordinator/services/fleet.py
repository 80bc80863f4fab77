"""The hosts alive, counted by what they are."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from memgrid_coordinator.policy.device_classes import OTHER, commonest, device_class
from memgrid_coordinator.store.gauges import HostAlive


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Sums over the hosts alive; a host counts for the class of its first device, as its speed is that one's."""

    hosts: int
    accounts: int
    suspended: int
    devices: dict[str, int]
    flops_per_s: dict[str, float]


def fleet_of(alive: Sequence[HostAlive], now: datetime) -> Fleet:
    """Fold hosts into few classes, whatever they say of themselves."""
    said = [_classes(host.facts) for host in alive]
    told_apart = commonest(name for classes in said for name in classes)
    devices: Counter[str] = Counter()
    flops_per_s: defaultdict[str, float] = defaultdict(float)
    for host, classes in zip(alive, said, strict=True):
        folded = [name if name in told_apart else OTHER for name in classes]
        devices.update(folded)
        flops_per_s[folded[0] if folded else OTHER] += host.flops_per_s
    return Fleet(
        hosts=len(alive),
        accounts=len({host.account_id for host in alive}),
        suspended=sum(host.suspended_until is not None and host.suspended_until > now for host in alive),
        devices=dict(devices),
        flops_per_s=dict(flops_per_s),
    )


@lru_cache(maxsize=16_384)
def _classes(facts: str) -> tuple[str, ...]:
    # Most hosts are like others, and all of them like themselves ten seconds ago.
    return tuple(device_class(device["numerics_class"]) for device in json.loads(facts)["devices"])
