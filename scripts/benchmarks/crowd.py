"""Everybody comes back at once: how soon all are in, what it costs, and what a host notices that was in already.

The hosts are put into the database of a grid that does not run; then the coordinator is started, and all of them log
in at once, each with its own key over TLS, and make their first Sync. Many share a connection, a hundred each: what
is measured is the coordinator, not ten thousand handshakes. They wait as volunteers do when they are told to. The
crowd is a process of its own on the same cores; the host that was in is another one, so that what it measures is not
the crowd's own waiting.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from demonstration.grid import Grid, running_grid
from rich.console import Console

from benchmarks.lifecycle import cpu_s
from benchmarks.report import Report, Row, spread
from memgrid.channel import backoff_s, open_channel
from memgrid.endpoint import discover
from memgrid.errors import UnavailableError
from memgrid.signing import SigningKey
from memgrid.testing import FACTS, SimulatedHost
from memgrid.text import bytes_text
from memgrid.units import AccountId, HostId
from memgrid_coordinator.store import hosts
from memgrid_coordinator.store.engine import Store

HOSTS = 10_000
HOSTS_A_CONNECTION = 100
CALM_S = 5.0
SYNC_EVERY_S = 0.02
_TOKEN: ContextVar[str | None] = ContextVar("token", default=None)
"""The token of the host whose task it is: connections are shared, sessions are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """What the crowd saw: until each was in and had its first Sync, and how often each was turned away."""

    log_in_s: list[float]
    in_s: list[float]
    turned_away: list[int]
    failures: int
    """Calls that were given no answer."""


def run(console: Console, quick: bool) -> Report:
    count = 500 if quick else HOSTS
    with console.status(f"crowd: {count} hosts come back"), TemporaryDirectory() as folder:
        row = measure(Path(folder), count)
    return Report(
        name="crowd",
        title="Everybody comes back at once",
        columns={
            "hosts": lambda row: str(row["hosts"]),
            "all in after": lambda row: f"{row['all_in_s']:.1f} s",
            "log-ins/s": lambda row: f"{row['log_ins_per_s']:.0f}",
            "CPU ms a log-in": lambda row: f"{row['cpu_ms_per_log_in']:.2f}",
            "turned away, median": lambda row: f"{row['turned_away']['median']:g}",
            "most": lambda row: str(row["turned_away"]["most"]),
            "no answer": lambda row: str(row["failures"]),
            "Sync p50 / p99 ms before": lambda row: f"{row['calm_p50_ms']:.1f} / {row['calm_p99_ms']:.1f}",
            "meanwhile": lambda row: f"{row['sync_p50_ms']:.1f} / {row['sync_p99_ms']:.1f}",
            "memory": lambda row: bytes_text(row["resident_bytes_most"]),
        },
        rows=[row],
        notes=(
            f"{HOSTS_A_CONNECTION} hosts share a TLS connection; each logs in with its own key, then makes a Sync.",
            "CPU: the coordinator's, for challenge, log-in, first Sync and whatever was turned away.",
            "Sync: of one host that was in before the crowd came, from a process of its own on the same cores.",
        ),
    )


def measure(folder: Path, count: int) -> Row:
    keys = known_hosts(folder / "grid", count + 1)
    with running_grid(folder) as grid, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(int).result()  # it has started, and imported what it needs
        return asyncio.run(watch(grid, pool, keys))


def known_hosts(data: Path, count: int) -> list[bytes]:
    """A grid whose database knows so many hosts; their keys."""
    data.mkdir(parents=True)
    keys = [Ed25519PrivateKey.generate() for _ in range(count)]
    store, now = Store(f"sqlite:///{data / 'memgrid.db'}"), datetime.now(UTC)
    with store.engine.begin() as connection:
        for number, key in enumerate(keys):
            account_id = AccountId(f"account-{number}")
            hosts.add_account(connection, account_id, key.public_key().public_bytes_raw(), now)
            hosts.add_host(
                connection,
                HostId(f"host-{number}"),
                account_id=account_id,
                label="crowd",
                facts=FACTS,
                flops_per_s=1e9,
                now=now,
            )
    store.close()
    return [key.private_bytes_raw() for key in keys]


