"""Who sits at this machine, as systemd's logind knows it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from jeepney import DBusAddress

from memgrid_volunteer.owner.probes.bus import Bus

LOGIND = "org.freedesktop.login1"
_MANAGER = DBusAddress("/org/freedesktop/login1", LOGIND, f"{LOGIND}.Manager")
_GRAPHICAL = ("x11", "wayland", "mir")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login. `idle_since_s` is None while its desktop has not called it idle, and is in seconds since 1970."""

    uid: int
    seat: str
    tty: str
    is_graphical: bool
    is_active: bool
    is_locked: bool
    idle_since_s: float | None

    @property
    def is_at_seat(self) -> bool:
        """In the foreground of a screen and keyboard of this machine."""
        return bool(self.seat) and self.is_active

    @property
    def is_mine(self) -> bool:
        return hasattr(os, "getuid") and self.uid == os.getuid()


class Logind:
    """Raises Unseen where there is none."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def sessions(self) -> tuple[Session, ...]:
        """People's logins; the greeter that waits for one is none."""
        listed = self._bus.call(_MANAGER, "ListSessions")
        found = [self._bus.properties(DBusAddress(path, LOGIND, f"{LOGIND}.Session")) for *_, path in listed]
        return tuple(_session(facts) for facts in found if facts.get("Class", "user").startswith("user"))

    def idle_inhibitors(self) -> tuple[str, ...]:
        """Programs that ask for the screen to stay on: films, talks, games."""
        listed = self._bus.call(_MANAGER, "ListInhibitors")
        return tuple(
            who for what, who, _, mode, *_ in listed if "idle" in what.split(":") and mode.startswith("block")
        )


def _session(facts: dict[str, Any]) -> Session:
    is_idle = bool(facts.get("IdleHint", False))
    since_s = facts.get("IdleSinceHint", 0) / 1e6
    return Session(
        uid=int(facts.get("User", (0, ""))[0]),
        seat=str(facts.get("Seat", ("", ""))[0]),
        tty=str(facts.get("TTY", "")),
        is_graphical=facts.get("Type") in _GRAPHICAL,
        is_active=bool(facts.get("Active", False)),
        is_locked=bool(facts.get("LockedHint", False)),
        idle_since_s=since_s if is_idle and since_s > 0 else None,
    )
