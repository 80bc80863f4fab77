"""Serve the page to this machine, beside the work, for as long as that goes on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from aiohttp import web

from memgrid.clock import Clock
from memgrid.errors import InvalidError
from memgrid_volunteer.glance import Glancing
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home
from memgrid_volunteer.page.asking import AskGrid, GridAsking, ask_the_grid
from memgrid_volunteer.page.guard import BODY_BYTES_MAX, Guard
from memgrid_volunteer.page.key import PageKey, new_key, read_key, write_key
from memgrid_volunteer.page.routes import PageRoutes

_LOOPBACK = "127.0.0.1"
_GOODBYE_S = 0.5


@contextlib.asynccontextmanager
async def serve_page(
    home: Home, *, clock: Clock, port: int = 0, ask_grid: AskGrid = ask_the_grid
) -> AsyncIterator[PageKey]:
    """The page at `port`; 0 is the port of last time, or a free one. Raises InvalidError when it is taken.

    The key lies in the home for as long as the page is there, and opens it again after a restart.
    """
    known = read_key(home.folder)
    key = known if known is not None and port in (0, known.port) else new_key(port)
    history = History(home.folder)
    asking = GridAsking(home, history, clock, ask_grid)
    opened = _Opened(key)
    routes = PageRoutes(Glancing(home), history, asking, clock, lambda: opened.key)
    guard = Guard(clock, lambda: opened.key)
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[guard.middleware()])
    app.add_routes(routes.routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GOODBYE_S)
    await runner.setup()
    try:
        opened.key = await _listen(runner, key, is_wanted=port != 0)
        write_key(home.folder, replace(opened.key, is_open=True))
        yield opened.key
    finally:
        await runner.cleanup()
        await asking.close()
        history.close()
        with contextlib.suppress(OSError):
            write_key(home.folder, replace(opened.key, is_open=False))


class _Opened:
    """The key of the port that was found in the end."""

    def __init__(self, key: PageKey) -> None:
        self.key = key


async def _listen(runner: web.AppRunner, key: PageKey, *, is_wanted: bool) -> PageKey:
    try:
        await web.TCPSite(runner, _LOOPBACK, key.port).start()
    except OSError as error:
        if is_wanted:
            raise InvalidError(f"--page-port {key.port}: {error.strerror or error}") from None
        # Somebody else has the port of last time; they must not be sent its cookie.
        await web.TCPSite(runner, _LOOPBACK, 0).start()
        return new_key(_port(runner))
    return key if key.port else new_key(_port(runner))


def _port(runner: web.AppRunner) -> int:
    return int(runner.addresses[0][1])
