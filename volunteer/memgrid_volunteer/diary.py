"""What this volunteer has done and how it stands: a line for the owner, a file for `status`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from memgrid.clock import Clock
from memgrid.log import get_logger
from memgrid.specs import EvaluateSpec, PrefillSpec, Spec, StudySpec, TrainSpec
from memgrid.units import HostFacts, Reason, ReasonCode, UnitKey, VerdictNotice
from memgrid_volunteer.home import Home
from memgrid_volunteer.kinds.job import Progress

log = get_logger(__name__)
Tell = Callable[[str], None]
REPEAT_IDLE_S = 60.0
REPEAT_PROGRESS_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counted since the grid was joined."""

    units_done: int = 0
    units_failed: int = 0
    accepted: int = 0
    rejected: int = 0
    cancelled: int = 0
    credit_flops: int = 0
    tokens: int = 0
    compute_s: float = 0.0

    @staticmethod
    def from_status(status: dict[str, Any]) -> Tally:
        """Go on counting where the last run stopped."""
        return Tally(**{each.name: status[each.name] for each in fields(Tally) if each.name in status})


class Diary:
    """Keeps the tally, writes status.json whenever something changes, and tells the owner in one line each."""

    def __init__(self, home: Home, facts: HostFacts, clock: Clock, tell: Tell) -> None:
        self._home = home
        self._facts = facts
        self._clock = clock
        self._tell = tell
        self._state = "starting"
        self._unit: UnitKey | None = None
        self._idle: Reason | None = None
        self._told_idle: ReasonCode | None = None
        self._told_idle_at_s = 0.0
        self._progress = ""
        self._told_progress_at_s = 0.0
        self._last: dict[str, Any] = {}
        self.tally = Tally.from_status(home.status())
        self.awaiting = 0

    def stands(self, state: str, idle: Reason | None = None) -> None:
        """running, idle, paused, away or stopped; a change of the reason for idling is told too."""
        news = (state, idle) != (self._state, self._idle)
        self._state, self._idle = state, idle
        if news and state == "idle" and idle is not None:
            self._tell_idle(idle)
        elif news and state == "paused":
            self._tell("paused; `memgrid volunteer resume` goes on")
        self.write()

    def _tell_idle(self, reason: Reason) -> None:
        # Between two short units of one text a volunteer idles every time: once in a while is enough.
        now_s = self._clock.monotonic_s()
        if self._told_idle != reason.code or now_s - self._told_idle_at_s > REPEAT_IDLE_S:
            self._told_idle, self._told_idle_at_s = reason.code, now_s
            self._tell(f"idle: {reason.text or reason.code.value}")

    def away(self, error: Exception, pause_s: float) -> None:
        """The coordinator can't be reached."""
        if self._state != "away":
            self._tell(f"{error}; trying again until it does")
        self._state = "away"
        self.write()

    def turned_away(self, pause_s: float) -> None:
        """The coordinator answers, and has no time yet: nothing is wrong."""
        self._tell(busy_line(pause_s))

    def unit_started(self, key: UnitKey, spec: Spec) -> None:
        self._unit, self._progress = key, ""
        self._told_progress_at_s = self._clock.monotonic_s()
        self._state, self._idle = "running", None
        self._tell(f"unit {key[:12]}: started, {work_text(spec)}")
        self.write()

    def unit_goes_on(self, key: UnitKey, progress: Progress) -> None:
        """The owner hears of it now and then; `status` always knows."""
        now_s = self._clock.monotonic_s()
        self._progress = progress.text
        if now_s - self._told_progress_at_s >= REPEAT_PROGRESS_S:
            self._told_progress_at_s = now_s
            self._tell(f"unit {key[:12]}: {progress.text}")
        self.write()

    def unit_done(self, key: UnitKey, tokens: int, compute_s: float) -> None:
        self._unit = None
        self.tally = replace(
            self.tally,
            units_done=self.tally.units_done + 1,
            tokens=self.tally.tokens + tokens,
            compute_s=self.tally.compute_s + compute_s,
        )
        self._tell(f"unit {key[:12]}: done in {compute_s:.1f} s")
        self.write()

    def unit_given_back(self, key: UnitKey, reason: Reason) -> None:
        self._unit = None
        self.tally = replace(self.tally, units_failed=self.tally.units_failed + 1)
        self._tell(f"unit {key[:12]}: given back, {reason.code.value}: {reason.text}")
        self.write()

    def unit_dropped(self, key: UnitKey, reason: Reason) -> None:
        """Somebody else has ended it: the owner, or the grid."""
        self._unit = None
        self._tell(f"unit {key[:12]}: stopped, {reason.text or reason.code.value}")
        self.write()

    def report_refused(self, key: UnitKey, reason: Reason) -> None:
        self._tell(f"unit {key[:12]}: report refused: {reason.text or reason.code.value}")
        self.write()

    def judged(self, key: UnitKey, notice: VerdictNotice) -> None:
        counted = notice.verdict if notice.verdict in ("accepted", "rejected") else "cancelled"
        changes: dict[str, Any] = {counted: getattr(self.tally, counted) + 1}
        if counted == "accepted":
            changes["credit_flops"] = self.tally.credit_flops + notice.credit_flops
        self.tally = replace(self.tally, **changes)
        self._tell(f"unit {key[:12]}: {in_words(notice)}")
        self.write()

    def uploaded(self, key: UnitKey, size_bytes: int) -> None:
        self._tell(f"unit {key[:12]}: uploaded {size_bytes / 1e6:.1f} MB")

    def note(self, line: str) -> None:
        self._tell(line)

    def write(self) -> None:
        """Bring status.json up to date; costs nothing when it is."""
        status = {
            "state": self._state,
            "unit": self._unit,
            "progress": self._progress if self._unit else "",
            "idle_reason": None if self._idle is None else asdict(self._idle),
            "awaiting_verdict": self.awaiting,
            "isolation": self._facts.isolation,
            "devices": [asdict(device) for device in self._facts.devices],
            "pid": os.getpid(),
            **asdict(self.tally),
        }
        if status != self._last:
            try:
                self._home.write_status({**status, "updated_at": self._clock.now().isoformat()})
            except OSError as error:
                # A full disk is no reason to stop computing; the next change is the retry.
                log.warning("status not written", error=str(error))
                return
            self._last = status


def work_text(spec: Spec) -> str:
    """What a unit asks for, as the owner reads it."""
    match spec:
        case PrefillSpec():
            return f"{spec.token_count} tokens from position {spec.start}"
        case StudySpec():
            return f"{spec.conversations} conversations about {spec.token_count} tokens"
        case TrainSpec():
            return f"training steps {spec.first_step + 1} to {spec.stop_step} of {spec.total_steps}"
        case EvaluateSpec():
            return f"{spec.items} conversations to score"


def busy_line(pause_s: float) -> str:
    """What the owner reads when the coordinator has no time yet.

    >>> busy_line(11.7)
    'the grid has its hands full; trying again in 12 s'
    """
    return f"the grid has its hands full; trying again in {pause_s:.0f} s"


def in_words(notice: VerdictNotice) -> str:
    """A verdict as the owner reads it.

    >>> from memgrid.units import LeaseId
    >>> in_words(VerdictNotice(lease_id=LeaseId("7f3a"), verdict="accepted",
    ...     reason=Reason(code=ReasonCode.AGREES), credit_flops=58_000_000_000))
    'accepted, credit 0.058 TFLOP'
    """
    if notice.verdict == "accepted":
        return f"accepted, credit {notice.credit_flops / 1e12:.3g} TFLOP"
    return f"{notice.verdict}: {notice.reason.text or notice.reason.code.value}"
