"""How each device stands: what it may do, what was seen of it, its unit, and how much of that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from memgrid.clock import Clock
from memgrid.units import DeviceFacts, UnitKey
from memgrid_volunteer.course import Course
from memgrid_volunteer.devices import NamedDevice
from memgrid_volunteer.kinds.job import DeviceId, Progress
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.signals import DeviceSignals
from memgrid_volunteer.status import DeviceStatus, devices_of


class DeviceLog:
    """One status a device, replaced as things happen to it."""

    def __init__(self, facts: Sequence[DeviceFacts], names: Sequence[DeviceId] | None, clock: Clock) -> None:
        self._devices = devices_of(facts, names)
        self._courses: dict[DeviceId, Course] = {}
        self._clock = clock

    @property
    def devices(self) -> tuple[DeviceStatus, ...]:
        return tuple(self._devices.values())

    def came(self, device: NamedDevice) -> None:
        """A device more."""
        self._devices |= devices_of([device.facts], [device.device_id])

    def left(self, device_id: DeviceId) -> None:
        """One less."""
        self._devices.pop(device_id, None)
        self._courses.pop(device_id, None)

    def decided(self, decisions: Mapping[DeviceId, Decision]) -> tuple[list[DeviceStatus], bool]:
        """The devices that stop or go on with this, and whether anything is new at all."""
        turned, has_changed = [], False
        for device_id, decision in decisions.items():
            former = self._device(device_id)
            device = former.decided(decision)
            if device.may_compute != former.may_compute:
                device = self._held_or_released(device)
                turned.append(device)
            has_changed |= device != former
            self._devices[device_id] = device
        return turned, has_changed

    def seen(self, signals: Mapping[DeviceId, DeviceSignals]) -> None:
        """The readings of the devices that have any."""
        for device_id in self._devices.keys() & signals.keys():
            self._devices[device_id] = self._devices[device_id].seen(signals[device_id])

    def started(self, device_id: DeviceId, key: UnitKey, kind: str, work: str, estimate_s: float) -> None:
        now_s, now = self._clock.monotonic_s(), self._clock.now()
        course = self._courses[device_id] = Course(began_s=now_s, estimate_s=estimate_s)
        self._devices[device_id] = replace(
            self._device(device_id).without_unit(),
            unit=key,
            unit_kind=kind,
            work=work,
            began_at=now,
            estimate_s=course.left_s(now_s, None),
            heard_at=now,
        )

    def goes_on(self, device_id: DeviceId, key: UnitKey, progress: Progress) -> bool:
        """False when that unit is not there any more."""
        device = self._device(device_id)
        if device.unit != key:
            return False
        self._devices[device_id] = replace(
            device,
            progress=progress.text,
            progress_share=progress.done,
            tokens_per_s=progress.tokens_per_s,
            estimate_s=self._courses[device_id].left_s(self._clock.monotonic_s(), progress.done),
            heard_at=self._clock.now(),
        )
        return True

    def ended(self, device_id: DeviceId | None, key: UnitKey) -> tuple[DeviceStatus, float]:
        """The device as it was with that unit, and how long it has worked on it; of one that was nowhere, nothing."""
        if device_id is None or self._device(device_id).unit != key:
            return DeviceStatus(device_id=device_id or ""), 0.0
        device, course = self._device(device_id), self._courses.pop(device_id)
        self._devices[device_id] = device.without_unit()
        return device, course.worked_s(self._clock.monotonic_s())

    def worked_s(self, device_id: DeviceId) -> float:
        """How long a device has worked on the unit it has; what it was held does not count."""
        course = self._courses.get(device_id)
        return 0.0 if course is None else course.worked_s(self._clock.monotonic_s())

    def _held_or_released(self, device: DeviceStatus) -> DeviceStatus:
        course, now_s = self._courses.get(device.device_id), self._clock.monotonic_s()
        if course is None:
            return device
        (course.go_on if device.may_compute else course.hold)(now_s)
        left_s = course.left_s(now_s, device.progress_share)
        return replace(device, estimate_s=left_s, heard_at=self._clock.now())

    def _device(self, device_id: DeviceId) -> DeviceStatus:
        return self._devices.get(device_id) or DeviceStatus(device_id=device_id)
