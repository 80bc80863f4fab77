"""Errors as pages, for those who asked for a page."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_FOR_MACHINES = ("/v1/", "/v2/", "/metrics", "/healthz", "/readyz")


def pages_middleware(page: Callable[[web.Request, int], web.Response]) -> Middleware:
    """Show people `page` where machines get JSON; the status stays what it is."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if response.status < 400 or response.prepared or not _is_for_people(request):
            return response
        shown = page(request, response.status)
        shown.headers.update({name: response.headers[name] for name in _KEPT if name in response.headers})
        return shown

    return middleware


_KEPT = ("Allow", "Retry-After", "WWW-Authenticate")


def _is_for_people(request: web.Request) -> bool:
    return not request.path.startswith(_FOR_MACHINES) and "text/html" in request.headers.get("Accept", "")
