"""A bucket on this machine: moto's server in a thread of the test's own process."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from memgrid.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One bucket; `blobs_url` is what `--blobs` takes."""

    endpoint: str
    name: str

    @property
    def blobs_url(self) -> str:
        return f"s3://{self.name}/grid/blobs?endpoint={self.endpoint}"

    def spoil(self, digest: Digest, content: bytes) -> None:
        """Put other bytes where some content is, behind the grid's back."""
        client: Any = pytest.importorskip("obstore.store", reason="the bucket's client is not installed")
        objects = client.S3Store(self.name, endpoint=self.endpoint, client_options={"allow_http": True})
        objects.put(f"grid/blobs/sha256/{digest.removeprefix('sha256:')}", content)


@contextmanager
def s3_server() -> Iterator[str]:
    """The server's address; its keys are any."""
    moto = pytest.importorskip("moto.server", reason="the stand-in for S3 is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def new_bucket(endpoint: str) -> Bucket:
    bucket = Bucket(endpoint=endpoint, name=f"grid-{secrets.token_hex(4)}")
    httpx.put(f"{endpoint}/{bucket.name}").raise_for_status()
    return bucket


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
