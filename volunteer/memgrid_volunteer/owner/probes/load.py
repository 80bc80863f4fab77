"""How busy the processor is, and with whose work."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from memgrid_volunteer.owner.preferences import CPU
from memgrid_volunteer.owner.probes.probe import OwnPids, Reading
from memgrid_volunteer.owner.signals import DeviceSignals

_SHORTEST_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of all cores together since the machine started."""

    total_s: float
    busy_s: float
    own_s: float


class LoadProbe:
    """Each reading is the average since the one before."""

    name = "load"
    period_s = 2.0

    def __init__(self, own_pids: OwnPids) -> None:
        self._own_pids = own_pids
        self._own_s: dict[int, float] = {}
        self._gone_s = 0.0
        self._before: Times | None = None

    def read(self) -> Reading:
        if self._before is None:
            self._before = self._times()
            time.sleep(_SHORTEST_S)
        now = self._times()
        busy, foreign = shares(self._before, now)
        self._before = now
        memory = psutil.virtual_memory()
        device = DeviceSignals(
            load_share=busy, memory_used_bytes=memory.total - memory.available, memory_total_bytes=memory.total
        )
        return Reading(devices={CPU: device}, foreign_load_share=foreign)

    def _times(self) -> Times:
        times = psutil.cpu_times()
        # A guest's time is in user and nice as well.
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        return Times(total_s=total_s, busy_s=total_s - idle_s, own_s=self._own())

    def _own(self) -> float:
        """The time of our processes, those included that have ended meanwhile: it must never run backwards."""
        present = {pid: _cpu_s(pid) for pid in self._own_pids()}
        self._gone_s += sum(seconds for pid, seconds in self._own_s.items() if pid not in present)
        self._own_s = {pid: max(seconds, self._own_s.get(pid, 0.0)) for pid, seconds in present.items()}
        return self._gone_s + sum(self._own_s.values())


def shares(before: Times, now: Times) -> tuple[float, float]:
    """How much of the processor was busy between two looks, and with what is not ours; both 0 … 1.

    >>> shares(Times(total_s=0, busy_s=0, own_s=0), Times(total_s=8, busy_s=6, own_s=4))
    (0.75, 0.25)
    """
    total_s = now.total_s - before.total_s
    if total_s <= 0:
        return 0.0, 0.0
    busy_s, own_s = now.busy_s - before.busy_s, now.own_s - before.own_s
    return _share(busy_s / total_s), _share((busy_s - own_s) / total_s)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _cpu_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
