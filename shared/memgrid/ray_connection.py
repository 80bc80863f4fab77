"""How to reach a Ray cluster, for whoever was told to: nothing else in this package knows of Ray."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memgrid.errors import InvalidError, UnavailableError

_CONNECT_S = 5.0
_ADDRESS = re.compile(r"(?:ray://)?\[?(?P<host>[^\[\]/\s]+?)\]?:(?P<port>\d{1,5})")
_OWN = ("auto", "local")
_LINE_MAX = 300


def line_of(error: BaseException) -> str:
    """What an error of Ray says, in one line that is not too long."""
    text = " ".join(str(error).split())
    return (text if len(text) <= _LINE_MAX else text[: _LINE_MAX - 1] + "…") or type(error).__name__


def connected(address: str, *, extra: str, may_start: bool, cpus: int | None = None) -> Any:
    """The ray module, initialised; a process can have one connection at a time.

    `auto` is the cluster that this machine belongs to, `local` always a new one on this machine, of `cpus`; anything
    else is a cluster's address. With `may_start`, `auto` begins a new one where there is none. `extra` is what of
    memgrid brings Ray. Raises InvalidError or UnavailableError in one line.
    """
    _check_address(address, may_start)
    # No program of ours reports to third parties.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if (address not in _OWN or not may_start) and _has_token():
        # `ray start` does so by itself, and would turn away who comes without; Ray reads this while it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise InvalidError(f"--ray: Ray is not installed: pip install 'memgrid[{extra}]'") from None
    with _own_signal_handler():
        try:
            ray.init(
                address=None if address == "auto" and may_start else address,
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="WARNING",
                namespace="memgrid",
            )
        except ValueError as error:
            raise InvalidError(f"ray: {address}: {line_of(error)}") from None
        except (ConnectionError, OSError, RuntimeError) as error:
            advice = "does this machine have the cluster's versions of Python and Ray, and its token?"
            raise UnavailableError(f"ray: {address}: {line_of(error)}; {advice}") from None
    return ray


def disconnect(ray: Any) -> None:
    """Leave the cluster; one that began with this connection ends with it."""
    with _own_signal_handler():
        ray.shutdown()


def _check_address(address: str, may_start: bool) -> None:
    """Whether somebody listens there; Ray itself would try for minutes."""
    own = _OWN if may_start else _OWN[:1]
    if address in own:
        return
    if not (found := _ADDRESS.fullmatch(address)):
        raise InvalidError(f"ray: expected {', '.join(own)} or HOST:PORT, found {address[:80]!r}")
    try:
        socket.create_connection((found["host"], int(found["port"])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UnavailableError(f"ray: {address}: nobody answers: {line_of(error)}") from None


def _has_token() -> bool:
    """Whether this machine has what Ray lets in; see `ray get-auth-token`."""
    named = os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Ray takes SIGTERM for itself; who works has to end well on it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
