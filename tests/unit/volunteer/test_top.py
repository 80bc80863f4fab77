"""`memgrid volunteer top`, `page` and `status`: one frame for pipes, keys at a terminal, and the way to the page."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from memgrid.clock import ManualClock
from memgrid.errors import InvalidError
from memgrid_volunteer.cli import app
from memgrid_volunteer.home import Home
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.page.key import PageKey, new_key, write_key
from memgrid_volunteer.top import PAUSE_FOR, Top, run_top
from tests.volunteer_homes import NOW, at_work, fill_history, join_another, make_home

LIMIT_S = 20.0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Of a volunteer that runs."""
    home = make_home(tmp_path / "home")
    home.write_status(at_work().to_json())
    fill_history(home)
    with home.lock():
        yield home


async def frame(home: Home, width: int) -> list[str]:
    text = io.StringIO()
    await run_top(home, ManualClock(NOW), Console(width=width, highlight=False, file=text), once=True)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 200])
async def test_a_frame_has_everything_and_fits(home: Home, width: int) -> None:
    lines = await frame(home, width)
    text = "\n".join(lines)
    assert max(len(line) for line in lines) <= width
    wanted = [
        "attic on a grid for tests",
        "● Computing",
        "cuda:0 A Fine GPU  computing",
        "42% 20 of 48 conversations",
    ]
    wanted += ["67 °C", "164 of 200 W", "58.0 TFLOP", "512 tokens from position", "accepted", "Credit of each day"]
    for words in wanted:
        assert words in text, text


async def test_a_frame_shows_what_is_wrong(home: Home) -> None:
    (home.folder / "volunteer.toml").write_text("[when]\nidle_minutes = 'soon'\n")
    (home.folder / "history.db").unlink()
    (home.folder / "history.db").mkdir()
    assert "volunteer.toml: line 2: when.idle_minutes" in "\n".join(await frame(home, 200))


async def test_a_frame_names_machines_that_are_left_out(home: Home) -> None:
    home.write_status(replace(at_work(), left_out={"gpu-8": "its machine is gone"}).to_json())
    assert "gpu-8 is left out: its machine is gone" in await frame(home, 80)


async def test_keys_pause_and_resume(home: Home) -> None:
    top, control = Top(home, ManualClock(NOW)), Control(home.folder)
    seen = []
    for key in "pxrPrz":
        top.press(key)
        seen.append(control.pauses(NOW))
    hour, always = (Pause(until=NOW + PAUSE_FOR),), (Pause(),)
    assert seen == [hour, hour, (), always, (), ()]
    await top.close()


def test_it_needs_a_grid(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["top", "--once", "--home", str(tmp_path)])
    assert isinstance(result.exception, InvalidError) and "no grid joined yet" in str(result.exception)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A command in a terminal of 80 by 24."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    program = [sys.executable, "-c", "from memgrid.cli.main import main; main()", *arguments]
    process = subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def wait_for(condition: Callable[[bytes], bool], handle: int) -> None:
    """Read what the terminal shows until something has come true of it, or of the world."""
    shown, until = b"", time.monotonic() + LIMIT_S
    while not condition(shown):
        assert time.monotonic() < until, shown.decode(errors="replace")
        if select.select([handle], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):  # the other end is closed
                shown += os.read(handle, 65536)


def test_a_terminal_hears_keys_and_is_left_as_it_was(home: Home) -> None:
    control = Control(home.folder)
    with terminal("volunteer", "top", "--home", str(home.folder)) as (handle, process):
        echoes = termios.tcgetattr(handle)[3] & termios.ECHO
        wait_for(lambda shown: b"q quit" in shown, handle)
        assert echoes and not termios.tcgetattr(handle)[3] & termios.ECHO
        os.write(handle, b"p")
        wait_for(lambda _: bool(control.pauses(datetime.now(UTC))), handle)
        os.write(handle, b"r")
        wait_for(lambda _: not control.pauses(datetime.now(UTC)), handle)
        os.write(handle, b"q")
        wait_for(lambda _: process.poll() is not None, handle)
        assert process.returncode == 0 and termios.tcgetattr(handle)[3] & termios.ECHO


def test_the_page_is_found_while_it_is_open(home: Home) -> None:
    runner, arguments = CliRunner(), ["page", "--print", "--home", str(home.folder)]
    assert "no page is open here" in str(runner.invoke(app, arguments).exception)
    key = PageKey(port=7072, secret=new_key(0).secret, is_open=True)
    write_key(home.folder, key)
    assert runner.invoke(app, arguments).output.strip() == key.url
    write_key(home.folder, new_key(7072))
    assert "no page is open here" in str(runner.invoke(app, arguments).exception), "it was closed in good order"
    write_key(home.folder, key)
    status = runner.invoke(app, ["status", "--local", "--home", str(home.folder)])
    assert key.url in status.output


def test_a_page_of_a_killed_volunteer_is_not_open(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    write_key(home.folder, PageKey(port=7072, secret=new_key(0).secret, is_open=True))
    result = CliRunner().invoke(app, ["page", "--print", "--home", str(home.folder)])
    assert "no page is open here" in str(result.exception)


def test_who_only_looks_does_not_keep_a_volunteer_from_starting(tmp_path: Path) -> None:
    """One watches it in a terminal while it is restarted, again and again."""
    home, ending = make_home(tmp_path), threading.Event()

    def look() -> None:
        while not ending.wait(0.001):
            assert home.is_running in (True, False)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            with home.lock():
                assert home.is_running
    finally:
        ending.set()
        looking.join()
    assert not home.is_running


async def test_several_grids_stand_in_a_row_each(home: Home) -> None:
    assert "share" not in "\n".join(await frame(home, 100))
    join_another(home)
    text = "\n".join(await frame(home, 100))
    assert "attic on a grid for tests and second" in text
    (row,) = [line for line in text.splitlines() if line.startswith("second")]
    assert "23%" in row and "nothing yet" in row and "can't be reached  no route" in row
    (row,) = [line for line in text.splitlines() if line.startswith("a grid for tests")]
    assert "77%" in row and "100% of all" in row and "computing" in row
