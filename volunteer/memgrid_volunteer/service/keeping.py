"""Run as a service does: with a log of its own where nobody keeps one, and not in circles."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from memgrid.clock import Clock
from memgrid.text import seconds_text
from memgrid_volunteer.service.crashes import STARTS_FILE, Starts, pause_before
from memgrid_volunteer.service.logs import RotatingLog
from memgrid_volunteer.service.notify import notifier

LOG_NAME = "volunteer.log"
WHY_WAITING_FILE = "why-waiting.txt"
_REASON_CHARS_MAX = 300


def log_path(home: Path) -> Path:
    return home / "logs" / LOG_NAME


@contextlib.contextmanager
def as_service(
    home: Path,
    clock: Clock,
    *,
    environment: Mapping[str, str] = os.environ,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Around one run: what it prints is kept, how it ends is written down, and after bad ends it begins later."""
    with contextlib.ExitStack() as stack:
        if "JOURNAL_STREAM" not in environment:
            log = RotatingLog(log_path(home))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
        starts = Starts(home)
        if not notifier().is_managed:
            # systemd counts itself, and would take the pause for a start that hangs.
            _pause(home, starts, clock, wait)
        starts.begin(clock.now())
        error = "it was ended from outside"
        try:
            yield
            error = ""
        except (SystemExit, KeyboardInterrupt) as end:
            error = "" if isinstance(end, KeyboardInterrupt) or end.code in (None, 0) else f"exit {end.code}"
            raise
        except Exception as found:
            error = f"{type(found).__name__}: {found}"[:_REASON_CHARS_MAX]
            sys.stderr.write(f"ended: {error}\n")
            raise
        finally:
            starts.end(clock.now(), error)


def _pause(home: Path, starts: Starts, clock: Clock, wait: Callable[[float], None]) -> None:
    before, file = starts.all(), home / WHY_WAITING_FILE
    pause = pause_before(before, clock.now())
    if pause <= timedelta(0):
        file.unlink(missing_ok=True)
        return
    text = (
        f"The volunteer failed again and again, the last time at {before[-1].at:%Y-%m-%d %H:%M:%S} UTC:"
        f" {before[-1].reason}\nIt waits {seconds_text(pause.total_seconds())} before the next try, from"
        f" {clock.now():%H:%M:%S} UTC on. `memgrid volunteer doctor` says more; removing {STARTS_FILE} forgets it.\n"
    )
    file.write_text(text)
    sys.stdout.write(text)
    wait(pause.total_seconds())
    file.unlink(missing_ok=True)
