"""A data plane on a free port, over a real store, with an order book in the place of judging."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx

from memgrid.clock import Clock, ManualClock
from memgrid.cube.oci import CUBE_ARTIFACT_TYPE, CUBE_CONFIG_TYPE, OCI_MANIFEST_TYPE, TITLE
from memgrid.digest import Digest, canonical_json, digest_of
from memgrid.errors import TokenExpiredError, TokenRequiredError
from memgrid.signing import SigningKey
from memgrid.units import AccountId, HostId, LeaseId, Reason, UploadOrder
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.records import ANONYMOUS, Caller, Role
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.models import Models
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.overview import Overview
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.services.pulls import Pulls
from memgrid_coordinator.services.travelling import Travelling
from memgrid_coordinator.services.uploads import UploadLimits, Uploads
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.web.bodies import DEFAULT_PACE, Pace
from memgrid_coordinator.web.facts import GridFacts
from memgrid_coordinator.web.server import WebServer, WebServices
from tests.certificates import make_certificate

OPERATOR = "operator-token"
VOLUNTEER = "volunteer-token"
STRANGER = "another-volunteer-token"
EXPIRED = "expired-token"
HOST = HostId("host-1")

_CALLERS = {
    OPERATOR: Caller(role=Role.OPERATOR),
    VOLUNTEER: Caller(role=Role.VOLUNTEER, host_id=HOST, account_id=AccountId("a1")),
    STRANGER: Caller(role=Role.VOLUNTEER, host_id=HostId("host-2"), account_id=AccountId("a2")),
}


async def identify(token: str | None) -> Caller:
    """Who stands behind the test tokens."""
    if token is None:
        return ANONYMOUS
    if token == EXPIRED:
        raise TokenExpiredError("the token has expired; log in again")
    if token not in _CALLERS:
        raise TokenRequiredError("this token is not this grid's; log in")
    return _CALLERS[token]


@dataclass
class OrderBook:
    """Uploads that are wanted, and what became of them."""

    orders: dict[HostId, list[UploadOrder]] = field(default_factory=dict)
    received: list[Digest] = field(default_factory=list)
    refused: list[Reason] = field(default_factory=list)

    def order(self, content: bytes, lease_id: str = "lease1", host_id: HostId = HOST) -> str:
        """Want these bytes from a host; returns the path to send them to."""
        path = f"/v2/grid/outputs/{lease_id}/blobs/uploads/"
        order = UploadOrder(
            lease_id=LeaseId(lease_id),
            name="kv.safetensors",
            digest=digest_of(content),
            size_bytes=len(content),
            path=path,
        )
        self.orders.setdefault(host_id, []).append(order)
        return path

    async def wanted_uploads(self, host_id: HostId, lease_id: LeaseId) -> tuple[UploadOrder, ...]:
        return tuple(order for order in self.orders.get(host_id, []) if order.lease_id == lease_id)

    async def receive_upload(self, *, host_id: HostId, lease_id: LeaseId, digest: Digest) -> None:
        self.orders[host_id] = [order for order in self.orders[host_id] if order.digest != digest]
        self.received.append(digest)

    async def refuse_upload(self, *, host_id: HostId, lease_id: LeaseId, reason: Reason) -> None:
        self.refused.append(reason)


@dataclass
class DataPlane:
    """One running data plane and what is behind it."""

    url: str
    port: int
    folder: Path
    blobs: BlobStore
    publishing: Publishing
    uploads: Uploads
    models: Models
    book: OrderBook
    pulls: Pulls
    metrics: Metrics

    def client(self, token: str | None = None) -> httpx.AsyncClient:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(base_url=self.url, verify=False, headers=headers, timeout=20)


@asynccontextmanager
async def running(
    folder: Path,
    *,
    book: OrderBook | None = None,
    limits: UploadLimits | None = None,
    pace: Pace = DEFAULT_PACE,
    clock: Clock | None = None,
    tls: bool = True,
    grid_key: bytes = bytes(32),
) -> AsyncIterator[DataPlane]:
    """Serve what is in a folder; starting again in the same folder is a restart."""
    clock = clock or ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    book, metrics = book or OrderBook(), Metrics()
    blobs = BlobStore(folder / "blobs")
    store = Store(f"sqlite:///{folder / 'memgrid.db'}")
    publishing = Publishing(store, blobs, clock)
    limits = limits or UploadLimits(blob_bytes_max=16 << 20)
    travelling = Travelling(
        store=store,
        clock=clock,
        metrics=metrics,
        catalogue=Catalogue(),
        blobs=BlobStore(folder / "checkpoints"),
        ordering=JudgingRule.of(Settings(data=folder), SigningKey.generate()),
        rule=Settings(data=folder).travel,
    )
    uploads = Uploads(
        store=store,
        blobs=blobs,
        judging=book,
        travelling=travelling,
        checkpoints=travelling.blobs,
        clock=clock,
        folder=folder / "partials",
        new_id=lambda: secrets.token_hex(16),
        limits=limits,
    )
    facts = GridFacts(
        name="test <grid>",
        version="0",
        grpc_port=7071,
        grid_key=grid_key.hex(),
        enrolment="open",
        max_blob_bytes=limits.blob_bytes_max,
        url="https://grid.example#sha256=00",
    )

    pulls = Pulls(store, clock, metrics)
    overview = Overview(store=store, clock=clock, blobs=blobs, publishing=publishing)
    services = WebServices(
        identify=identify,
        publishing=publishing,
        uploads=uploads,
        travelling=travelling,
        pulls=pulls,
        metrics=metrics,
        clock=clock,
        facts=lambda: facts,
        not_ready=lambda: None,
        overview=overview,
        pace=pace,
    )
    context = make_certificate().server_context(folder) if tls else None
    server = WebServer(services, drain_s=0.2)
    port = await server.start("127.0.0.1", 0, context)
    try:
        yield DataPlane(
            url=f"{'https' if tls else 'http'}://127.0.0.1:{port}",
            port=port,
            folder=folder,
            blobs=blobs,
            publishing=publishing,
            uploads=uploads,
            models=Models(publishing, blobs, folder / "models"),
            book=book,
            pulls=pulls,
            metrics=metrics,
        )
    finally:
        await server.stop()
        await overview.close()
        store.close()


async def push_blob(client: httpx.AsyncClient, repository: str, content: bytes) -> Digest:
    """Push a blob as most clients do: open, send, close."""
    digest = digest_of(content)
    begun = await client.post(f"/v2/{repository}/blobs/uploads/")
    assert begun.status_code == 202, begun.text
    sent = await client.patch(begun.headers["Location"], content=content)
    assert sent.status_code == 202, sent.text
    done = await client.put(sent.headers["Location"], params={"digest": digest})
    assert done.status_code == 201, done.text
    return digest


def descriptor(content: bytes, media_type: str = "application/octet-stream", title: str = "") -> dict[str, object]:
    annotations = {"annotations": {TITLE: title}} if title else {}
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content), **annotations}


def manifest_of(
    config: bytes, *layers: dict[str, object], artifact_type: str = CUBE_ARTIFACT_TYPE, **more: object
) -> bytes:
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": descriptor(config, CUBE_CONFIG_TYPE),
            "layers": list(layers),
            **more,
        }
    )


async def push_manifest(client: httpx.AsyncClient, repository: str, reference: str, content: bytes) -> httpx.Response:
    headers = {"Content-Type": OCI_MANIFEST_TYPE}
    return await client.put(f"/v2/{repository}/manifests/{reference}", content=content, headers=headers)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["errors"][0]["code"]
