"""What anybody may ask a grid: how to reach it, which cubes it has, how it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.records import PoolCube
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.web.facts import GridFacts
from memgrid_coordinator.web.requests import OciError


class GridRoutes:
    """Handlers of what machines ask: facts, search, metrics and health."""

    def __init__(
        self,
        facts: Callable[[], GridFacts],
        publishing: Publishing,
        metrics: Metrics,
        not_ready: Callable[[], str | None],
    ) -> None:
        self._facts = facts
        self._publishing = publishing
        self._metrics = metrics
        self._not_ready = not_ready

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        return (
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
