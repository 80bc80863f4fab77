"""What each address of the page answers: one document, its style and script, and JSON behind them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable
from datetime import timedelta
from importlib import resources
from typing import Any

from aiohttp import web

from memgrid.clock import Clock
from memgrid.errors import InvalidError
from memgrid_volunteer.glance import Glancing
from memgrid_volunteer.history import History
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.page.asking import GridAsking
from memgrid_volunteer.page.credit import Span, credit_facts
from memgrid_volunteer.page.facts import UNITS_PAGE, history_facts, status_facts
from memgrid_volunteer.page.form import change, form_facts
from memgrid_volunteer.page.key import PageKey

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_PAUSE_LONGEST = timedelta(days=366)


class PageRoutes:
    """Handlers; who may call them has been settled before."""

    def __init__(
        self, glancing: Glancing, history: History, asking: GridAsking, clock: Clock, key: Callable[[], PageKey]
    ) -> None:
        self._glancing = glancing
        self._history = history
        self._asking = asking
        self._clock = clock
        self._key = key
        folder = resources.files(__package__).joinpath("static")
        self._files = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        return (
            web.get("/", self.page),
            web.get("/static/{name}", self.static),
            web.get("/favicon.ico", self.icon),
            web.get("/v1/status", self.status),
            web.get("/v1/history", self.history),
            web.get("/v1/credit", self.credit),
            web.get("/v1/preferences", self.preferences),
            web.post("/v1/preferences", self.change_preferences),
            web.post("/v1/pause", self.pause),
            web.post("/v1/resume", self.resume),
        )

    async def page(self, request: web.Request) -> web.Response:
        text = self._files["page.html"].replace("{{csrf}}", self._key().csrf)
        return web.Response(text=text, content_type="text/html")

    async def static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        kind = _TYPES.get(name.rpartition(".")[2])
        if kind is None or name not in self._files:
            raise web.HTTPNotFound(reason="there is no such file")
        return web.Response(text=self._files[name], content_type=kind)

    async def icon(self, request: web.Request) -> web.Response:
        return web.Response(text=self._files["icon.svg"], content_type=_TYPES["svg"])

    async def status(self, request: web.Request) -> web.Response:
        now, newest = self._now(), 0
        glance = self._glancing.glance(now)
        with contextlib.suppress(sqlite3.Error):
            newest = self._history.newest()
        grids = glance.grids(self._history, now)
        return _json(status_facts(glance, self._asking.look_at_standing(), grids, newest))

    async def history(self, request: web.Request) -> web.Response:
        text = request.query.get("before", "")
        if text and (not text.isascii() or not text.isdigit() or len(text) > 15):
            raise web.HTTPBadRequest(reason="before: expected the number of a unit")
        self._asking.look_for_cubes()
        try:
            units = self._history.units(before=int(text) if text else None, limit=UNITS_PAGE)
        except sqlite3.Error:
            units = []
        return _json(history_facts(units, self._now()))

    async def credit(self, request: web.Request) -> web.Response:
        text = request.query.get("span", Span.MONTH)
        if text not in list(Span):
            raise web.HTTPBadRequest(reason=f"span: expected one of {', '.join(Span)}")
        try:
            return _json(credit_facts(self._history, Span(text), self._now()))
        except sqlite3.Error as error:
            raise web.HTTPServiceUnavailable(reason="the history can't be read") from error

    async def preferences(self, request: web.Request) -> web.Response:
        return _json(self._form())

    async def change_preferences(self, request: web.Request) -> web.Response:
        """Nothing has changed when the answer has errors."""
        try:
            change(self._glancing.preferences, await _asked(request))
        except InvalidError as error:
            return _json({"errors": str(error).splitlines()}, status=422)
        except OSError as error:
            return _json({"errors": [f"not written: {error.strerror}"]}, status=507)
        return _json(self._form())

    async def pause(self, request: web.Request) -> web.Response:
        """One device or all, for so many seconds, until the next start, or until resumed."""
        asked = await _asked(request)
        device_id, wanted_s = self._device(asked), asked.get("for_s")
        is_until_restart = asked.get("until_restart", False)
        known = {"device_id", "for_s", "until_restart"}
        if set(asked) - known or not isinstance(is_until_restart, bool) or (wanted_s and is_until_restart):
            raise web.HTTPBadRequest(reason="expected device_id, and for_s or until_restart")
        now, until = self._now(), None
        if wanted_s is not None:
            if isinstance(wanted_s, bool) or not isinstance(wanted_s, int | float):
                raise web.HTTPBadRequest(reason="for_s: expected seconds")
            if not 0 < wanted_s <= _PAUSE_LONGEST.total_seconds():
                raise web.HTTPBadRequest(reason="for_s: expected more than nothing and less than a year")
            until = now + timedelta(seconds=wanted_s)
        self._glancing.control.pause(now, device_id=device_id, until=until, is_until_restart=is_until_restart)
        return await self.status(request)

    async def resume(self, request: web.Request) -> web.Response:
        """One device, or everything."""
        asked = await _asked(request)
        if set(asked) - {"device_id"}:
            raise web.HTTPBadRequest(reason="expected device_id")
        self._glancing.control.resume(self._now(), device_id=self._device(asked))
        return await self.status(request)

    def _device(self, asked: dict[str, Any]) -> str | None:
        device_id = asked.get("device_id")
        known = {device.device_id for device in self._glancing.glance(self._now()).status.devices}
        if device_id is not None and device_id not in known:
            raise web.HTTPBadRequest(reason="device_id: expected one of this machine's devices, or null for all")
        return device_id

    def _form(self) -> dict[str, Any]:
        devices = self._glancing.glance(self._now()).status.devices
        return form_facts(self._glancing.preferences, [(device.device_id, device.name) for device in devices])

    def _now(self) -> Any:
        return self._clock.now().astimezone(LOCAL)


async def _asked(request: web.Request) -> dict[str, Any]:
    """The body, which is small and a JSON object."""
    try:
        value = json.loads(await request.read())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise web.HTTPBadRequest(reason="expected a JSON object")
    return value


def _json(value: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)
