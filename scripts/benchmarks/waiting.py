"""Hosts in long polls, very many to a process: they take what they are rung for, and report it a little later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import grpc.aio

from memgrid.channel import open_channel
from memgrid.endpoint import discover
from memgrid.errors import MemgridError
from memgrid.testing import SimulatedHost, SimulatedWork
from memgrid.units import LeaseId, LeaseOffer, UnitKey
from memgrid.v1 import volunteers_pb2 as pb

CHANNELS = 4
ENROLLING_AT_ONCE = 16
LONG_POLL = timedelta(seconds=25)
THINKING_S = 0.5
_TOKEN: ContextVar[str | None] = ContextVar("token", default=None)
"""Many hosts share a channel: whose call it is decides whose token goes with it."""


@dataclass(slots=True, kw_only=True)
class Heard:
    """What one process of hosts measured; moments are of the clock that all processes of a machine share."""

    report_s: list[float]
    """How long each Sync with a report took."""
    leased: dict[UnitKey, list[float]]
    """When each unit was leased."""
    nothing_s: list[float]
    """How long calls took that the coordinator answers without a look at anything: what the machine itself adds."""
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One process of such hosts; `work` is what every unit comes to, without the content, which the grid has."""

    url: str
    home: Path
    hosts: int
    work: Mapping[UnitKey, SimulatedWork]


def serve(task: Task, ready: Queue[None], over: Event, heard: Queue[Heard]) -> None:
    """Enrol, say so, and serve until it is over; for a process of its own."""
    heard.put(asyncio.run(_Crowd(task, over).run(ready)))


class _Crowd:
    def __init__(self, task: Task, over: Event) -> None:
        self._task = task
        self._over = over
        self._heard = Heard(report_s=[], leased={}, nothing_s=[])

    async def run(self, ready: Queue[None]) -> Heard:
        endpoint = await asyncio.to_thread(discover, self._task.url, home=self._task.home)
        channels = [open_channel(endpoint, _TOKEN.get) for _ in range(CHANNELS)]
        hosts = [
            SimulatedHost(endpoint=endpoint, _channel=channels[number % CHANNELS])
            for number in range(self._task.hosts)
        ]
        turns = asyncio.Semaphore(ENROLLING_AT_ONCE)
        await asyncio.gather(*(self._enrol(host, turns) for host in hosts))
        serving = [asyncio.create_task(self._serve(host)) for host in hosts]
        serving.append(asyncio.create_task(self._ask_for_nothing(hosts[0])))
        ready.put(None)
        await asyncio.to_thread(self._over.wait)
        for one in serving:
            one.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for channel in channels:
            await channel.close()
        return self._heard

    async def _enrol(self, host: SimulatedHost, turns: asyncio.Semaphore) -> None:
        async with turns:
            await host.enrol()

    async def _serve(self, host: SimulatedHost) -> None:
        _TOKEN.set(host.token)
        awaiting: dict[LeaseId, None] = {}
        finished: list[SimulatedWork] = []
        while True:
            began_s = time.monotonic()
            try:
                wait = timedelta(0) if finished else LONG_POLL
                answer = await host.sync(want=1, awaiting=list(awaiting), work=finished, wait=wait)
            except (MemgridError, grpc.aio.AioRpcError):
                self._heard.errors += 1
                await asyncio.sleep(1.0)
                continue
            now_s = time.monotonic()
            if finished:
                self._heard.report_s.append(now_s - began_s)
            for verdict in answer.verdicts:
                awaiting.pop(verdict.lease_id, None)
            for offer in answer.leases:
                self._heard.leased.setdefault(offer.unit_key, []).append(now_s)
            finished = [self._finished(offer) for offer in answer.leases]
            awaiting |= dict.fromkeys(one.claim.lease_id for one in finished)
            if finished:
                await asyncio.sleep(THINKING_S)

    async def _ask_for_nothing(self, host: SimulatedHost) -> None:
        while True:
            await asyncio.sleep(THINKING_S / 5)
            began_s = time.monotonic()
            await host.stub.GetChallenge(pb.GetChallengeRequest())
            self._heard.nothing_s.append(time.monotonic() - began_s)

    def _finished(self, offer: LeaseOffer) -> SimulatedWork:
        done = self._task.work[offer.unit_key]
        return replace(done, claim=replace(done.claim, lease_id=offer.lease_id, fence=offer.fence))
