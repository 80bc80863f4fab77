"""A device of this very machine, and its worker."""

from __future__ import annotations

from collections.abc import Callable

from memgrid.clock import Clock
from memgrid.errors import InternalError
from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.bench import Bench
from memgrid_volunteer.devices import NamedDevice
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.kinds.job import Outcome, Progress
from memgrid_volunteer.owner.decision import Action, Decision
from memgrid_volunteer.sandbox import Sandbox


class OwnBench(Bench):
    """Runs units in a sandbox."""

    def __init__(self, device: NamedDevice, sandbox: Sandbox, clock: Clock) -> None:
        super().__init__(device, clock)
        self._sandbox = sandbox

    async def obey(self, decision: Decision) -> None:
        former = self._take(decision)
        if decision.action is Action.PAUSE_RELEASE:
            if former.action is not Action.PAUSE_RELEASE or self._sandbox.pid is not None:
                await self.stop()
        else:
            self._sandbox.pace(decision.duty if decision.may_compute else 0.0)

    async def start(self) -> bool:
        """Have a worker that computes on this very device; False when there is none, or it may not compute now."""
        try:
            await self._start()
        except InternalError as error:
            if self.decision.action is not Action.PAUSE_RELEASE:
                self.failed(Reason(code=ReasonCode.DEVICE_FAILED, text=str(error)[:400]))
            return False
        if self.decision.action is Action.PAUSE_RELEASE:
            await self.stop()
            return False
        return True

    async def run(self, prepared: Prepared, hear: Callable[[Progress], None]) -> Outcome:
        self.warm_model = prepared.offer.model
        return await self._sandbox.run(prepared.job, hear)

    async def allow(self, memory_bytes: int | None) -> None:
        if self._sandbox.allow(memory_bytes):
            await self.stop()

    async def stop(self) -> None:
        self.warm_model = None
        await self._sandbox.kill()

    async def _start(self) -> None:
        """Raises InternalError when the device is not there, or its worker does not start."""
        hello = await self._sandbox.start()
        if not self.device.uuid or any(device.uuid == self.device.uuid for device in hello.devices[:1]):
            return
        # The driver counts otherwise than before: look for the very card.
        await self._sandbox.kill()
        self._sandbox.bind(None)
        hello = await self._sandbox.start()
        places = [device.device_id for device in hello.devices if device.uuid == self.device.uuid]
        self._sandbox.bind(places[0] if places else self.device.torch_id)
        if not places:
            await self._sandbox.kill()
            raise InternalError(f"{self.device_id} ({self.device.facts.name}, {self.device.uuid}) has gone")
        if places[0] != hello.devices[0].device_id:
            await self._sandbox.kill()
            await self._sandbox.start()
