"""What this volunteer has done and how it stands: a line for the owner, a file for `status`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from memgrid.clock import Clock
from memgrid.log import get_logger
from memgrid.units import HostFacts, Reason, ReasonCode
from memgrid_volunteer.device_log import DeviceLog
from memgrid_volunteer.devices import NamedDevice
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.signals import Signals
from memgrid_volunteer.status import DeviceStatus, GridStatus, Tally, VolunteerStatus

log = get_logger(__name__)
Tell = Callable[[str], None]
REPEAT_IDLE_S = 60.0
READINGS_S = 1.0
"""How old temperature, power and load in status.json may be."""


class Diary:
    """Keeps tally and history, writes status.json when something changes, and tells the owner in one line each."""

    def __init__(
        self, home: Home, facts: HostFacts, clock: Clock, tell: Tell, *, names: Sequence[DeviceId] | None = None
    ) -> None:
        """`names`: what the devices of `facts` are called here; without, as torch does."""
        self._home = home
        self.clock = clock
        self.tell = tell
        self._history = History(home.folder)
        self.log = DeviceLog(facts.devices, names, clock)
        self._status = VolunteerStatus(state="starting", isolation=facts.isolation, pid=os.getpid())
        self._grids = _grids(home)
        self._told_idle: ReasonCode | None = None
        self._told_idle_at_s = 0.0
        self._written: VolunteerStatus | None = None
        self._written_at_s = 0.0

    @property
    def tally(self) -> Tally:
        return Tally.sum_of([grid.tally for grid in self._grids.values()])

    def snapshot(self) -> VolunteerStatus:
        grids = tuple(self._grids.values())
        awaiting = sum(grid.awaiting_verdict for grid in grids)
        return replace(
            self._status, awaiting_verdict=awaiting, tally=self.tally, grids=grids, devices=self.log.devices
        )

    def grid(self, url: str) -> GridStatus:
        return self._grids[url]

    def put_grid(self, grid: GridStatus) -> None:
        """How it stands with a grid from now on; `write` brings it to the file."""
        self._grids[grid.url] = grid

    def at_work(self) -> None:
        """A unit has begun."""
        self._status = replace(self._status, state="running", idle_reason=None)

    def stands(self, state: str, idle: Reason | None = None) -> None:
        """running, idle, paused, away or stopped; a change of the reason for idling is told too."""
        news = (state, idle) != (self._status.state, self._status.idle_reason)
        self._status = replace(self._status, state=state, idle_reason=idle)
        if news and state == "idle" and idle is not None:
            self._tell_idle(idle)
        elif news and state == "paused" and (idle is None or idle.code is ReasonCode.OWNER_PAUSED):
            self.tell("paused; `memgrid volunteer resume` goes on")
        self.write()
        if state == "stopped":
            self._history.close()

    def _tell_idle(self, reason: Reason) -> None:
        # Between two short units of one text a volunteer idles every time: once in a while is enough.
        now_s = self.clock.monotonic_s()
        if self._told_idle != reason.code or now_s - self._told_idle_at_s > REPEAT_IDLE_S:
            self._told_idle, self._told_idle_at_s = reason.code, now_s
            self.tell(f"idle: {reason.text or reason.code.value}")

    def decided(self, decisions: Mapping[DeviceId, Decision], signals: Signals) -> None:
        """What each device may do now, and what was seen; readings alone are written now and then."""
        turned, has_changed = self.log.decided(decisions)
        for device in turned:
            self._tell_decision(device)
        self.log.seen(signals.devices)
        has_changed |= signals.unseen != self._status.unseen
        self._status = replace(self._status, unseen=dict(signals.unseen))
        if has_changed or self.clock.monotonic_s() - self._written_at_s >= READINGS_S:
            self.write()

    def device_came(self, device: NamedDevice) -> None:
        """A device more, of another machine."""
        self.log.came(device)
        self.write()

    def device_left(self, device_id: DeviceId) -> None:
        """It is not there any more; what it did stays in the history."""
        self.log.left(device_id)
        self.write()

    def machines_left_out(self, why: Mapping[str, str]) -> None:
        """Machines of the cluster that do not compute."""
        self._status = replace(self._status, left_out=dict(why))
        self.write()

    def _tell_decision(self, device: DeviceStatus) -> None:
        # The owner knows of their own word, and is told of it by `stands`.
        if device.may_compute:
            self.tell(f"{device.device_id}: goes on")
        elif device.reason is not None and device.reason.code is not ReasonCode.OWNER_PAUSED:
            self.tell(f"{device.device_id}: paused, {device.reason.text or device.reason.code.value}")

    def write(self) -> None:
        """Bring status.json up to date; costs nothing when it is."""
        status = self.snapshot()
        if status == self._written:
            return
        self._written_at_s = self.clock.monotonic_s()
        try:
            self._home.write_status(replace(status, updated_at=self.clock.now()).to_json())
        except OSError as error:
            # A full disk is no reason to stop computing; the next change is the retry.
            log.warning("status not written", error=str(error))
            return
        self._written = status

    def remember(self, write: Callable[[History], None]) -> None:
        """In the history, as far as the disk lets it."""
        try:
            write(self._history)
        except (sqlite3.Error, OSError) as error:
            # Nobody stops computing because the past can't be written down.
            log.warning("history not written", error=str(error))


def _grids(home: Home) -> dict[str, GridStatus]:
    """Of every grid that is joined what the last run counted; what was counted of one alone is the first's."""
    before = VolunteerStatus.from_json(home.status())
    known = {grid.url: grid for grid in before.grids}
    found: dict[str, GridStatus] = {}
    for place in home.places():
        member = place.membership()
        tally = known[member.page_url].tally if member.page_url in known else Tally()
        if not known and not found:
            tally = before.tally
        found[member.page_url] = GridStatus(url=member.page_url, name=member.name, tally=tally)
    return found
