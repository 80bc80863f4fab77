"""What GPUs do and for whom: heat, power, memory, and the programs on them that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.probes.ours import sees_all_pids
from memgrid_volunteer.owner.probes.probe import OwnPids, Reading, Unseen, WatchedDevice
from memgrid_volunteer.owner.signals import DeviceSignals

Value = TypeVar("Value")
BUSY_SHARE = 0.1
"""A program that draws counts as computing from so much of the GPU's time on: a game, not a desktop."""


class Nvml(Protocol):
    """NVIDIA's management library as far as we need it; `index` is its own. Methods raise OSError with its words."""

    def count(self) -> int: ...

    def uuid(self, index: int) -> str: ...

    def name(self, index: int) -> str: ...

    def temperature_c(self, index: int) -> float: ...

    def power_w(self, index: int) -> float: ...

    def power_limit_w(self, index: int) -> float: ...

    def memory_bytes(self, index: int) -> tuple[int, int]:
        """Used, and in all."""

    def load_share(self, index: int) -> float: ...

    def computing(self, index: int) -> Mapping[int, int | None]:
        """Processes that compute, by pid, and the memory of each; None where the driver does not tell."""

    def drawing(self, index: int) -> Mapping[int, int | None]:
        """Processes that draw."""

    def process_load(self, index: int) -> Mapping[int, float]:
        """Of processes that used it lately, the share of its time."""

    def process_name(self, pid: int) -> str: ...


_NOTHING_TO_WATCH_S = 60.0


class GpuProbe:
    """Reads every GPU that is watched; what one GPU does not tell is left out, not guessed."""

    name = "gpu"

    def __init__(
        self,
        nvml: Nvml,
        devices: Sequence[WatchedDevice],
        own_pids: OwnPids,
        *,
        sees_all: Callable[[], bool] = sees_all_pids,
    ) -> None:
        self._nvml = nvml
        self._devices = tuple(device for device in devices if device.device_id.startswith("cuda:"))
        self._own_pids = own_pids
        self._sees_all = sees_all

    @property
    def period_s(self) -> float:
        return 1.0 if self._devices else _NOTHING_TO_WATCH_S

    def read(self) -> Reading:
        try:
            # Asked although nothing is watched: a driver that fails is why nothing is.
            if self._nvml.count() == 0 or not self._devices:
                return Reading(devices={})
            places = self._places()
            return Reading(devices={device_id: self._device(index) for device_id, index in places.items()})
        except OSError as error:
            raise Unseen(f"NVML: {error}") from None

    def _places(self) -> dict[DeviceId, int]:
        """NVML's number of every device; torch may count them in another order, so that their uuids decide."""
        by_uuid = {self._nvml.uuid(index): index for index in range(self._nvml.count())}
        places = {}
        for device in self._devices:
            if device.uuid in by_uuid:
                places[device.device_id] = by_uuid[device.uuid]
            elif not device.uuid and len(by_uuid) == len(self._devices):
                places[device.device_id] = int(device.device_id.partition(":")[2])
        if not places:
            raise Unseen("NVML does not know these GPUs")
        return places

    def _device(self, index: int) -> DeviceSignals:
        memory = _told(lambda: self._nvml.memory_bytes(index))
        names, foreign_bytes = self._foreign(index)
        return DeviceSignals(
            temperature_c=_told(lambda: self._nvml.temperature_c(index)),
            power_w=_told(lambda: self._nvml.power_w(index)),
            power_limit_w=_told(lambda: self._nvml.power_limit_w(index)),
            memory_used_bytes=None if memory is None else memory[0],
            memory_total_bytes=None if memory is None else memory[1],
            foreign_memory_bytes=foreign_bytes,
            foreign_processes=names,
            load_share=_told(lambda: self._nvml.load_share(index)),
        )

    def _foreign(self, index: int) -> tuple[tuple[str, ...] | None, int | None]:
        """The names of others that compute, and what others hold; None where they can't be told from ours."""
        computing, drawing = _told(lambda: self._nvml.computing(index)), _told(lambda: self._nvml.drawing(index))
        if computing is None or not self._sees_all():
            return None, None
        loads = _told(lambda: self._nvml.process_load(index)) or {}
        # Asked after the driver is: a worker that starts in between must not look like a stranger.
        own = self._own_pids()
        held = {pid: bytes_ for pid, bytes_ in {**(drawing or {}), **computing}.items() if pid not in own}
        busy = {pid for pid, share in loads.items() if share >= BUSY_SHARE and pid not in own}
        # On Windows whatever draws is listed as computing too.
        pids = sorted((computing.keys() - (drawing or {}).keys() - own) | busy)
        known = [bytes_ for bytes_ in held.values() if bytes_ is not None]
        foreign_bytes = sum(known) if len(known) == len(held) else None
        return tuple(dict.fromkeys(self._program(pid) for pid in pids)), foreign_bytes

    def _program(self, pid: int) -> str:
        name = _told(lambda: self._nvml.process_name(pid))
        return name or f"process {pid}"


def _told(ask: Callable[[], Value]) -> Value | None:
    try:
        return ask()
    except OSError:
        return None
