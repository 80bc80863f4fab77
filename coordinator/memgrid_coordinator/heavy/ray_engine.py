"""Run long computations on a Ray cluster, or on a Ray of this machine's own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from memgrid.errors import DrainingError, InvalidError, UnavailableError
from memgrid_coordinator.heavy.runner import LIMIT

_CONNECT_S = 5.0
_ADDRESS = re.compile(r"(?:ray://)?\[?(?P<host>[^\[\]/\s]+?)\]?:(?P<port>\d{1,5})")

P = ParamSpec("P")
T = TypeVar("T")


class RayEngine:
    """Each call is one Ray task of one CPU.

    Functions read and write files by path, so on more than one machine the data folder has to be a shared one,
    under the same path everywhere.
    """

    def __init__(self, address: str, *, cpus: int | None = None, limit: timedelta = LIMIT) -> None:
        """Connect to Ray, which takes some seconds; raises InvalidError or UnavailableError saying why not.

        `auto`: the cluster this machine belongs to, else a new one on this machine; `local`: always a new one,
        of `cpus`; anything else is a cluster's address.
        """
        self._ray = _connected(address, cpus)
        self._limit_s = limit.total_seconds()
        self._tasks: dict[Callable[..., Any], Any] = {}
        self._running: set[asyncio.Future[Any]] = set()
        self._closing = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closing:
            raise DrainingError(f"{function.__name__}: the coordinator is stopping")
        reference = self._task(function).remote(*args, **kwargs)
        future = asyncio.wrap_future(reference.future())
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(self._limit_s):
                result: T = await future
            return result
        except TimeoutError:
            self._ray.cancel(reference, force=True)
            raise UnavailableError(f"{function.__name__}: took longer than {self._limit_s:g} s") from None
        except self._ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except self._ray.exceptions.RayError as error:
            if self._closing:
                raise DrainingError(f"{function.__name__}: the coordinator is stopping") from None
            raise UnavailableError(f"{function.__name__}: {_line(error)}") from None

    async def close(self, drain: timedelta) -> None:
        if self._closing:
            return
        self._closing = True
        if self._running:
            await asyncio.wait(self._running, timeout=drain.total_seconds())
        with _own_signal_handler():
            self._ray.shutdown()

    def _task(self, function: Callable[..., Any]) -> Any:
        if function not in self._tasks:
            self._tasks[function] = self._ray.remote(num_cpus=1, max_retries=1)(function)
        return self._tasks[function]


def _connected(address: str, cpus: int | None) -> Any:
    """The ray module, initialised."""
    _check_address(address)
    # No program of ours reports to third parties.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InvalidError("ray: not installed; pip install 'memgrid[coordinator]'") from None
    with _own_signal_handler():
        try:
            ray.init(
                address=None if address == "auto" else address,
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="WARNING",
                namespace="memgrid",
            )
        except ValueError as error:
            raise InvalidError(f"ray: {address}: {_line(error)}") from None
        except (ConnectionError, OSError, RuntimeError) as error:
            raise UnavailableError(f"ray: {address}: {_line(error)}") from None
    return ray


def _check_address(address: str) -> None:
    """Whether somebody listens there; Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    if not (found := _ADDRESS.fullmatch(address)):
        raise InvalidError(f"ray: expected auto, local or HOST:PORT, found {address[:80]!r}")
    try:
        socket.create_connection((found["host"], int(found["port"])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UnavailableError(f"ray: {address}: nobody answers: {_line(error)}") from None


def _cause(error: Any) -> BaseException:
    """The error as the function raised it; Ray wraps it in a class of its own."""
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Ray takes SIGTERM for itself; a coordinator has to drain on it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
