"""Who may speak to the page: only this machine's browser, only from the page itself, only with its key."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from memgrid.clock import Clock
from memgrid_volunteer.page.key import PageKey

BODY_BYTES_MAX = 300 << 10
"""Preferences may have 256 KiB."""
CSRF_HEADER = "X-Memgrid-Csrf"
_LOCAL_HOST: Final = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?")
_OWN_SITES: Final = ("same-origin", "none")
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An HTTP status, and why in one sentence."""

    status: int
    text: str


def refusal_of(method: str, headers: Mapping[str, str], *, cookie: str, key: PageKey) -> Refusal | None:
    """Why a call is turned down; None when it is the owner's own.

    A name that a stranger's site points at this machine is told by its Host; a request that a stranger's site makes
    is told by its Origin, by what the browser says of its site, and by the lack of the CSRF token.

    >>> key = PageKey(port=7072, secret="s" * 43)
    >>> refusal_of("GET", {"Host": "evil.example:7072"}, cookie=key.cookie, key=key).status
    421
    >>> refusal_of("GET", {"Host": "127.0.0.1:7072"}, cookie=key.cookie, key=key) is None
    True
    """
    host = headers.get("Host", "")
    if not _is_local(host):
        return Refusal(status=421, text="this page answers to 127.0.0.1 and localhost alone")
    if not key.is_cookie(cookie):
        return Refusal(status=401, text="open it with: memgrid volunteer page")
    if headers.get("Sec-Fetch-Site", "none") not in _OWN_SITES:
        return Refusal(status=403, text="another site asked for this")
    origin = headers.get("Origin")
    if origin is not None and origin != f"http://{host}":
        return Refusal(status=403, text="another site asked for this")
    if method in ("GET", "HEAD"):
        return None
    if origin is None or not key.is_csrf(headers.get(CSRF_HEADER, "")):
        return Refusal(status=403, text="this was not asked from the page; load it again")
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        return Refusal(status=415, text="expected application/json")
    return None


class Guard:
    """Lets nothing through that `refusal_of` turns down, and gives every answer its headers."""

    def __init__(self, clock: Clock, key: Callable[[], PageKey]) -> None:
        self._clock = clock
        self._key = key
        self._used: set[str] = set()

    def middleware(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            answer = await self._answer(request, handler)
            answer.headers.update(HEADERS)
            return answer

        return guard

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self._key()
        if self._opens(request, key):
            return _let_in(key)
        cookie = request.cookies.get(key.cookie_name, "")
        refusal = refusal_of(request.method, request.headers, cookie=cookie, key=key)
        if refusal is not None:
            return _refuse(request, refusal)
        try:
            return await handler(request)
        except web.HTTPException as error:
            answer = _refuse(request, Refusal(status=error.status, text=error.reason))
            answer.headers.update({name: error.headers[name] for name in ("Allow",) if name in error.headers})
            return answer

    def _opens(self, request: web.Request, key: PageKey) -> bool:
        """By the secret, or by a ticket, once."""
        if request.method != "GET" or request.path != "/" or not _is_local(request.headers.get("Host", "")):
            return False
        ticket = request.query.get("ticket", "")
        if ticket and ticket not in self._used and key.is_ticket(ticket, self._clock.now()):
            self._used.add(ticket)
            return True
        return key.opens(request.query.get("key", ""))


def _let_in(key: PageKey) -> web.Response:
    """From here on the cookie opens the page; what let in leaves the address bar and the history.

    Not by a redirect: the browser would not bring a strict cookie when it was sent here from elsewhere.
    """
    answer = web.Response(text=_OPENING, content_type="text/html")
    answer.set_cookie(key.cookie_name, key.cookie, max_age=365 * 86400, path="/", httponly=True, samesite="Strict")
    return answer


def _refuse(request: web.Request, refusal: Refusal) -> web.Response:
    if "text/html" in request.headers.get("Accept", ""):
        text = _PAGE.format(status=refusal.status, text=html.escape(refusal.text))
        return web.Response(status=refusal.status, text=text, content_type="text/html")
    return web.json_response({"error": refusal.text}, status=refusal.status)


def _is_local(host: str) -> bool:
    """Whichever port: it may have come through a tunnel."""
    return _LOCAL_HOST.fullmatch(host.lower()) is not None


_OPENING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/">
<meta name="color-scheme" content="light dark"><title>memgrid volunteer</title></head>
<body><main><h1>One moment</h1><p><a href="/">Go on</a></p></main></body></html>
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>memgrid volunteer</title></head>
<body><main><h1>Not from here ({status})</h1><p>{text}</p></main></body></html>
"""