async def watch(grid: Grid, pool: ProcessPoolExecutor, keys: list[bytes]) -> Row:
    """Be the host that was in, before the crowd and meanwhile."""
    pid = grid.processes.pid("coordinator")
    endpoint = await asyncio.to_thread(discover, grid.url, home=grid.folder / "watcher")
    worker = host_of(len(keys) - 1, keys[-1], SimulatedHost(endpoint=endpoint))
    await worker.log_in()
    calm_ends_s = time.perf_counter() + CALM_S
    calm_ms, _ = await syncs_until(worker, pid, lambda: time.perf_counter() > calm_ends_s)
    before = cpu_s(pid)[0]
    crowd: Future[Returned] = pool.submit(come_back, grid.url, grid.folder / "crowd", keys[:-1])
    sync_ms, resident = await syncs_until(worker, pid, crowd.done)
    returned, cpu = crowd.result(), cpu_s(pid)[0] - before
    await worker.close()
    return {
        "hosts": len(keys) - 1,
        "all_logged_in_s": max(returned.log_in_s),
        "all_in_s": max(returned.in_s),
        "log_ins_per_s": (len(keys) - 1) / max(returned.log_in_s),
        "cpu_ms_per_log_in": 1e3 * cpu / (len(keys) - 1),
        "turned_away": spread(returned.turned_away),
        "turned_away_total": sum(returned.turned_away),
        "failures": returned.failures,
        "worker_turned_away": worker.turned_away,
        "syncs": len(sync_ms),
        "calm_p50_ms": at(calm_ms, 0.5),
        "calm_p99_ms": at(calm_ms, 0.99),
        "sync_p50_ms": at(sync_ms, 0.5),
        "sync_p99_ms": at(sync_ms, 0.99),
        "sync_most_ms": max(sync_ms),
        "resident_bytes_most": resident,
    }


async def syncs_until(worker: SimulatedHost, pid: int, is_over: Callable[[], bool]) -> tuple[list[float], int]:
    """How long each Sync took, in milliseconds, and the most memory the coordinator had."""
    took_ms, resident, coordinator = [], 0, psutil.Process(pid)
    while not is_over():
        began_s = time.perf_counter()
        await worker.sync(want=1)
        took_ms.append(1e3 * (time.perf_counter() - began_s))
        resident = max(resident, coordinator.memory_info().rss)
        await asyncio.sleep(SYNC_EVERY_S)
    return took_ms, resident


def at(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def host_of(number: int, key: bytes, host: SimulatedHost) -> SimulatedHost:
    """A host as the database knows it."""
    host.key, host.host_id = SigningKey(Ed25519PrivateKey.from_private_bytes(key)), HostId(f"host-{number}")
    return host


def come_back(url: str, home: Path, keys: list[bytes]) -> Returned:
    """The crowd, in a process of its own."""
    return asyncio.run(_come_back(url, home, keys))


async def _come_back(url: str, home: Path, keys: list[bytes]) -> Returned:
    endpoint = await asyncio.to_thread(discover, url, home=home)
    async with AsyncExitStack() as opened:
        channels = [
            await opened.enter_async_context(open_channel(endpoint, _TOKEN.get))
            for _ in range(-(-len(keys) // HOSTS_A_CONNECTION))
        ]
        crowd = [
            host_of(number, key, SimulatedHost(endpoint=endpoint, _channel=channels[number // HOSTS_A_CONNECTION]))
            for number, key in enumerate(keys)
        ]
        began_s = time.perf_counter()
        took = await asyncio.gather(*(_enter(host, began_s) for host in crowd))
        return Returned(
            log_in_s=[log_in_s for log_in_s, _, _ in took],
            in_s=[in_s for _, in_s, _ in took],
            failures=sum(failures for _, _, failures in took),
            turned_away=[host.turned_away for host in crowd],
        )


async def _enter(host: SimulatedHost, began_s: float) -> tuple[float, float, int]:
    """Log in and make a Sync; calls that get no answer are made again as a volunteer makes them."""
    rng, failures, log_in_s = random.Random(), 0, 0.0
    while True:
        try:
            if not log_in_s:
                await host.log_in()
                log_in_s = time.perf_counter() - began_s
                _TOKEN.set(host.token)
            await host.sync(want=1)
            return log_in_s, time.perf_counter() - began_s, failures
        except UnavailableError:
            failures += 1
            await asyncio.sleep(backoff_s(failures, rng))
