"""Volunteers killed hard, again and again: what was finished is reported, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from memgrid.units import AccountId, HostId
from memgrid_volunteer.home import Home, Membership
from tests.scripted_grid import ScriptedGrid

ROOT = Path(__file__).resolve().parents[2]
UNITS = 40
KILLS = 12


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "volunteer")
    home.make()
    # Whatever else this machine does meanwhile.
    (home.folder / "volunteer.toml").write_text('preset = "always"\n')
    return home


async def start(home: Home) -> asyncio.subprocess.Process:
    command = (Path(sys.executable).with_name("memgrid"), "volunteer", "run", "--home", str(home.folder))
    return await asyncio.create_subprocess_exec(
        *(*command, "--threads", "1", "--worker-module", "tests.workers.quick"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def killed(process: asyncio.subprocess.Process) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=10)
    assert not alive


async def test_nothing_acknowledged_is_lost_and_nothing_is_left_behind(home: Home) -> None:
    grid, rng = ScriptedGrid(), random.Random(5)
    await grid.start()
    membership = Membership(
        url=grid.url, name="scripted", account_id=AccountId("a1"), host_id=HostId("h1"), label="attic"
    )
    home.join(membership)
    for number in range(UNITS):
        grid.offer(f"unit-{number}", 1, number)
    for number in range(KILLS):
        process = await start(home)
        asked, settled = len(grid.asks), len(grid.settled)
        # Somewhere between the first word to the coordinator and a few units later.
        await grid.until(lambda asked=asked: len(grid.asks) > asked)
        wanted = min(UNITS - 2, settled + rng.randrange(3))
        await grid.until(lambda wanted=wanted: len(grid.settled) >= wanted)
        await asyncio.sleep(rng.random() * 0.05)
        if number % 4 == 3:
            grid.lost_answers = 1
        await killed(process)
    asked = len(grid.asks)
    last = await start(home)
    # Until the agent takes a SIGTERM, Python dies of it: a run that has nothing left to do must be waited for.
    await grid.until(lambda: len(grid.asks) > asked)
    await grid.until(lambda: len(grid.settled) == UNITS and not grid.granted)
    await grid.until(lambda: not list(home.outbox.iterdir()))
    last.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(last.wait(), 15) == 0
    await grid.stop()
    assert set(grid.uploads) == {f"unit-{number}" for number in range(UNITS)}
    # The same lease may be told twice, but never in two versions.
    assert len(set(grid.reports)) == UNITS
