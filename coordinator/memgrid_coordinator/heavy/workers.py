"""What happens inside a process of the inline engine: it obeys its limit and its parent, and never outlives it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from memgrid.errors import UnavailableError

_NICENESS = 5
"""Checks give way to the process that answers volunteers."""
_GRACE_S = 30.0

T = TypeVar("T")


def begin() -> None:
    """Set a fresh process up. Ctrl-C reaches the whole terminal; only the parent decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    be_quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(_NICENESS)


def be_quiet() -> None:
    """Nobody who reads a log should have to wonder about advice, or about bars that nobody watches."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def call(limit_s: float, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Call a function; raises UnavailableError when it takes longer than its limit, or the parent sends an alarm."""
    with _limited(limit_s, getattr(function, "__name__", "function")):
        return function(*args, **kwargs)


@contextmanager
def _limited(limit_s: float, name: str) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return

    def on_alarm(_number: int, _frame: object) -> None:
        # Compiled code may not come back to notice the error: the second alarm ends the process.
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, _GRACE_S)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        why = "was cancelled" if left_s else f"took longer than {limit_s:g} s"
        raise UnavailableError(f"{name}: {why}")

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        # In this order: an alarm that comes too late must not end a process that waits for its next call.
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end_with_parent() -> None:
    # A killed coordinator closes no queue: its children hold both ends and would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
