"""A volunteer in this process against a scripted grid."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from memgrid.clock import SystemClock
from memgrid.errors import MemgridError
from memgrid.units import AccountId, HostId
from memgrid_volunteer import running
from memgrid_volunteer.building import MakeNodes
from memgrid_volunteer.home import Home, Membership, Place
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.preferences_file import PREFERENCES_FILE
from memgrid_volunteer.owner.probes.probe import Reading
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.stopping import Stopping
from tests.scripted_grid import ScriptedGrid

ROOT = Path(__file__).resolve().parents[3]


ALWAYS = 'preset = "always"\n[disk]\nfree_min_gb = 0\n'
"""Preferences of a machine that is there for this."""


@dataclass
class ScriptedProbe:
    """Sees what a test wants it to: at first a machine that nobody uses."""

    reading: Reading = field(
        default_factory=lambda: Reading(
            input_idle_s=3600.0,
            is_locked=False,
            foreign_load_share=0.0,
            on_battery=False,
            is_metered=False,
            fullscreen_program="",
            disk_free_bytes=1 << 40,
        )
    )
    name: str = "scripted"
    period_s: float = 0.05

    def read(self) -> Reading:
        return self.reading


class JumpingClock(SystemClock):
    """The machine's clock: `ahead` of itself as after a sleep, `later` by time in which it ran."""

    def __init__(self) -> None:
        self.ahead = self.later = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead + self.later

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.later.total_seconds()


@dataclass
class Volunteer:
    """One run of a volunteer with the quick worker; `lines` is what its owner reads."""

    home: Home
    ran: Path
    lines: list[str] = field(default_factory=list)
    probe: ScriptedProbe = field(default_factory=ScriptedProbe)
    clock: JumpingClock = field(default_factory=JumpingClock)
    backoff: Backoff = field(default_factory=lambda: quickly)
    nodes: MakeNodes | None = None

    @property
    def control(self) -> Control:
        """The owner's own word."""
        return Control(self.home.folder)

    def join(self, grid: ScriptedGrid, *, name: str = "scripted", share: int = 100) -> Place:
        """Be a host of that grid, too, as if it had been enrolled."""
        ids = {"account_id": AccountId("a1"), "host_id": HostId("h1")}
        place = self.home.place_for(grid.url)
        place.make_place()
        place.join(Membership(url=grid.url, name=name, label="attic", share=share, **ids))
        return place

    def prefer(self, text: str) -> None:
        """What the owner writes into the preferences from now on."""
        (self.home.folder / PREFERENCES_FILE).write_text(text)

    def find(self, devices: str) -> None:
        """What workers find from now on: `cuda:0=GPU-a cpu=`."""
        self.ran.with_name("devices").write_text(devices)

    def worker_pids(self) -> set[int]:
        """The workers that run now."""
        found = set()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed
                found |= {child.pid} if "tests.workers.quick" in child.cmdline() else set()
        return found

    def progress(self) -> dict[str, float]:
        """How far the units have got that run, by device."""
        devices = self.home.status().get("devices", [])
        return {each["device_id"]: each["progress_share"] for each in devices if each.get("progress_share")}

    def why(self, device_id: str = "cpu") -> str:
        """The code of what stands against a device; empty when nothing does."""
        devices = {each["device_id"]: each for each in self.home.status().get("devices", [])}
        return str((devices.get(device_id, {}).get("reason") or {}).get("code", ""))

    def idle_code(self) -> str:
        """The code of why it computes nothing; empty when it does."""
        return str((self.home.status().get("idle_reason") or {}).get("code", ""))

    def device(self, device_id: str = "cpu") -> dict[str, Any]:
        """A device as status.json has it."""
        devices: list[dict[str, Any]] = self.home.status()["devices"]
        return next(device for device in devices if device["device_id"] == device_id)

    def units_run(self) -> list[str]:
        """The leases that workers were given, in order."""
        return [lease for lease, _, _ in self.runs()]

    def runs(self) -> list[tuple[str, str, str]]:
        """The same, each with torch's name and the uuid of the device that its worker had."""
        lines = self.ran.read_text().splitlines() if self.ran.exists() else []
        return [(lease, device, uuid) for lease, device, uuid in (line.split() for line in lines)]

    @contextlib.asynccontextmanager
    async def running(self, **limits: float | None) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.run(**limits))
        await asyncio.sleep(0)  # it has begun, and can be stopped
        try:
            yield task
        finally:
            self.stopping.stop()
            (failure,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(failure, Exception) and not isinstance(failure, MemgridError):
                raise failure

    async def run(self, **limits: float | None) -> None:
        self.stopping = Stopping()
        options = running.Options(
            limits=Limits(**limits),  # type: ignore[arg-type]
            threads=1,
            worker_module="tests.workers.quick",
            isolation=Isolation.NONE,
            backoff=self.backoff,
            clock=self.clock,
            probes=lambda folder, devices, programs: [self.probe],
            nodes=self.nodes,
        )
        await running.run(self.home, options, self.lines.append, self.stopping)


def quickly(attempt: int, rng: random.Random) -> float:
    return 0.05


@pytest.fixture
async def grid() -> AsyncIterator[ScriptedGrid]:
    grid = ScriptedGrid()
    await grid.start()
    yield grid
    await grid.stop()


@pytest.fixture
async def other() -> AsyncIterator[ScriptedGrid]:
    """Another grid."""
    grid = ScriptedGrid()
    await grid.start()
    yield grid
    await grid.stop()


@pytest.fixture
def volunteer(grid: ScriptedGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volunteer:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MEMGRID_HOME", str(tmp_path / "memgrid"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "ran"))
    monkeypatch.setenv("NVIDIA_QUICK_DEVICES", str(tmp_path / "devices"))
    home = Home(tmp_path / "volunteer")
    home.make()
    volunteer = Volunteer(home=home, ran=tmp_path / "ran")
    volunteer.join(grid)
    volunteer.prefer(ALWAYS)
    volunteer.find("cpu=")
    return volunteer
