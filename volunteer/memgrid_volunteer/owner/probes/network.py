"""Is the connection metered?"""

from __future__ import annotations

from jeepney import DBusAddress

from memgrid_volunteer.owner.probes.bus import Bus
from memgrid_volunteer.owner.probes.probe import Reading, Unseen

_NAME = "org.freedesktop.NetworkManager"
_MANAGER = DBusAddress("/org/freedesktop/NetworkManager", _NAME, _NAME)
_YES, _NO, _GUESS_YES, _GUESS_NO = 1, 2, 3, 4


class MeteredProbe:
    """As NetworkManager knows or guesses it: telephones that share their connection are mostly metered."""

    name = "network"
    period_s = 10.0

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def read(self) -> Reading:
        metered = self._bus.property(_MANAGER, "Metered")
        if metered not in (_YES, _NO, _GUESS_YES, _GUESS_NO):
            raise Unseen("NetworkManager does not know")
        return Reading(is_metered=metered in (_YES, _GUESS_YES))
