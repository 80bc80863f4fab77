"""What this volunteer has done and how it stands: a line for the owner, a file for `status`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from memgrid.clock import Clock
from memgrid.log import get_logger
from memgrid.specs import Spec
from memgrid.units import HostFacts, Reason, ReasonCode, UnitKey, VerdictNotice
from memgrid_volunteer.device_log import DeviceLog
from memgrid_volunteer.done import DoneUnit, Outcome
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home
from memgrid_volunteer.kinds.job import DeviceId, Progress
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.signals import Signals
from memgrid_volunteer.status import DeviceStatus, Tally, VolunteerStatus
from memgrid_volunteer.telling import busy_line, in_words, work_text

log = get_logger(__name__)
Tell = Callable[[str], None]
REPEAT_IDLE_S = 60.0
REPEAT_PROGRESS_S = 10.0
READINGS_S = 1.0
"""How old temperature, power and load in status.json may be."""


class Diary:
    """Keeps tally and history, writes status.json when something changes, and tells the owner in one line each."""

    def __init__(
        self, home: Home, facts: HostFacts, clock: Clock, tell: Tell, *, names: Sequence[DeviceId] | None = None
    ) -> None:
        """`names`: what the devices of `facts` are called here; without, as torch does."""
        self._home = home
        self._grid = home.grid_url
        self._clock = clock
        self._tell = tell
        self._history = History(home.folder)
        self._log = DeviceLog(facts.devices, names, clock)
        self._status = VolunteerStatus(
            state="starting",
            isolation=facts.isolation,
            pid=os.getpid(),
            tally=VolunteerStatus.from_json(home.status()).tally,
        )
        self._told_idle: ReasonCode | None = None
        self._told_idle_at_s = 0.0
        self._told_progress_at_s: dict[DeviceId, float] = {}
        self._written: VolunteerStatus | None = None
        self._written_at_s = 0.0
        self.awaiting = 0

    @property
    def tally(self) -> Tally:
        return self._status.tally

    def snapshot(self) -> VolunteerStatus:
        return replace(self._status, awaiting_verdict=self.awaiting, devices=self._log.devices)

    def stands(self, state: str, idle: Reason | None = None) -> None:
        """running, idle, paused, away or stopped; a change of the reason for idling is told too."""
        news = (state, idle) != (self._status.state, self._status.idle_reason)
        self._status = replace(self._status, state=state, idle_reason=idle)
        if news and state == "idle" and idle is not None:
            self._tell_idle(idle)
        elif news and state == "paused" and (idle is None or idle.code is ReasonCode.OWNER_PAUSED):
            self._tell("paused; `memgrid volunteer resume` goes on")
        self.write()
        if state == "stopped":
            self._history.close()

    def _tell_idle(self, reason: Reason) -> None:
        # Between two short units of one text a volunteer idles every time: once in a while is enough.
        now_s = self._clock.monotonic_s()
        if self._told_idle != reason.code or now_s - self._told_idle_at_s > REPEAT_IDLE_S:
            self._told_idle, self._told_idle_at_s = reason.code, now_s
            self._tell(f"idle: {reason.text or reason.code.value}")

    def decided(self, decisions: Mapping[DeviceId, Decision], signals: Signals) -> None:
        """What each device may do now, and what was seen; readings alone are written now and then."""
        turned, has_changed = self._log.decided(decisions)
        for device in turned:
            self._tell_decision(device)
        self._log.seen(signals.devices)
        has_changed |= signals.unseen != self._status.unseen
        self._status = replace(self._status, unseen=dict(signals.unseen))
        if has_changed or self._clock.monotonic_s() - self._written_at_s >= READINGS_S:
            self.write()

    def _tell_decision(self, device: DeviceStatus) -> None:
        # The owner knows of their own word, and is told of it by `stands`.
        if device.may_compute:
            self._tell(f"{device.device_id}: goes on")
        elif device.reason is not None and device.reason.code is not ReasonCode.OWNER_PAUSED:
            self._tell(f"{device.device_id}: paused, {device.reason.text or device.reason.code.value}")

    def turned_away(self, pause_s: float) -> None:
        """The coordinator answers, and has no time yet: nothing is wrong."""
        self._tell(busy_line(pause_s))

    def unit_started(self, device_id: DeviceId, key: UnitKey, spec: Spec, estimate_s: float = 0.0) -> None:
        """`estimate_s`: how long the grid thinks it takes here; 0 when it does not know."""
        work = work_text(spec)
        self._log.started(device_id, key, spec.kind, work, estimate_s)
        self._told_progress_at_s[device_id] = self._clock.monotonic_s()
        self._status = replace(self._status, state="running", idle_reason=None)
        self._tell(f"unit {key[:12]}: started, {work}")
        self.write()

    def unit_goes_on(self, device_id: DeviceId, key: UnitKey, progress: Progress) -> None:
        """The owner hears of it now and then; `status` always knows."""
        if not self._log.goes_on(device_id, key, progress):
            return
        now_s = self._clock.monotonic_s()
        if now_s - self._told_progress_at_s[device_id] >= REPEAT_PROGRESS_S:
            self._told_progress_at_s[device_id] = now_s
            self._tell(f"unit {key[:12]}: {progress.text}")
        self.write()

    def unit_done(
        self, device_id: DeviceId, key: UnitKey, tokens: int, compute_s: float, *, utilisation: float | None = None
    ) -> None:
        """`utilisation` is the share of the device's speed that the unit's own operations made use of."""
        self._ended(device_id, key, Outcome.AWAITING, tokens=tokens, compute_s=compute_s, utilisation=utilisation)
        tally = self.tally
        self._count(
            units_done=tally.units_done + 1, tokens=tally.tokens + tokens, compute_s=tally.compute_s + compute_s
        )
        used = "" if utilisation is None else f", {utilisation:.0%} of what {device_id} can do"
        self._tell(f"unit {key[:12]}: done in {compute_s:.1f} s{used}")
        self.write()

    def unit_given_back(self, device_id: DeviceId | None, key: UnitKey, reason: Reason) -> None:
        """`device_id` is None when it had not been started anywhere."""
        self._ended(device_id, key, Outcome.GIVEN_BACK, reason)
        self._count(units_failed=self.tally.units_failed + 1)
        self._tell(f"unit {key[:12]}: given back, {reason.code.value}: {reason.text}")
        self.write()

    def unit_dropped(self, device_id: DeviceId | None, key: UnitKey, reason: Reason) -> None:
        """Somebody else has ended it: the owner, or the grid."""
        self._ended(device_id, key, Outcome.STOPPED, reason)
        self._tell(f"unit {key[:12]}: stopped, {reason.text or reason.code.value}")
        self.write()

    def report_refused(self, key: UnitKey, reason: Reason) -> None:
        self._judge(key, Outcome.REFUSED, reason, 0)
        self._tell(f"unit {key[:12]}: report refused: {reason.text or reason.code.value}")
        self.write()

    def judged(self, key: UnitKey, notice: VerdictNotice) -> None:
        counted = notice.verdict if notice.verdict in ("accepted", "rejected") else "cancelled"
        credit_flops = notice.credit_flops if counted == "accepted" else 0
        changes: dict[str, Any] = {counted: getattr(self.tally, counted) + 1}
        self._count(**changes, credit_flops=self.tally.credit_flops + credit_flops)
        self._judge(key, Outcome(counted), notice.reason, credit_flops)
        self._tell(f"unit {key[:12]}: {in_words(notice)}")
        self.write()

    def uploaded(self, key: UnitKey, size_bytes: int) -> None:
        self._tell(f"unit {key[:12]}: uploaded {size_bytes / 1e6:.1f} MB")

    def note(self, line: str) -> None:
        self._tell(line)

    def write(self) -> None:
        """Bring status.json up to date; costs nothing when it is."""
        status = self.snapshot()
        if status == self._written:
            return
        self._written_at_s = self._clock.monotonic_s()
        try:
            self._home.write_status(replace(status, updated_at=self._clock.now()).to_json())
        except OSError as error:
            # A full disk is no reason to stop computing; the next change is the retry.
            log.warning("status not written", error=str(error))
            return
        self._written = status

    def _ended(
        self,
        device_id: DeviceId | None,
        key: UnitKey,
        outcome: Outcome,
        reason: Reason | None = None,
        *,
        tokens: int = 0,
        compute_s: float | None = None,
        utilisation: float | None = None,
    ) -> None:
        """Off its device and into the history; without `compute_s`, what it has taken by this clock."""
        device, worked_s = self._log.ended(device_id, key)
        unit = DoneUnit(
            at=self._clock.now(),
            unit_key=key,
            kind=device.unit_kind,
            work=device.work,
            grid=self._grid,
            device_id=device.device_id,
            tokens=tokens,
            compute_s=worked_s if compute_s is None else compute_s,
            utilisation=utilisation,
            outcome=outcome,
            reason="" if reason is None else reason.text or reason.code.value,
        )
        self._remember(lambda: self._history.add(unit))

    def _judge(self, key: UnitKey, outcome: Outcome, reason: Reason, credit_flops: int) -> None:
        why, now = reason.text or reason.code.value, self._clock.now()
        self._remember(lambda: self._history.judge(key, outcome, why, credit_flops, now))

    def _remember(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (sqlite3.Error, OSError) as error:
            # Nobody stops computing because the past can't be written down.
            log.warning("history not written", error=str(error))

    def _count(self, **changes: Any) -> None:
        self._status = replace(self._status, tally=replace(self.tally, **changes))
