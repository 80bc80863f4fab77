"""Blobs through the coordinator, down and up, beside aiohttp and nginx, which do nothing but move bytes.

Every server is a process of its own on this machine, with the same certificate; the other side is one and the same
loop over a TLS socket. What limits it is the encryption, so all of them are close; the coordinator also checks who
may read what, and hashes what comes. nginx is measured where it is installed.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.blob_servers import serve_aiohttp, serve_coordinator
from benchmarks.report import Report, Row, spread
from memgrid.digest import digest_of

SIZE_BYTES = 256 << 20
REPEATS = 5
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where one listens, and what to ask it for."""

    name: str
    port: int
    pid: int
    down: str
    up: str
    method: str
    token: str = ""


def run(console: Console, quick: bool) -> Report:
    size_bytes, repeats = (SIZE_BYTES // 8, 2) if quick else (SIZE_BYTES, REPEATS)
    content = secrets.token_bytes(1 << 20) * (size_bytes >> 20)
    with tempfile.TemporaryDirectory() as folder, console.status("blobs: starting servers"):
        rows = list(_measure_all(Path(folder), content, repeats, console))
    peers = [row for row in rows if row["server"] != "coordinator"]
    for row in rows:
        for way in ("down", "up"):
            fastest = max(peer[f"{way}_mb_s"]["median"] for peer in peers)
            row[f"{way}_share"] = row[f"{way}_mb_s"]["median"] / fastest
    rates = _hash_rates(quick)
    return Report(
        name="blobs",
        title=f"One blob of {size_bytes >> 20} MiB over TLS on 127.0.0.1, one connection",
        columns={
            "server": lambda row: row["server"],
            "down": lambda row: f"{row['down_mb_s']['median']:,.0f} MB/s",
            "of the fastest peer": lambda row: f"{row['down_share']:.0%}",
            "server's CPU": lambda row: f"{row['down_cpu_ms_per_mb']:.2f} ms/MB",
            "up": lambda row: f"{row['up_mb_s']['median']:,.0f} MB/s",
            "of the fastest peer ": lambda row: f"{row['up_share']:.0%}",
            "server's CPU ": lambda row: f"{row['up_cpu_ms_per_mb']:.2f} ms/MB",
        },
        rows=rows,
        notes=(
            "Up: the coordinator hashes and syncs what comes before it answers; aiohttp and nginx only write it.",
            _hash_note(rates),
        ),
        facts={"sha256": rates},
    )


def _measure_all(folder: Path, content: bytes, repeats: int, console: Console) -> Iterator[Row]:
    found: dict[str, dict[str, list[float]]] = {}
    with (
        _process("coordinator", serve_coordinator, folder / "grid", content) as grid,
        _process("aiohttp", serve_aiohttp, folder, content) as plain,
        _nginx(folder, content) as nginx,
    ):
        # In turns, so that what else the machine does falls on all of them.
        for number in range(repeats):
            for server in (grid, plain, *nginx):
                console.log(f"round {number + 1}: {server.name}")
                _round(server, content, found.setdefault(server.name, {}))
    megabytes = len(content) / 1e6
    for name, one in found.items():
        yield {
            "server": name,
            "bytes": len(content),
            "down_mb_s": spread([megabytes / seconds for seconds in one["down_s"]]),
            "up_mb_s": spread([megabytes / seconds for seconds in one["up_s"]]),
            "down_cpu_ms_per_mb": 1e3 * min(one["down_cpu_s"]) / megabytes,
            "up_cpu_ms_per_mb": 1e3 * min(one["up_cpu_s"]) / megabytes,
        }


def _round(server: Server, content: bytes, found: dict[str, list[float]]) -> None:
    """One download and one upload; the upload's first bytes are new each time."""
    fresh = secrets.token_bytes(64)
    digest = digest_of(memoryview(fresh + content[64:]))  # hashed here, outside of what is timed
    acts: dict[str, Callable[[], None]] = {
        "down": lambda: _download(server, len(content)),
        "up": lambda: _upload(server, digest, fresh, content),
    }
    for name, act in acts.items():
        cpu_s, started = _cpu_s(server.pid), time.perf_counter()
        act()
        found.setdefault(f"{name}_s", []).append(time.perf_counter() - started)
        found.setdefault(f"{name}_cpu_s", []).append(_cpu_s(server.pid) - cpu_s)


def _download(server: Server, size_bytes: int) -> None:
    with _connected(server) as stream:
        stream.sendall(_head(server, "GET", server.down))
        buffer = bytearray(_BUFFER_BYTES)
        head = b""
        while b"\r\n\r\n" not in head:
            head += stream.recv(4096)
        assert b" 200 " in head.partition(b"\r\n")[0], head
        left = size_bytes - len(head.partition(b"\r\n\r\n")[2])
        while left:
            count = stream.recv_into(buffer)
            assert count, f"{server.name} ended {left} bytes early"
            left -= count


def _upload(server: Server, digest: str, fresh: bytes, content: bytes) -> None:
    with _connected(server) as stream:
        path = server.up.format(digest=digest)
        stream.sendall(_head(server, server.method, path, f"Content-Length: {len(content)}\r\n"))
        stream.sendall(fresh)
        view = memoryview(content)[64:]
        for start in range(0, len(view), _BUFFER_BYTES):
            stream.sendall(view[start : start + _BUFFER_BYTES])
        answer = stream.recv(4096)
        assert b" 201 " in answer.partition(b"\r\n")[0], answer


def _head(server: Server, method: str, path: str, more: str = "") -> bytes:
    token = f"Authorization: Bearer {server.token}\r\n" if server.token else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}{more}\r\n".encode()


