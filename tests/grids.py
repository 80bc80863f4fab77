"""A whole coordinator in the test's own process, with a model and campaigns put in as an operator would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from memgrid.campaign import CampaignFile
from memgrid.clock import Clock
from memgrid.cube.identity import model_files
from memgrid.cube.oci import FILE_TYPE, MODEL_ARTIFACT_TYPE, OCI_MANIFEST_TYPE, Descriptor, OciManifest
from memgrid.digest import digest_of
from memgrid.endpoint import GridEndpoint, discover
from memgrid.testing import SimulatedGpu, SimulatedHost, SimulatedWork
from memgrid.units import LeaseId, LeaseOffer
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.heavy.runner import Engine, InlineEngine
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.policy.trust import TrustRule
from memgrid_coordinator.records import Caller, Campaign, Role, Submission, SubmittedSource
from memgrid_coordinator.settings import Settings

OPERATOR = Caller(role=Role.OPERATOR)
MODEL = "models/tiny"


@cache
def shared_engine() -> Engine:
    """One pool of processes for all tests: each would take seconds to import what planning needs."""
    return InlineEngine(processes=1)


@cache
def shared_replays() -> Engine:
    """The lane for what needs torch, likewise."""
    return InlineEngine(processes=1)


@asynccontextmanager
async def running_coordinator(
    data: Path,
    *,
    clock: Clock | None = None,
    replays: Engine | None = None,
    trust: TrustRule | None = None,
    **changed: Any,
) -> AsyncIterator[tuple[Coordinator, GridEndpoint]]:
    """A coordinator on free ports; sweeps run fast, new accounts may hold much, nobody is tested in secret.

    Simulated hosts compute nothing, so that hosts alone decide which of them is right.
    `trust` judges strangers otherwise than a grid's owner could ask for: never by chance, say. With `ray` it has an
    engine of its own, else one that all tests share.
    """
    quick = {
        "sweep_every": timedelta(milliseconds=50),
        "drain_max": timedelta(seconds=5),
        "trust_held_at_first": 64,
        "canary_share": 0.0,
        "arbiter": False,
    }
    given = {"http_port": 0, "grpc_port": 0, **quick, **changed}
    settings = Settings(data=data, **given) if trust is None else _Judging(data=data, rule=trust, **given)
    engines = {} if "ray" in changed else {"engine": shared_engine(), "replays": replays or shared_replays()}
    async with Coordinator(settings, clock=clock, **engines) as coordinator:
        endpoint = await asyncio.to_thread(discover, coordinator.address.url, home=data / "client")
        yield coordinator, endpoint


class _Judging(Settings):
    """Settings whose rule about strangers is given whole."""

    rule: TrustRule

    @property
    def trust(self) -> TrustRule:
        return self.rule


async def push_model(coordinator: Coordinator, folder: Path) -> None:
    """Put a model folder into the pool."""
    await push_files(coordinator, MODEL, {path.name: path.read_bytes() for path in model_files(folder)})


async def push_files(coordinator: Coordinator, repository: str, files: dict[str, bytes]) -> None:
    """Put files into the pool as one model."""
    layers = []
    for name, content in files.items():
        coordinator.blobs.put_bytes(content)
        layers.append(Descriptor.of(content, FILE_TYPE, name))
    config = b"{}"
    coordinator.blobs.put_bytes(config)
    manifest = OciManifest(
        artifact_type=MODEL_ARTIFACT_TYPE,
        config=Descriptor.of(config, "application/vnd.oci.empty.v1+json", None),
        layers=tuple(layers),
        annotations={},
    )
    await coordinator.publishing.put_manifest(OPERATOR, repository, "latest", manifest.to_bytes(), OCI_MANIFEST_TYPE)


def campaign_file(**changed: Any) -> CampaignFile:
    """A small campaign; keywords replace whole parts of it."""
    value = {
        "name": "handbook",
        "model": MODEL,
        "recipe": "activation",
        "sources": [{"path": "*.txt"}],
        "activation": {"chunk_tokens": 32, "wrap": "plain"},
        "publish": {"namespace": "handbook", "version": "1.0.0", "licence": "CC-BY-4.0"},
    }
    if changed.get("recipe") == "distill":
        del value["activation"]
    return CampaignFile.model_validate({**value, **changed})


async def submit(
    coordinator: Coordinator, texts: dict[str, str], *, request_id: str = "request-1", **changed: Any
) -> Submission:
    """Submit a campaign over some texts."""
    sources = []
    for name, text in texts.items():
        digest = coordinator.blobs.put_bytes(text.encode())
        sources.append(
            SubmittedSource(uri=name, digest=digest, format="txt", licence="CC-BY-4.0", text_column="", id_column="")
        )
        assert digest == digest_of(text.encode())
    campaign = campaign_file(**changed).to_bytes()
    return await coordinator.campaigns.submit(OPERATOR, request_id=request_id, campaign=campaign, sources=sources)


@asynccontextmanager
async def simulated_hosts(endpoint: GridEndpoint, count: int) -> AsyncIterator[list[SimulatedHost]]:
    """So many hosts of as many accounts, enrolled and logged in."""
    hosts = [SimulatedHost(endpoint=endpoint) for _ in range(count)]
    try:
        for host in hosts:
            await host.enrol()
        yield hosts
    finally:
        for host in hosts:
            await host.close()


async def eventually(check: Callable[[], Awaitable[Any]], *, limit_s: float = 60.0) -> Any:
    """The first true answer of `check`; TimeoutError when none comes in time."""
    async with asyncio.timeout(limit_s):
        while True:
            if found := await check():
                return found
            await asyncio.sleep(0.02)


async def campaign_of(coordinator: Coordinator, submission: Submission) -> Campaign:
    return await coordinator.campaigns.get(OPERATOR, submission.campaign.campaign_id)


async def tokens_of(coordinator: Coordinator, offer: LeaseOffer) -> bytes:
    return coordinator.blobs.read_bytes(offer.inputs[0].digest)


async def work_on(coordinator: Coordinator, gpu: SimulatedGpu, offer: LeaseOffer) -> SimulatedWork:
    return gpu.work(offer, await tokens_of(coordinator, offer))


async def run_until_ended(
    coordinator: Coordinator,
    submission: Submission,
    hosts: dict[SimulatedHost, SimulatedGpu],
    reported: dict[SimulatedHost, list[SimulatedWork]] | None = None,
) -> None:
    """Let hosts do everything they are asked until the campaign is over; `reported` is what they did before."""

    async def volunteer(host: SimulatedHost, gpu: SimulatedGpu) -> None:
        kept: dict[LeaseId, SimulatedWork] = {one.claim.lease_id: one for one in (reported or {}).get(host, [])}
        work: list[SimulatedWork] = []
        while True:
            answer = await host.sync(want=4, awaiting=list(kept), work=work, wait=timedelta(seconds=0.2))
            for order in answer.uploads:
                assert (await host.upload(order, kept[order.lease_id].content)).status_code == 201
            for verdict in answer.verdicts:
                kept.pop(verdict.lease_id, None)
            work = [await work_on(coordinator, gpu, offer) for offer in answer.leases]
            kept |= {one.claim.lease_id: one for one in work}

    async def is_over() -> bool:
        return (await campaign_of(coordinator, submission)).state is not CampaignState.RUNNING

    tasks = [asyncio.create_task(volunteer(host, gpu)) for host, gpu in hosts.items()]
    try:
        await eventually(is_over)
    finally:
        for task in tasks:
            task.cancel()
        failures = [one for one in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(one, Exception)]
        assert not failures
