"""Strangers and operators can make only so many series, whatever they say and however many they are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from memgrid.channel import open_channel
from memgrid.clock import SystemClock
from memgrid.cube.manifest import CubeKind
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.errors import MemgridError
from memgrid.testing import FACTS, SimulatedHost
from memgrid.units import DeviceFacts, ReasonCode
from memgrid.v1 import volunteers_pb2 as pb
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState, LeaseState, UnitState
from memgrid_coordinator.metrics import UNIT_KINDS
from memgrid_coordinator.policy.device_classes import CLASSES_MAX
from memgrid_coordinator.services.gauging import CAMPAIGNS_MAX
from memgrid_coordinator.store import campaigns
from tests.grids import campaign_file, running_coordinator

_STATES = len({*UnitState, *LeaseState, *CampaignState})
_FEW = 40
"""For what this program names itself, in its own code: functions, sweeps, routes, methods."""
MOST = {
    "answer": len(ReasonCode) + 1,
    "campaign": CAMPAIGNS_MAX,
    "campaign_id": CAMPAIGNS_MAX,
    "class": CLASSES_MAX + 1,
    "code": _FEW,
    "direction": 2,
    "function": _FEW,
    "kind": len(UNIT_KINDS) + len(CubeKind),
    "lane": 4,
    "le": _FEW,
    "limit": 2,
    "method": _FEW,
    "of": 5,
    "part": 5,
    "reason": len(ReasonCode),
    "repository_kind": 5,
    "route": _FEW,
    "stage": 3,
    "state": _STATES,
    "status": 25,
    "sweep": 12,
    "verdict": 4,
    "version": 1,
    "what": 2,
    "where": 2,
    "within": 4,
}
"""How many values a label may have, of every label there is."""
_RARE = ("PROPFIND", "MKCOL", "SEARCH", "PURGE", "REBIND", "UNLOCK")
"""HTTP methods that the parser knows and nobody uses here."""


async def test_nobody_makes_more_series_than_there_may_be(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as (coordinator, endpoint):
        await ask_for_nonsense(endpoint)
        await enrol_a_zoo(endpoint)
        await submit_many(coordinator)
        await coordinator.sweeps.run_now("gauges")
        found = values_of(coordinator.metrics.registry)
    assert set(found) <= set(MOST), f"labels nobody has thought about: {set(found) - set(MOST)}"
    assert {label: len(values) for label, values in found.items() if len(values) > MOST[label]} == {}
    assert len(found["class"]) == CLASSES_MAX + 1, "the rest is `other`"
    assert len(found["campaign_id"]) == CAMPAIGNS_MAX
    assert found["campaign"] >= {f"campaign-{CAMPAIGNS_MAX + 9:02}"}, "the newest are told apart"
    assert "other" in found["method"], "a made-up HTTP method is no label"
    assert "none" in found["route"], "nor is a path that leads nowhere"


def values_of(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The values of each label, over all series."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for family in registry.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                found[label].add(value)
    return found


async def ask_for_nonsense(endpoint: GridEndpoint) -> None:
    """Requests and calls that nobody would make in earnest."""
    async with async_http_client(endpoint) as http:
        for number in range(60):
            await http.request(_RARE[number % len(_RARE)], f"/nonsense/{number}")
            await http.get(f"/v2/cubes/number{number}/manifests/{number}.0.0")
            await http.get(f"/v2/grid/outputs/{number}/blobs/sha256:{number:064}")
    channel = open_channel(endpoint, lambda: "made up")
    for number in range(45):
        call = channel.unary_unary(f"/memgrid.v1.Volunteers/Made{number}", pb.SyncRequest.SerializeToString)
        with pytest.raises(MemgridError):
            await call(pb.SyncRequest())
    await channel.close()


async def enrol_a_zoo(endpoint: GridEndpoint) -> None:
    """Hosts with devices of their own invention, and of more classes than are told apart."""
    for number in range(CLASSES_MAX + 8):
        names = (f"cuda-sm{number}/torch-2.13.0", f'invented"{number}\n/{{}}')
        devices = tuple(
            DeviceFacts(kind=f"kind{number}", name=f"name {number}", memory_bytes=1 << 30, numerics_class=name)
            for name in names
        )
        host = SimulatedHost(endpoint=endpoint, facts=replace(FACTS, devices=devices), label=f"host{number}")
        await host.enrol()
        await host.close()


async def submit_many(coordinator: Coordinator) -> None:
    now, spec = SystemClock().now(), campaign_file().to_bytes().decode()

    def step(connection: Any) -> None:
        for number in range(CAMPAIGNS_MAX + 10):
            campaigns.add(
                connection,
                campaigns.CampaignId(f"{number:032}"),
                request_id=str(number),
                name=f"campaign-{number:02}",
                recipe="activation",
                model="models/tiny",
                spec=spec,
                priority=0,
                now=now.replace(microsecond=number),
            )

    await coordinator.store.write(step)
