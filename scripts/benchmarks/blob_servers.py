"""The servers that the benchmark of blobs compares, each for a process of its own."""

from __future__ import annotations

import asyncio
import ssl
from multiprocessing.connection import Connection
from pathlib import Path

from aiohttp import web


def serve_coordinator(folder: Path, source: Path, pipe: Connection) -> None:
    """A whole coordinator with a blob in a repository that everybody may read."""
    asyncio.run(_coordinator(folder, source, pipe))


def serve_aiohttp(folder: Path, source: Path, pipe: Connection) -> None:
    """aiohttp's own file response down, and the shortest handler that writes a body to a file up."""
    asyncio.run(_aiohttp(folder, source, pipe))


async def _coordinator(folder: Path, source: Path, pipe: Connection) -> None:
    from memgrid.digest import digest_of_file
    from memgrid.log import configure_logging
    from memgrid_coordinator.app import Coordinator
    from memgrid_coordinator.settings import Settings
    from memgrid_coordinator.store import pool

    configure_logging(level="ERROR")
    settings = Settings(data=folder / "data", http_port=0, grpc_port=0, disk_reserve_bytes=0)
    async with Coordinator(settings) as coordinator:
        digest = digest_of_file(source)
        coordinator.blobs.adopt(source, digest)
        await coordinator.store.write(lambda connection: pool.link_blobs(connection, "docs/bench", [digest]))
        pipe.send(
            {
                "port": coordinator.address.http_port,
                "down": f"/v2/docs/bench/blobs/{digest}",
                "up": "/v2/docs/bench/blobs/uploads/?digest={digest}",
                "method": "POST",
                "token": (settings.keys / "operator.token").read_text().strip(),
            }
        )
        await asyncio.to_thread(pipe.recv)


async def _aiohttp(folder: Path, source: Path, pipe: Connection) -> None:
    async def get(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(source)

    async def put(request: web.Request) -> web.Response:
        with (folder / request.match_info["name"].replace(":", "-")).open("wb") as file:
            async for piece in request.content.iter_chunked(1 << 20):
                await asyncio.to_thread(file.write, piece)
        return web.Response(status=201)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    keys = folder / "grid" / "data" / "keys"
    context.load_cert_chain(keys / "tls.crt", keys / "tls.key")
    app = web.Application(client_max_size=1 << 40)
    app.add_routes([web.get("/content", get), web.put("/{name}", put)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    pipe.send({"port": runner.addresses[0][1], "down": "/content", "up": "/{digest}", "method": "PUT"})
    await asyncio.to_thread(pipe.recv)
    await runner.cleanup()
