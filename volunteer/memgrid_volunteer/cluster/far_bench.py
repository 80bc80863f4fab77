"""A device of another machine: the machine itself rules and runs it, here is what the workbench needs of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from memgrid.clock import Clock
from memgrid.errors import DigestMismatchError, MemgridError
from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.bench import Bench
from memgrid_volunteer.cluster.words import NodeGoneError, TaskName
from memgrid_volunteer.devices import NamedDevice
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.kinds.job import DeviceId, Outcome, Progress
from memgrid_volunteer.owner.decision import Decision

LOSSES_MAX = 2
"""Machines that went away while they ran the same lease: by the last it looks as if that were its fault."""


class Computes(Protocol):
    """The machine that such a device belongs to."""

    async def compute(self, there: DeviceId, prepared: Prepared, is_wanted: Callable[[], bool]) -> Outcome:
        """One unit to its outcome and files; those of a cut-off one only while it is wanted. Raises MemgridError."""

    async def stop(self, there: DeviceId) -> None:
        """End what runs on a device; returns soon, also when nobody answers."""


class FarBench(Bench):
    """One device there; `there` is what its own machine calls it."""

    def __init__(
        self, device: NamedDevice, there: DeviceId, machine: Computes, clock: Clock, losses: Counter[TaskName]
    ) -> None:
        """`losses` counts, for all benches together, the machines that a unit has lost."""
        super().__init__(device, clock)
        self.there = there
        self.task: TaskName | None = None
        """Of the unit that runs."""
        self._machine = machine
        self._losses = losses
        self._hear: Callable[[Progress], None] | None = None
        self._stops = 0

    async def obey(self, decision: Decision) -> None:
        """It is done already where it was decided."""
        self._take(decision)

    async def start(self) -> bool:
        return self.may_compute and not self.has_left

    async def run(self, prepared: Prepared, hear: Callable[[Progress], None]) -> Outcome:
        """What its machine or the way there is to blame for is no fault of the unit: that is cut off, and goes on."""
        self.warm_model, self._hear, stops = prepared.offer.model, hear, self._stops
        self.task = name = prepared.job.unit_dir.name
        try:
            return await self._machine.compute(self.there, prepared, lambda: self._stops == stops)
        except NodeGoneError as error:
            return self._lost(name, f"{self.device_id}: {error}")
        except DigestMismatchError as error:
            # What went there was damaged here: the workbench looks at the cache.
            return _failed(ReasonCode.INPUT_UNAVAILABLE, str(error))
        except OSError as error:
            return _failed(ReasonCode.INPUT_UNAVAILABLE, f"this host's disk: {error.strerror}")
        except MemgridError as error:
            reason = Reason(code=ReasonCode.UNIT_FAILED, text=str(error)[:400])
            self.failed(reason)
            return _failed(ReasonCode.OWNER_PAUSED, reason.text)
        finally:
            self._hear = self.task = None

    def goes_on(self, task: TaskName, progress: Progress) -> None:
        """Its machine tells how far a unit is."""
        if self._hear is not None and self.task == task:
            self._hear(progress)

    async def allow(self, memory_bytes: int | None) -> None:
        """Its machine has the preferences, and sees to it."""

    async def stop(self) -> None:
        self.warm_model = None
        self._stops += 1
        await self._machine.stop(self.there)

    def _lost(self, task: TaskName, why: str) -> Outcome:
        self._losses[task] += 1
        if self._losses[task] >= LOSSES_MAX:
            text = f"{self._losses[task]} machines went away while they ran it, the last: {why}"
            return _failed(ReasonCode.UNIT_FAILED, text)
        return _failed(ReasonCode.OWNER_PAUSED, why)


def _failed(code: ReasonCode, text: str) -> Outcome:
    return Outcome(failure=Reason(code=code, text=text[:500]))
