"""Bad luck by name: what disks, clocks and machines do to a grid sooner or later; for tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

_BLOCK_BYTES = 1 << 16
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Faults:
    """Each is the real thing where the system lets us: a small file system, a listener, a signal.

    A context manager's fault ends with its block.
    """

    @staticmethod
    @contextlib.contextmanager
    def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
        """A file system of its own behind a folder, of at most so many bytes; PermissionError where nobody may."""
        folder.mkdir(parents=True, exist_ok=True)
        _mount(["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)])
        try:
            yield
        finally:
            # Lazily: a process that lingers in it must not keep a test from ending.
            subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)

    @staticmethod
    @contextlib.contextmanager
    def full_disk(folder: Path) -> Iterator[None]:
        """No byte more fits where the folder is. Only for a `small_disk`: any other would be filled in earnest."""
        if not os.path.ismount(folder):
            raise ValueError(f"{folder} is no disk of its own")
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(_BLOCK_BYTES)):
                pass
        try:
            yield
        finally:
            filler.unlink(missing_ok=True)

    @staticmethod
    @contextlib.contextmanager
    def read_only_disk(folder: Path) -> Iterator[None]:
        """A `small_disk` takes no writes, as a disk does after errors."""
        _mount(["-o", "remount,ro", str(folder)])
        try:
            yield
        finally:
            _mount(["-o", "remount,rw", str(folder)])

    @staticmethod
    def half_written(path: Path) -> None:
        """A file lost its second half: power went, and the disk had lied about what was on it."""
        path.chmod(0o644)
        os.truncate(path, path.stat().st_size // 2)

    @staticmethod
    def flipped_bit(path: Path) -> None:
        """One bit of a file is not what it was."""
        path.chmod(0o644)
        with path.open("r+b") as file:
            middle = path.stat().st_size // 2
            file.seek(middle)
            (byte,) = file.read(1)
            file.seek(middle)
            file.write(bytes([byte ^ 1]))

    @staticmethod
    @contextlib.contextmanager
    def port_taken() -> Iterator[int]:
        """Somebody else listens on a port of 127.0.0.1."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            yield listener.getsockname()[1]

    @staticmethod
    @contextlib.asynccontextmanager
    async def silent_connections(port: int, count: int, source: str = "127.0.0.1") -> AsyncIterator[list[Peer]]:
        """So many connections from one address that never say a word: no TLS handshake, nothing.

        Those that were not refused at once; whether the server closes one later, its `reader` knows.
        """
        async with contextlib.AsyncExitStack() as opened:
            peers = []
            for _ in range(count):
                with contextlib.suppress(ConnectionError):
                    peers.append(await opened.enter_async_context(_connected(port, None, source)))
            yield peers

    @staticmethod
    @contextlib.asynccontextmanager
    async def trickled_head(port: int, tls: ssl.SSLContext, every_s: float) -> AsyncIterator[Peer]:
        """A request head without an end, that comes a byte at a time."""
        async with _connected(port, tls) as (reader, writer):

            async def trickle() -> None:
                writer.write(b"GET / HTTP/1.1\r\nHost: grid\r\nX-Slow: ")
                while True:
                    writer.write(b"x")
                    await asyncio.sleep(every_s)

            trickling = asyncio.create_task(trickle())
            try:
                yield reader, writer
            finally:
                trickling.cancel()
                await asyncio.gather(trickling, return_exceptions=True)

    @staticmethod
    @contextlib.asynccontextmanager
    async def slow_reader(
        port: int, tls: ssl.SSLContext | None, path: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> AsyncIterator[Peer]:
        """Somebody who asks for content and reads none of it, unless the caller does."""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        async with _connected(port, tls) as (reader, writer):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: grid\r\n{more}\r\n".encode())
            await writer.drain()
            yield reader, writer

    @staticmethod
    def killed_for_memory(pid: int) -> None:
        """The kernel ends a process without a word, as it does when memory runs out."""
        os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def _connected(port: int, tls: ssl.SSLContext | None, source: str = "127.0.0.1") -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _mount(arguments: list[str]) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        raise PermissionError("only root may mount")
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")