@contextmanager
def _connected(server: Server) -> Iterator[ssl.SSLSocket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as stream,
    ):
        yield stream


@contextmanager
def _process(
    name: str, serve: Callable[[Path, Path, Connection], None], folder: Path, content: bytes
) -> Iterator[Server]:
    """A server in a process of its own, with what it says of itself."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "content"
    source.write_bytes(content)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, source, theirs), daemon=True)
    process.start()
    try:
        yield Server(name=name, pid=process.pid or 0, **ours.recv())
    finally:
        ours.send(None)
        process.join(20)
        process.kill()


@contextmanager
def _nginx(folder: Path, content: bytes) -> Iterator[list[Server]]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield []
        return
    place = folder / "nginx"
    (place / "files").mkdir(parents=True)
    place.chmod(0o755)
    (place / "files" / "content").write_bytes(content)
    port = _free_port()
    keys = folder / "grid" / "data" / "keys"
    (place / "nginx.conf").write_text(_NGINX.format(place=place, port=port, keys=keys, user=_user()))
    command = [program, "-p", str(place), "-c", str(place / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _await(port)
        yield [Server(name="nginx", port=port, pid=process.pid, down="/content", up="/{digest}", method="PUT")]
    finally:
        process.terminate()
        process.wait(10)


_NGINX = """daemon off; {user} worker_processes 1; pid {place}/pid; error_log {place}/errors;
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on; client_max_body_size 0;
  client_body_temp_path {place}/tmp; proxy_temp_path {place}/a; fastcgi_temp_path {place}/b;
  uwsgi_temp_path {place}/c; scgi_temp_path {place}/d;
  server {{
    listen 127.0.0.1:{port} ssl; root {place}/files; dav_methods PUT;
    ssl_certificate {keys}/tls.crt; ssl_certificate_key {keys}/tls.key; ssl_protocols TLSv1.3;
  }}
}}
"""


def _user() -> str:
    return "user root;" if os.geteuid() == 0 else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(port: int) -> None:
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise RuntimeError("nginx does not start")


def _cpu_s(pid: int) -> float:
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def _hash_rates(quick: bool) -> Row:
    """MB/s of sha256: this process's, and openssl's own measurement of the same processor."""
    block = bytes(_BUFFER_BYTES)
    ours = []
    for _ in range(2 if quick else 5):
        started, state = time.perf_counter(), hashlib.sha256()
        for _ in range(128):
            state.update(block)
        ours.append(128 * len(block) / 1e6 / (time.perf_counter() - started))
    rates: Row = {"hashlib_mb_s": max(ours)}
    if (program := shutil.which("openssl")) is not None:
        command = [program, "speed", "-seconds", "1", "-bytes", str(_BUFFER_BYTES), "-evp", "sha256"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rates["openssl_mb_s"] = float(told.split()[-1].rstrip("k")) / 1e3
    return rates


def _hash_note(rates: Row) -> str:
    beside = f", openssl speed {rates['openssl_mb_s']:,.0f}" if "openssl_mb_s" in rates else ""
    return f"sha256, MB/s: the coordinator's {rates['hashlib_mb_s']:,.0f}{beside}."
