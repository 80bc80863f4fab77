"""Mains or battery?"""

from __future__ import annotations

import psutil

from memgrid_volunteer.owner.probes.probe import Reading, Unseen


class PowerProbe:
    """A machine without a battery runs on mains: that is known."""

    name = "power"
    period_s = 2.0

    def read(self) -> Reading:
        look = getattr(psutil, "sensors_battery", None)
        if look is None:
            raise Unseen("this system tells nothing about batteries")
        found = look()
        if found is None:
            return Reading(on_battery=False, battery_share=None)
        is_plugged = found.power_plugged
        return Reading(on_battery=None if is_plugged is None else not is_plugged, battery_share=found.percent / 100)
