"""Put the HTTP plane together and serve it."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from memgrid.clock import Clock
from memgrid.errors import UnavailableError
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.records import Caller
from memgrid_coordinator.services.overview import Overview
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.services.pulls import Pulls
from memgrid_coordinator.services.travelling import Travelling
from memgrid_coordinator.services.uploads import Uploads
from memgrid_coordinator.web.blobs import BlobRoutes
from memgrid_coordinator.web.bodies import DEFAULT_PACE, Pace
from memgrid_coordinator.web.errors import errors_middleware
from memgrid_coordinator.web.facts import GridFacts
from memgrid_coordinator.web.grid import GridRoutes
from memgrid_coordinator.web.identity import get_token, get_version, identity_middleware
from memgrid_coordinator.web.listening import ConnectionLimits, Connections, LimitedSite, places_of
from memgrid_coordinator.web.manifests import ManifestRoutes
from memgrid_coordinator.web.pages.errors import pages_middleware
from memgrid_coordinator.web.pages.routes import PageRoutes

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_HEADERS = {"X-Content-Type-Options": "nosniff", "Docker-Distribution-Api-Version": "registry/2.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WebServices:
    """What the HTTP plane calls; `app.py` builds it.

    `facts` and `not_ready` are asked at every request: ports are known only once they are bound, and a reason not
    to be ready comes and goes.
    """

    identify: Callable[[str | None], Awaitable[Caller]]
    publishing: Publishing
    uploads: Uploads
    travelling: Travelling
    pulls: Pulls
    metrics: Metrics
    clock: Clock
    facts: Callable[[], GridFacts]
    not_ready: Callable[[], str | None]
    overview: Overview
    pace: Pace = DEFAULT_PACE


def build_app(services: WebServices) -> web.Application:
    """Every route and middleware of the HTTP plane."""
    pages = PageRoutes(services.facts, services.overview)
    app = web.Application(
        middlewares=[
            _timing_middleware(services.metrics, services.clock),
            pages_middleware(pages.error),
            errors_middleware,
            identity_middleware(services.identify),
        ]
    )
    app.on_response_prepare.append(_add_headers)
    blobs = BlobRoutes(
        services.publishing,
        services.uploads,
        services.travelling,
        services.pulls,
        services.metrics,
        services.clock,
        services.pace,
    )
    manifests = ManifestRoutes(services.publishing, services.clock, services.pace)
    grid = GridRoutes(services.facts, services.publishing, services.metrics, services.not_ready)
    app.add_routes([web.get("/v2/", get_version), web.get("/v2/token", get_token)])
    app.add_routes([*manifests.routes(), *blobs.routes(), *grid.routes(), *pages.routes()])
    return app


class WebServer:
    """The HTTP plane, served with or without TLS."""

    def __init__(
        self, services: WebServices, limits: ConnectionLimits = ConnectionLimits(), *, drain_s: float = 10.0
    ) -> None:
        self._app = build_app(services)
        self._limits = limits
        metrics = services.metrics
        self._connections = Connections(limits, lambda why: metrics.connections_refused.labels(why).inc())
        metrics.http_connections.set_function(lambda: self._connections.count)
        self._drain_s = drain_s
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Listen; port 0 takes a free one. Returns the port."""
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            handle_signals=False,
            # The clock for idle connections runs until a request's head is whole: trickles run out of it, too.
            keepalive_timeout=self._limits.idle_max_s,
            # A blob is the bytes that were sent; and a small body must not unpack into a large one.
            auto_decompress=False,
            shutdown_timeout=self._drain_s,
        )
        await self._runner.setup()
        try:
            for place in await places_of(host, port):
                await LimitedSite(self._runner, place, self._connections, self._limits, tls).start()
        except OSError as error:
            await self.stop()
            text = f"HTTP: {host}:{port} is taken or not ours ({error.strerror}); choose another with --http-port"
            raise UnavailableError(text) from None
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Stop listening, let requests in hand finish for a while, then end them; clients can resume."""
        if self._runner is not None:
            await self._runner.cleanup()


def _timing_middleware(metrics: Metrics, clock: Clock) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started_s = clock.monotonic_s()
        response = await handler(request)
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "none"
        # A label is never what a stranger wrote: each new value would stay in memory for good.
        method = request.method if request.method in _METHODS else "other"
        metrics.http_s.labels(route, method, str(response.status)).observe(clock.monotonic_s() - started_s)
        return response

    return middleware


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
