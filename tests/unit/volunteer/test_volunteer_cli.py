"""The commands a volunteer types, as a process and with the exit codes a script sees."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memgrid.clock import SystemClock
from memgrid.errors import InvalidError, SessionReplacedError
from memgrid_volunteer.grids_cli import views_of
from tests.scripted_grid import ScriptedGrid
from tests.volunteer_homes import make_home

ROOT = Path(__file__).resolve().parents[3]
MEMGRID = Path(sys.executable).with_name("memgrid")
QUICK = ("--worker-module", "tests.workers.quick")


async def memgrid(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `memgrid volunteer …`."""
    process = await asyncio.create_subprocess_exec(
        *(MEMGRID, "volunteer", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def prefer_always(home: Path) -> None:
    """Compute whatever else this machine does meanwhile."""
    home.mkdir(exist_ok=True)
    (home / "volunteer.toml").write_text('preset = "always"\n')


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "attic"


async def test_join_run_status_pause_leave(grid: ScriptedGrid, home: Path) -> None:
    code, out, error = await memgrid("join", grid.url, "--home", home, "--label", "attic", *QUICK)
    assert (code, error) == (0, "")
    assert out.startswith("joined scripted as attic (host h1)")
    assert (home / "volunteer.key").stat().st_mode & 0o077 == 0

    prefer_always(home)
    grid.offer("one", 1)
    code, out, _ = await memgrid("run", "--once", "--home", home, *QUICK)
    assert code == 0 and out.splitlines()[-1] == "stopped" and "accepted, credit" in out

    code, out, _ = await memgrid("status", "--home", home, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["host_id"], facts["state"], facts["accepted"], facts["paused"]) == ("h1", "stopped", 1, False)
    assert facts["isolation"] in ("bubblewrap", "namespaces", "none")
    _, out, _ = await memgrid("status", "--home", home)
    assert "1 accepted" in out and "attic on scripted" in out
    assert "standing   1.0 GFLOP for 1 results; rank 1 of 1" in out

    assert (await memgrid("pause", "--home", home))[:2] == (0, "paused\n")
    assert json.loads((await memgrid("status", "--home", home, "--json"))[1])["paused"] is True
    assert (await memgrid("resume", "--home", home))[:2] == (0, "resumed\n")

    assert (await memgrid("leave", "--home", home))[:2] == (0, "left scripted\n")
    assert grid.left and set(names_in(home)) >= {"volunteer.key", "volunteer.toml"}
    assert not {"grid.json", "status.json", "cache", "outbox", "work"} & set(names_in(home))


@pytest.mark.parametrize("command", ["run", "status", "pause", "resume", "leave"])
async def test_without_a_grid_every_command_says_how_to_begin(home: Path, command: str) -> None:
    code, out, error = await memgrid(command, "--home", home)
    assert (code, out) == (2, "")
    assert "no grid joined yet; begin with: memgrid volunteer join URL" in error and "Traceback" not in error


async def test_a_url_that_is_none_is_bad_input(home: Path) -> None:
    code, _, error = await memgrid("join", "ftp://grid.example", "--home", home)
    assert code == 2 and "expected https://host:port" in error and names_in(home) == []


async def test_nobody_there_is_a_failure(grid: ScriptedGrid, home: Path) -> None:
    await grid.stop()
    code, _, error = await memgrid("join", grid.url, "--home", home)
    assert code == 1 and "does not answer" in error and names_in(home) == []
    await grid.start()


async def test_one_command_is_enough(grid: ScriptedGrid, home: Path) -> None:
    prefer_always(home)
    grid.offer("one", 1)
    code, out, error = await memgrid("run", grid.url, "--once", "--no-page", "--home", home, *QUICK)
    assert (code, error) == (0, "")
    assert out.startswith("joined scripted as ") and "accepted, credit" in out
    grid.offer("two", 2)
    code, out, _ = await memgrid("run", grid.url, "--once", "--no-page", "--home", home, *QUICK)
    assert code == 0 and "joined" not in out and "accepted, credit" in out


async def test_a_second_grid_is_joined_shared_with_and_left(
    grid: ScriptedGrid, other: ScriptedGrid, home: Path
) -> None:
    other.name = "second"
    folder = make_home(home, grid.url)
    folder.key()
    code, out, error = await memgrid("join", other.url, "--share", "30", "--home", home, "--label", "attic", *QUICK)
    assert (code, error) == (0, "") and out.startswith("joined second as attic")
    (place,) = (home / "grids").iterdir()
    assert (place / "volunteer.key").read_bytes() != (home / "volunteer.key").read_bytes()

    prefer_always(home)
    for one in (grid, other):
        one.offer("one", 1)
    code, out, error = await memgrid("run", "--max-units", "2", "--no-page", "--home", home, *QUICK)
    assert (code, error) == (0, "") and out.count("accepted, credit") == 2
    views = views_of(folder, SystemClock().now())
    found = [(each.name, each.share, each.part, each.units) for each in views]
    assert found == [("a grid for tests", 100, "77%", "1 of 1 accepted"), ("second", 30, "23%", "1 of 1 accepted")]
    assert all(each.lately_s > 0 for each in views)
    code, out, _ = await memgrid("share", "second", "300", "--home", home)
    assert (code, out) == (0, "a grid for tests: share 100, 25%\nsecond: share 300, 75%\n")

    _, out, _ = await memgrid("status", "--home", home)
    assert "attic on a grid for tests and second" in out and "2 accepted" in out and out.count("rank 1 of 1") == 2
    with pytest.raises(InvalidError, match=r"which grid. one of a grid for tests .*, second"):
        folder.find(None)
    assert (await memgrid("leave", other.url, "--home", home))[:2] == (0, "left second\n")
    assert other.left and not grid.left and (place / "volunteer.key").exists()
    (left,) = views_of(folder, SystemClock().now())
    assert left.name == "a grid for tests" and folder.status()["accepted"] == 1


async def test_a_worker_that_can_not_start_is_a_failure_with_its_last_words(grid: ScriptedGrid, home: Path) -> None:
    await memgrid("join", grid.url, "--home", home, *QUICK)
    code, _, error = await memgrid("run", "--home", home, "--worker-module", "no.such.module")
    assert code == 1 and "the worker does not start" in error and "Traceback" not in error


async def test_what_only_its_owner_can_mend_has_a_status_of_its_own(grid: ScriptedGrid, home: Path) -> None:
    """A service that starts again whatever happens would fight with its twin for ever."""
    await memgrid("join", grid.url, "--home", home, *QUICK)
    grid.errors = [SessionReplacedError("host h1 has logged in elsewhere since")]
    code, _, error = await memgrid("run", "--home", home, *QUICK)
    assert code == 3 and "another volunteer has logged in as host h1, so this one stops" in error
    assert len(error.splitlines()) == 1


def test_the_command_line_loads_without_torch() -> None:
    program = "import sys, memgrid_volunteer.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
