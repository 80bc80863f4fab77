"""Who calls: from the bearer token, or from the ways in which registry clients bring one."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from memgrid.errors import TokenRequiredError
from memgrid_coordinator.records import Caller

CALLER = web.RequestKey("caller", Caller)
_NOBODY = "anonymous"
"""The token that the token endpoint gives to whoever brought none: registry clients insist on having one."""


def identity_middleware(identify: Callable[[str | None], Awaitable[Caller]]) -> Middleware:
    """Put the caller into the request, or refuse a token that is false or too old."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[CALLER] = await identify(presented_token(request))
        return await handler(request)

    return middleware


def presented_token(request: web.Request) -> str | None:
    """The token of `Authorization: Bearer TOKEN`, or the password of `Basic`, which docker, skopeo and oras send."""
    header = request.headers.get("Authorization", "")
    scheme, _, value = header.partition(" ")
    if not header.isascii():
        raise TokenRequiredError("this token is not this grid's")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("ascii").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            raise TokenRequiredError("expected Authorization: Basic with a token as the password") from None
    elif scheme.lower() != "bearer" and header:
        raise TokenRequiredError("expected Authorization: Bearer TOKEN")
    value = value.strip()
    return None if value in ("", _NOBODY) else value


def challenge(request: web.Request) -> dict[str, str]:
    """What tells a registry client how to bring a token: it asks the token endpoint, with its password."""
    realm = f'Bearer realm="{request.scheme}://{request.host}/v2/token",service="{request.host}"'
    return {"WWW-Authenticate": realm}


async def get_version(request: web.Request) -> web.Response:
    """`GET /v2/`: that this is a registry. Registry clients learn from a refusal here how to bring a token."""
    if "Authorization" not in request.headers:
        raise TokenRequiredError("bring a token; the token endpoint gives everybody one")
    return web.json_response({})


async def get_token(request: web.Request) -> web.Response:
    """`GET /v2/token`: the caller's own token, once it was checked, or nobody's."""
    token = presented_token(request) or _NOBODY
    return web.json_response({"token": token, "access_token": token, "expires_in": 300})
