"""What is done for one grid, written down as its own: its tally, its part of the history, its name in each line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memgrid.specs import Spec
from memgrid.units import Reason, UnitKey, VerdictNotice
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.done import DoneUnit, Outcome
from memgrid_volunteer.kinds.job import DeviceId, Progress
from memgrid_volunteer.places import Membership
from memgrid_volunteer.status import Tally
from memgrid_volunteer.telling import busy_line, in_words, work_text

REPEAT_PROGRESS_S = 10.0


class GridDiary:
    """The part of the diary that belongs to one grid; `is_one_of_many`: lines about the grid itself say its name."""

    def __init__(self, diary: Diary, membership: Membership, *, is_one_of_many: bool = False) -> None:
        self._diary = diary
        self._grid = membership.page_url
        self._prefix = f"{membership.name}: " if is_one_of_many else ""
        self._clock = diary.clock
        self._log = diary.log
        self._tell = diary.tell
        self._told_progress_at_s: dict[DeviceId, float] = {}

    @property
    def tally(self) -> Tally:
        return self._diary.grid(self._grid).tally

    def awaits(self, verdicts: int) -> None:
        """So many results that the grid has not judged."""
        self._put(awaiting_verdict=verdicts)

    def stands(self, state: str, reason: Reason | None) -> None:
        """How it stands with this grid, and why nothing is computed for it."""
        self._put(state=state, reason=reason)

    def note(self, line: str) -> None:
        """What the owner reads about the grid itself."""
        self._tell(f"{self._prefix}{line}")

    def worked_s(self, device_id: DeviceId) -> float:
        """How long a device has worked on the unit it has."""
        return self._log.worked_s(device_id)

    def turned_away(self, pause_s: float) -> None:
        """The coordinator answers, and has no time yet: nothing is wrong."""
        self.note(busy_line(pause_s))

    def unit_started(self, device_id: DeviceId, key: UnitKey, spec: Spec, estimate_s: float = 0.0) -> None:
        """`estimate_s`: how long the grid thinks it takes here; 0 when it does not know."""
        work = work_text(spec)
        self._log.started(device_id, key, spec.kind, work, estimate_s)
        self._told_progress_at_s[device_id] = self._clock.monotonic_s()
        self._diary.at_work()
        self._tell(f"unit {key[:12]}: started, {work}")
        self._diary.write()

    def unit_goes_on(self, device_id: DeviceId, key: UnitKey, progress: Progress) -> None:
        """The owner hears of it now and then; `status` always knows."""
        if not self._log.goes_on(device_id, key, progress):
            return
        now_s = self._clock.monotonic_s()
        if now_s - self._told_progress_at_s[device_id] >= REPEAT_PROGRESS_S:
            self._told_progress_at_s[device_id] = now_s
            self._tell(f"unit {key[:12]}: {progress.text}")
        self._diary.write()

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
        self._diary.write()

    def unit_given_back(self, device_id: DeviceId | None, key: UnitKey, reason: Reason) -> None:
        """`device_id` is None when it had not been started anywhere."""
        self._ended(device_id, key, Outcome.GIVEN_BACK, reason)
        self._count(units_failed=self.tally.units_failed + 1)
        self._tell(f"unit {key[:12]}: given back, {reason.code.value}: {reason.text}")
        self._diary.write()

    def unit_dropped(self, device_id: DeviceId | None, key: UnitKey, reason: Reason) -> None:
        """Somebody else has ended it: the owner, or the grid."""
        self._ended(device_id, key, Outcome.STOPPED, reason)
        self._tell(f"unit {key[:12]}: stopped, {reason.text or reason.code.value}")
        self._diary.write()

    def report_refused(self, key: UnitKey, reason: Reason) -> None:
        self._judge(key, Outcome.REFUSED, reason, 0)
        self._tell(f"unit {key[:12]}: report refused: {reason.text or reason.code.value}")
        self._diary.write()

    def judged(self, key: UnitKey, notice: VerdictNotice) -> None:
        counted = notice.verdict if notice.verdict in ("accepted", "rejected") else "cancelled"
        credit_flops = notice.credit_flops if counted == "accepted" else 0
        changes: dict[str, Any] = {counted: getattr(self.tally, counted) + 1}
        self._count(**changes, credit_flops=self.tally.credit_flops + credit_flops)
        self._judge(key, Outcome(counted), notice.reason, credit_flops)
        self._tell(f"unit {key[:12]}: {in_words(notice)}")
        self._diary.write()

    def uploaded(self, key: UnitKey, size_bytes: int) -> None:
        self._tell(f"unit {key[:12]}: uploaded {size_bytes / 1e6:.1f} MB")

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
        self._diary.remember(lambda history: history.add(unit))

    def _judge(self, key: UnitKey, outcome: Outcome, reason: Reason, credit_flops: int) -> None:
        why, now = reason.text or reason.code.value, self._clock.now()
        self._diary.remember(lambda history: history.judge(key, outcome, why, credit_flops, now, grid=self._grid))

    def _count(self, **changes: Any) -> None:
        self._put(tally=replace(self.tally, **changes))

    def _put(self, **changes: Any) -> None:
        self._diary.put_grid(replace(self._diary.grid(self._grid), **changes))
