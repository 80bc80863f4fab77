"""What anybody may ask a grid: how to reach it, which cubes it has, how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.records import Campaign, PoolCube
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.web.page import front_page
from memgrid_coordinator.web.requests import OciError

_NEWEST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GridFacts:
    """What `GET /v1/grid` tells; `url` with its certificate's fingerprint is what people are given to join."""

    name: str
    version: str
    grpc_port: int
    grid_key: str
    """The Ed25519 public key that signs cubes, as hex."""
    enrolment: str
    max_blob_bytes: int
    url: str


class GridRoutes:
    """Handlers of `/v1/`, the front page, metrics and health."""

    def __init__(
        self,
        facts: Callable[[], GridFacts],
        publishing: Publishing,
        metrics: Metrics,
        not_ready: Callable[[], str | None],
        campaigns: Callable[[], Awaitable[Iterable[Campaign]]],
    ) -> None:
        self._facts = facts
        self._publishing = publishing
        self._metrics = metrics
        self._not_ready = not_ready
        self._campaigns = campaigns

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        return (
            web.get("/", self.front),
            web.get("/v1/grid", self.grid),
            web.get("/v1/cubes", self.cubes),
            web.get("/metrics", self.metrics),
            web.get("/healthz", self.health),
            web.get("/readyz", self.ready),
        )

    async def grid(self, request: web.Request) -> web.Response:
        return web.json_response({key: value for key, value in asdict(self._facts()).items() if key != "url"})

    async def cubes(self, request: web.Request) -> web.Response:
        query, limit = request.query, _limit(request)
        found = await self._publishing.search(
            query.get("q", ""), base=query.get("base", ""), kind=query.get("kind", ""), limit=limit
        )
        return web.json_response({"cubes": [_cube(cube) for cube in found]})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(self, request: web.Request) -> web.Response:
        reason = self._not_ready()
        return web.Response(text="ok\n" if reason is None else f"{reason}\n", status=200 if reason is None else 503)

    async def front(self, request: web.Request) -> web.Response:
        newest = await self._publishing.search("", limit=_NEWEST)
        facts = self._facts()
        text = front_page(name=facts.name, url=facts.url, campaigns=await self._campaigns(), cubes=newest)
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "50")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise OciError(400, "UNSUPPORTED", f"limit: expected a number, found {text[:40]!r}")
    return int(text)


def _cube(cube: PoolCube) -> dict[str, object]:
    value = asdict(cube)
    value["bytes"] = value.pop("payload_bytes")
    value["created_at"] = cube.created_at.isoformat()
    return value
