"""Requests to the data plane, head and body, sent as they are to a server that runs in this process."""

from __future__ import annotations

import asyncio
import atexit
import re
import socket
from contextlib import suppress
from functools import cache
from threading import Event, Thread

from fuzzing.driver import Target
from fuzzing.files import folder
from fuzzing.mutation import spoil_text
from memgrid.cube.oci import OCI_MANIFEST_TYPE
from memgrid.digest import digest_of
from tests.integration.data_plane import OPERATOR, VOLUNTEER, DataPlane, OrderBook, push_blob, running

CONTENT = b"what was ordered " * 10
WAIT_S = 10.0
PATIENCE_S = 0.05
"""For an answer; a request without an end gets none."""


class TurnedDown(Exception):  # noqa: N818 - what happened
    """The server said no, and why."""


def targets() -> tuple[Target, ...]:
    return (
        Target(
            name="http",
            about="a request to the data plane",
            seeds=_requests,
            run=_send,
            mutators=(spoil_text,) * 4,
            allowed=(TurnedDown,),
            executions=10_000,
        ),
    )


def _requests() -> list[bytes]:
    digest, ordered = digest_of(b"{}"), digest_of(CONTENT)
    outputs = "/v2/grid/outputs/lease1/blobs/uploads/"
    return [
        _request("GET", f"/v2/docs/one/blobs/{digest}", Range="bytes=0-1"),
        _request("HEAD", "/v2/docs/one/manifests/1.0"),
        _request("GET", "/v2/docs/one/tags/list?n=3&last=x"),
        _request("GET", "/v2/_catalog?n=100", "", Authorization="Basic b3BlcmF0b3I6eA=="),
        _request("GET", f"/v2/docs/one/referrers/{digest}?artifactType=a/b"),
        _request("POST", f"/v2/docs/one/blobs/uploads/?mount={digest}&from=docs/two"),
        _request("POST", f"/v2/docs/one/blobs/uploads/?digest={digest}", body=b"{}"),
        _request("PATCH", "/v2/docs/one/blobs/uploads/abc", body=b"x", Content_Range="0-0"),
        _request("PUT", "/v2/docs/one/manifests/1.0", body=b'{"schemaVersion":2}', Content_Type=OCI_MANIFEST_TYPE),
        _request("POST", f"{outputs}?digest={ordered}", VOLUNTEER, CONTENT),
        _request("PUT", f"{outputs}{'0' * 32}?digest={ordered}", VOLUNTEER, Content_Range="bytes 5-9/10"),
        _request("GET", f"/v2/grid/inputs/blobs/{ordered}", VOLUNTEER, Range="bytes=-3"),
        *(_request("GET", path, "") for path in ("/v1/grid", "/v1/cubes?q=valve&limit=3", "/healthz", "/", "/cubes")),
    ]


def _request(method: str, path: str, token: str = OPERATOR, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: grid", "Connection: close", f"Content-Length: {len(body)}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _send(content: bytes) -> object:
    """Never an answer that says it is our fault, or that shows our code."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", _plane().port), timeout=PATIENCE_S) as line,
        suppress(ConnectionError),
    ):
        line.sendall(content)
        with suppress(TimeoutError):  # what is no whole request waits for its rest
            while block := line.recv(1 << 16):
                answer += block
    status = answer[9:12]
    # 503 is what a full place says: too many uploads open, of one owner.
    assert not status.startswith(b"5") or status in (b"501", b"503", b"505"), answer[:2000].decode(errors="replace")
    assert b"Traceback" not in answer, "a stranger reads our code"
    if not answer:
        raise TurnedDown("no answer")
    if not status.startswith(b"2"):
        code = re.search(rb'"code": "(\w+)"', answer)
        # In letters, for numbers do not make two refusals different.
        words = "".join(chr(ord("a") + digit - ord("0")) for digit in status)
        raise TurnedDown(f"{words} {code.group(1).decode() if code else ''}")
    return status


@cache
def _plane() -> DataPlane:
    """A data plane over plain HTTP, in a thread of its own until the process ends."""
    loop, over, ready = asyncio.new_event_loop(), asyncio.Event(), Event()
    found: list[DataPlane] = []

    async def serve() -> None:
        book = OrderBook()
        book.order(CONTENT)
        async with running(folder() / "plane", book=book, tls=False) as plane, plane.client(OPERATOR) as operator:
            for repository in ("docs/one", "docs/two"):
                await push_blob(operator, repository, b"{}")
            found.append(plane)
            ready.set()
            await over.wait()

    thread = Thread(target=lambda: loop.run_until_complete(serve()), name="data plane", daemon=True)
    thread.start()
    atexit.register(lambda: (loop.call_soon_threadsafe(over.set), thread.join(WAIT_S)))
    if not ready.wait(30):
        raise RuntimeError("the data plane did not start")
    return found[0]
