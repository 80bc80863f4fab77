"""Is somebody at the machine? Since when has there been no key, no mouse, no line typed over the network?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from memgrid_volunteer.owner.probes.logind import Logind, Session
from memgrid_volunteer.owner.probes.probe import Reading, Unseen

INPUT_DEVICES = Path("/proc/bus/input/devices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Seconds without input; where none has been seen yet, since the source first looked."""

    seconds: float
    is_since_input: bool = True


class IdleSource(Protocol):
    """One way of seeing input at the screen of this machine."""

    @property
    def name(self) -> str: ...

    @property
    def sees_everybody(self) -> bool:
        """Whether it sees the input of other users' logins too."""

    def idle_s(self) -> Idle:
        """Raises Unseen."""


class IdleProbe:
    """Asks every source; the least counts. Lines typed in terminals count as well, also over the network."""

    name = "idle"
    period_s = 1.0

    def __init__(
        self,
        sources: Sequence[IdleSource],
        logind: Logind | None = None,
        *,
        dev: Path = Path("/dev"),
        keyboards: Path | None = INPUT_DEVICES,
    ) -> None:
        self._sources = tuple(sources)
        self._logind = logind
        self._dev = dev
        self._keyboards = keyboards

    def read(self) -> Reading:
        now_s = time.time()
        own, of_all, why = self._ask()
        sessions, why_no_sessions = self._sessions()
        at_seat = [session for session in sessions or () if session.is_at_seat]
        if sessions is not None:
            idle = [_of_session(session, own if session.is_mine else of_all, now_s) for session in at_seat]
        elif own:
            idle = [_together(own)]
        elif not self._has_keyboard():
            idle = []
        else:
            raise Unseen("; ".join([*why, why_no_sessions]))
        # Where nobody sits there was no input since the machine started.
        idle += [now_s - psutil.boot_time(), *self._terminals(sessions or (), now_s)]
        is_locked = all(session.is_locked for session in at_seat) if at_seat else None
        return Reading(input_idle_s=max(min(idle), 0.0), is_locked=is_locked)

    def _ask(self) -> tuple[list[Idle], list[Idle], list[str]]:
        """What is seen of this user's input, what of everybody's, and what not."""
        own, of_all, why = [], [], []
        for source in self._sources:
            try:
                seen = source.idle_s()
            except Unseen as unseen:
                why.append(f"{source.name}: {unseen}")
                continue
            own.append(seen)
            if source.sees_everybody:
                of_all.append(seen)
        return own, of_all, why

    def _sessions(self) -> tuple[tuple[Session, ...] | None, str]:
        if self._logind is None:
            return None, "no logind on this system"
        try:
            return self._logind.sessions(), ""
        except Unseen as unseen:
            return None, f"logind: {unseen}"

    def _has_keyboard(self) -> bool:
        """Whether somebody could sit here at all; also true when nobody can tell."""
        if self._keyboards is None:
            return True
        try:
            text = self._keyboards.read_text(errors="replace")
        except FileNotFoundError:
            return False
        except OSError:
            return True
        handlers = [line.partition("=")[2].split() for line in text.splitlines() if line.startswith("H:")]
        return any(word.startswith(("kbd", "mouse", "js")) for words in handlers for word in words)

    def _terminals(self, sessions: Sequence[Session], now_s: float) -> list[float]:
        """As `w` does it: a terminal's file was last read when somebody last typed."""
        names = {session.tty for session in sessions} | {user.terminal for user in psutil.users()}
        idle = []
        for name in names:
            if name:
                with contextlib.suppress(OSError):
                    idle.append(now_s - (self._dev / name).stat().st_atime)
        return idle


def _together(seen: Sequence[Idle]) -> float:
    """The least of those that have seen input; else as long as any has looked in vain."""
    sure = [idle.seconds for idle in seen if idle.is_since_input]
    return min(sure) if sure else max(idle.seconds for idle in seen)


def _of_session(session: Session, seen: Sequence[Idle], now_s: float) -> float:
    """The time without input of one login at the screen."""
    hinted = 0.0 if session.idle_since_s is None else now_s - session.idle_since_s
    if not seen:
        # A desktop's own word comes minutes late, but is all there is.
        return hinted
    return _together(seen) if any(idle.is_since_input for idle in seen) else max(_together(seen), hinted)
