"""Run the server until somebody stops it."""

from __future__ import annotations

import asyncio
import signal

from aiohttp import web

from memgrid.serving.answering import Answerer
from memgrid.serving.choosing import AUTO, Shelf
from memgrid.serving.loading import Loaded
from memgrid.serving.server import Server

_STOP_S = 5.0


def run(loaded: Loaded, shelf: Shelf, *, host: str, port: int, api_key: str | None, waiting_max: int) -> None:
    """Serve until SIGINT or SIGTERM; an answer that is being written then is cut off."""
    asyncio.run(_serve(loaded, shelf, host, port, api_key, waiting_max))


async def _serve(loaded: Loaded, shelf: Shelf, host: str, port: int, api_key: str | None, waiting_max: int) -> None:
    answerer = Answerer(loaded)
    server = Server(loaded.name, answerer, shelf, api_key=api_key, waiting_max=waiting_max)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=_STOP_S, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    address = runner.addresses[0]
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"serving {loaded.name} and {loaded.name}+{AUTO} at http://{shown}:{address[1]}/v1", flush=True)  # noqa: T201
    stopped = asyncio.Event()
    for wanted in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(wanted, stopped.set)
    try:
        await stopped.wait()
    finally:
        await runner.cleanup()
        answerer.close()
