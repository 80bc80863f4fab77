"""Simulated hosts that keep a coordinator busy: the real protocol, real keys, results made beforehand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx

from memgrid.cli.control import control_plane
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu, SimulatedHost, SimulatedWork
from memgrid.units import LeaseId, LeaseOffer, SyncAnswer, UnitKey, UploadOrder
from memgrid.v1 import campaigns_pb2 as pb
from memgrid_coordinator.heavy.plan import ActivationPlan

IDLE_WAIT = timedelta(seconds=1)
LOOK_EVERY_S = 0.5
LIMIT_S = 600.0


def prepare_work(plan: ActivationPlan, geometry: ModelGeometry) -> dict[UnitKey, SimulatedWork]:
    """The result of every unit of a plan, in the right form, with its sketch."""
    gpu = SimulatedGpu(geometry)
    return {
        chunk.key: gpu.work(
            LeaseOffer(
                lease_id=LeaseId(""),
                fence=0,
                unit_key=chunk.key,
                spec=chunk.spec_bytes,
                model=chunk.spec.model,
                inputs=(),
                deadline_at=datetime.now(UTC),
                estimate_s=0.0,
            ),
            chunk.tokens,
        )
        for chunk in plan.chunks
    }


class Load:
    """Hosts of as many accounts that report as soon as they are asked; `sync_s` is how long each call took."""

    def __init__(
        self, endpoint: GridEndpoint, work: Mapping[UnitKey, SimulatedWork], batch: int, uploads: bool
    ) -> None:
        self._endpoint = endpoint
        self._work = work
        self._batch = batch
        self._uploads = uploads
        self._hosts: list[SimulatedHost] = []
        self._accepted = asyncio.Event()
        self.sync_s: list[float] = []

    async def enrol(self, count: int) -> None:
        self._hosts = [SimulatedHost(endpoint=self._endpoint) for _ in range(count)]
        await asyncio.gather(*(host.enrol() for host in self._hosts))

    async def work_until_accepted(self, units: int, token: str, campaign_id: str) -> None:
        """Raises TimeoutError when it does not come to an end."""
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            for host in self._hosts:
                group.create_task(self._serve(host))
            await self._wait_for(units, token, campaign_id)
            self._accepted.set()
        for host in self._hosts:
            await host.close()

    async def _wait_for(self, units: int, token: str, campaign_id: str) -> None:
        async with control_plane(self._endpoint, token) as plane:
            while True:
                campaign = await plane.campaigns.Get(pb.GetCampaignRequest(campaign_id=campaign_id))
                if campaign.units_by_state.get("accepted", 0) >= units:
                    return
                await asyncio.sleep(LOOK_EVERY_S)

    async def _serve(self, host: SimulatedHost) -> None:
        """Report what was leased, ask for more, until everything is accepted."""
        awaiting: dict[LeaseId, SimulatedWork] = {}
        finished: list[SimulatedWork] = []
        async with async_http_client(self._endpoint, host.token) as http:
            while not self._accepted.is_set():
                answer = await self._sync(host, awaiting, finished)
                for verdict in answer.verdicts:
                    awaiting.pop(verdict.lease_id, None)
                for order in answer.uploads if self._uploads else ():
                    if order.lease_id in awaiting:
                        await upload(http, order, awaiting[order.lease_id].content)
                finished = [self._finished(offer) for offer in answer.leases]
                awaiting |= {done.claim.lease_id: done for done in finished}

    async def _sync(
        self, host: SimulatedHost, awaiting: Mapping[LeaseId, SimulatedWork], finished: list[SimulatedWork]
    ) -> SyncAnswer:
        began_s = time.perf_counter()
        wait = timedelta(0) if finished else IDLE_WAIT
        answer = await host.sync(want=self._batch, awaiting=list(awaiting), work=finished, wait=wait)
        if finished:
            self.sync_s.append(time.perf_counter() - began_s)
        return answer

    def _finished(self, offer: LeaseOffer) -> SimulatedWork:
        done = self._work[offer.unit_key]
        return replace(done, claim=replace(done.claim, lease_id=offer.lease_id, fence=offer.fence))


async def upload(http: httpx.AsyncClient, order: UploadOrder, content: bytes) -> None:
    """Send an ordered output in one piece, over a connection that stays open as a volunteer's does."""
    location = (await http.post(order.path)).raise_for_status().headers["location"]
    joiner = "&" if "?" in location else "?"
    (await http.put(f"{location}{joiner}digest={order.digest}", content=content)).raise_for_status()
