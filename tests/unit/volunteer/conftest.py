"""A volunteer in this process against a scripted grid."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memgrid.units import AccountId, HostId
from memgrid_volunteer import running
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.stopping import Stopping
from tests.scripted_grid import ScriptedGrid

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Volunteer:
    """One run of a volunteer with the quick worker; `lines` is what its owner reads."""

    home: Home
    ran: Path
    lines: list[str] = field(default_factory=list)

    def units_run(self) -> list[str]:
        """The leases that the worker was given, in order."""
        return self.ran.read_text().split() if self.ran.exists() else []

    @contextlib.asynccontextmanager
    async def running(self, **limits: float | None) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.run(**limits))
        try:
            yield task
        finally:
            self.stopping.stop()
            await asyncio.gather(task, return_exceptions=True)

    async def run(self, **limits: float | None) -> None:
        self.stopping = Stopping()
        options = running.Options(
            limits=Limits(**limits),  # type: ignore[arg-type]
            threads=1,
            worker_module="tests.workers.quick",
            isolation=Isolation.NONE,
            backoff=quickly,
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
def volunteer(grid: ScriptedGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volunteer:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "ran"))
    home = Home(tmp_path / "volunteer")
    home.make()
    home.join(
        Membership(url=grid.url, name="scripted", account_id=AccountId("a1"), host_id=HostId("h1"), label="attic")
    )
    return Volunteer(home=home, ran=tmp_path / "ran")
