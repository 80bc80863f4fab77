"""One device: what its owner lets it do, and how it fares; whoever makes it compute says how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime, timedelta

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.log import get_logger
from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.devices import NamedDevice
from memgrid_volunteer.health import WELL, after_failure
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.kinds.job import DeviceId, Outcome, Progress
from memgrid_volunteer.owner.decision import RUN, Action, Decision

PAUSE_EXPECTED = timedelta(minutes=10)
"""How long a pause lasts whose end nobody knows."""
FAILURES = (ReasonCode.UNIT_FAILED, ReasonCode.OUT_OF_MEMORY, ReasonCode.DEVICE_FAILED)
"""Ways to fail that may be the device's fault."""
_GRACE = timedelta(seconds=5)

log = get_logger(__name__)


class Bench(ABC):
    """Runs one unit at a time on one device, and does what it is told about it at once."""

    def __init__(self, device: NamedDevice, clock: Clock) -> None:
        self.device = device
        self.decision: Decision = RUN
        """What it obeys; a rest of its own included."""
        self.warm_model: Digest | None = None
        """The model its worker has loaded."""
        self.has_left = False
        """Its device is not there any more: it gets no unit."""
        self._clock = clock
        self._health = WELL
        self._paused_at: datetime | None = None

    @property
    def device_id(self) -> DeviceId:
        return self.device.device_id

    @property
    def may_compute(self) -> bool:
        return self.decision.may_compute and not self._health.is_resting(self._clock.monotonic_s())

    def ruled(self, decision: Decision) -> Decision:
        """What holds for this device: the owner's decision, unless it has to rest anyway."""
        left_s = self._health.rests_until_s - self._clock.monotonic_s()
        if left_s <= 0 or not decision.may_compute:
            return decision
        until = self._clock.now() + timedelta(seconds=round(left_s))
        failed = self._health.reason.text if self._health.reason is not None else ""
        text = f"{self.device_id} rests, {self._health.failures} failures in a row: {failed}"
        reason = Reason(code=ReasonCode.DEVICE_RESTS, text=text[:500])
        return Decision(action=Action.PAUSE_RELEASE, duty=0.0, reason=reason, until=until)

    def keeps_until(self, deadline_at: datetime, now: datetime) -> bool:
        """Whether a lease may wait here for the end of the present pause."""
        if self.decision.action is not Action.PAUSE_RELEASE:
            return True
        ends_at = self.decision.until or (self._paused_at or now) + PAUSE_EXPECTED
        return now < ends_at + _GRACE and ends_at < deadline_at

    @abstractmethod
    async def obey(self, decision: Decision) -> None:
        """From now on; returns when memory of this machine that is to be given back is free."""

    @abstractmethod
    async def start(self) -> bool:
        """Be ready to run a unit; False when it can't, or may not compute now."""

    @abstractmethod
    async def run(self, prepared: Prepared, hear: Callable[[Progress], None]) -> Outcome:
        """One unit to its outcome; what it leaves lies in the output folder of its job."""

    @abstractmethod
    async def allow(self, memory_bytes: int | None) -> None:
        """How much of the device's memory its worker may take; one that runs with another limit is ended."""

    @abstractmethod
    async def stop(self) -> None:
        """End the worker, and with it the running unit; it starts again when needed."""

    def succeeded(self) -> None:
        self._health = WELL

    def failed(self, reason: Reason) -> None:
        """One more failure; after some of them the device rests, longer every time.

        A rest ends the worker, too: what a driver's reset or a stray access broke stays broken in that process.
        """
        # Of these the next unit would meet the same.
        is_certain = reason.code is ReasonCode.DEVICE_FAILED
        self._health = after_failure(self._health, reason, self._clock.monotonic_s(), is_certain=is_certain)
        if self._health.is_resting(self._clock.monotonic_s()):
            log.warning("device rests", device=self.device_id, failures=self._health.failures, reason=reason.text)

    def _take(self, decision: Decision) -> Decision:
        """Make a decision the one that holds; the one that did."""
        former, self.decision = self.decision, decision
        if decision.may_compute:
            self._paused_at = None
        elif self._paused_at is None:
            self._paused_at = self._clock.now()
        return former
