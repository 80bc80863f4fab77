"""A volunteer as a service: definitions that managers accept, word of being alive, logs that end, no circles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import plistlib
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from memgrid.clock import ManualClock
from memgrid.errors import InvalidError, UnavailableError
from memgrid_volunteer.cli import app
from memgrid_volunteer.home import Home
from memgrid_volunteer.service import crashes, installing, notify
from memgrid_volunteer.service.crashes import LOOP_COUNT, PAUSE_MAX, Start, Starts, pause_before
from memgrid_volunteer.service.definition import Manager, Service, definition
from memgrid_volunteer.service.keeping import WHY_WAITING_FILE, as_service, log_path
from memgrid_volunteer.service.logs import RotatingLog
from memgrid_volunteer.service.notify import Notifier
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import Volunteer

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ODD = ("/opt/a b/memgrid", "volunteer", "run", "--home", '/home/o\'k "x" 100% $HOME;&<é>\\', "")
SERVICE = Service(name="memgrid-volunteer-odd", command=ODD, home=Path("/home/odd & sons"))


def unit_of(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_systemd_accepts_the_unit_and_reads_the_command_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = definition(Manager.SYSTEMD, SERVICE).decode()
    said = unit_of(unit)
    # systemd's quoting is the shell's for double quotes; it doubles percent and dollar.
    words = shlex.split(said["ExecStart"][0])
    assert [word.replace("%%", "%").replace("$$", "$") for word in words] == list(ODD)
    assert said["Type"] == ["notify"] and int(said["WatchdogSec"][0]) > 0
    # What walls are made of must stay allowed, and nothing a user's manager can't do may be asked for.
    assert "AF_NETLINK" in said["RestrictAddressFamilies"][0] and "@mount" not in said["SystemCallFilter"][0]
    assert not {"RestrictNamespaces", "PrivateUsers", "ProtectSystem", "MemoryDenyWriteExecute"} & set(said)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not here to look at it")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    plain = Service(name=SERVICE.name, command=(sys.executable, *ODD[1:]), home=SERVICE.home)
    path = tmp_path / f"{SERVICE.name}.service"
    for text, is_good in ((definition(Manager.SYSTEMD, plain).decode(), True), (f"{unit}Wrong=1\n", False)):
        path.write_text(text)
        looked = subprocess.run(["systemd-analyze", "verify", "--user", path], capture_output=True, text=True)
        assert (looked.stderr == "") is is_good, looked.stderr


def test_launchd_reads_the_command_as_it_was() -> None:
    said = plistlib.loads(definition(Manager.LAUNCHD, SERVICE))
    assert said["ProgramArguments"] == list(ODD) and said["Label"] == SERVICE.name
    assert said["KeepAlive"] == {"SuccessfulExit": False} and said["RunAtLoad"] is True
    assert said["StandardErrorPath"].startswith(str(SERVICE.home))


def test_windows_reads_the_command_as_it_was() -> None:
    said = definition(Manager.TASK_SCHEDULER, SERVICE)
    assert said.startswith(b"\xff\xfe")
    task = ElementTree.fromstring(said)
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    assert task.tag == f"{space}Task"
    # The schema is a sequence: in another order Windows refuses the file.
    order = ["RegistrationInfo", "Triggers", "Principals", "Settings", "Actions"]
    assert [each.tag.removeprefix(space) for each in task] == order
    exec_ = task.find(f"{space}Actions/{space}Exec")
    assert exec_ is not None
    assert [each.tag.removeprefix(space) for each in exec_] == ["Command", "Arguments", "WorkingDirectory"]
    assert exec_[0].text == ODD[0] and exec_[1].text == subprocess.list2cmdline(ODD[1:])
    assert task.findtext(f"{space}Settings/{space}ExecutionTimeLimit") == "PT0S"


def test_a_home_of_its_own_is_a_service_of_its_own(tmp_path: Path) -> None:
    names = {installing.plan_for(Manager.SYSTEMD, Home(tmp_path / name)).service.name for name in ("a", "b c", "ü")}
    assert names == {"memgrid-volunteer-a", "memgrid-volunteer-b-c", "memgrid-volunteer-home"}


@pytest.fixture
def joined(volunteer: Volunteer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The home of a member, on a machine whose service manager writes down what it is told."""
    told = tmp_path / "told"
    script = (
        f'#!/bin/sh\necho "$@" >> {told}\necho ActiveState=active\necho StatusText=idle\ntest ! -e {told}.broken\n'
    )
    (tmp_path / "bin").mkdir()
    for name in ("systemctl", "launchctl"):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield volunteer.home.folder


def memgrid(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_install_and_uninstall_leave_nothing_behind(joined: Path, tmp_path: Path) -> None:
    home, told = ("--home", str(joined)), tmp_path / "told"
    unit = tmp_path / "config" / "systemd" / "user" / "memgrid-volunteer-volunteer.service"
    dry = memgrid("install", *home, "--dry-run", "--", "--threads", "3")
    assert str(unit) in dry and "--threads 3" in dry and not unit.exists() and not told.exists()
    assert "enable-linger" in memgrid("install", *home, "--", "--threads", "3")
    assert f"run --service --home {joined} --threads 3\n" in unit.read_text()
    assert json.loads(memgrid("service-status", *home, "--json"))["state"] == "active"
    assert told.read_text().splitlines()[:2] == ["--user daemon-reload", f"--user enable --now {unit.name}"]
    assert "removed" in memgrid("uninstall", *home)
    assert not unit.exists() and f"--user disable --now {unit.name}" in told.read_text()
    assert "not installed" in memgrid("uninstall", *home)
    assert json.loads(memgrid("service-status", *home, "--json"))["state"] == "not installed"


def test_a_manager_that_fails_is_said_with_its_own_words(joined: Path, tmp_path: Path) -> None:
    (tmp_path / "told.broken").touch()
    plan = installing.plan_for(Manager.SYSTEMD, Home(joined))
    with pytest.raises(UnavailableError, match=r"systemctl --user daemon-reload: .*; the definition is written"):
        installing.install(plan, Home(joined))
    assert plan.path.exists()


def test_nothing_is_installed_before_a_grid_is_joined(tmp_path: Path) -> None:
    plan = installing.plan_for(Manager.SYSTEMD, Home(tmp_path / "new"))
    with pytest.raises(InvalidError, match="no grid joined yet"):
        installing.install(plan, Home(tmp_path / "new"))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager with a watchdog of 0.6 seconds, for the notifier of this process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        monkeypatch.setattr(notify, "_of_this_process", Notifier(told))
        yield listening


def heard(manager: socket.socket) -> list[str]:
    lines = []
    while True:
        try:
            lines.append(manager.recv(4096).decode())
        except BlockingIOError:
            return lines


async def test_a_running_volunteer_says_that_it_is_ready_what_it_does_and_that_it_lives(
    grid: ScriptedGrid, volunteer: Volunteer, manager: socket.socket
) -> None:
    grid.offer("one", 1, 2, 3)
    async with volunteer.running():
        lines: list[str] = []
        while lines.count("WATCHDOG=1") < 4 or "STATUS=unit" not in " ".join(lines):
            await asyncio.sleep(0.05)
            lines += heard(manager)
        assert lines[0] == "READY=1"
        assert any(line.startswith("STATUS=worker ready: a test") for line in lines)
        # While the loop stands, nobody says that it turns.
        heard(manager)
        time.sleep(0.7)  # noqa: ASYNC251 - that is what is tested
        assert not [line for line in heard(manager) if line == "WATCHDOG=1"]
        lines = []
        while "WATCHDOG=1" not in lines:
            await asyncio.sleep(0.05)
            lines += heard(manager)
    assert "STOPPING=1" in heard(manager)


def test_word_is_meant_for_one_process_and_may_be_abstract() -> None:
    told = {"NOTIFY_SOCKET": "@memgrid-test", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "17"}
    assert Notifier(told, pid=17).watchdog_s == 3.0 and Notifier(told, pid=18).watchdog_s == 0.0
    assert Notifier({}).watchdog_s == 0.0 and not Notifier({}).is_managed
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0memgrid-test")
        Notifier(told).status("two\nlines " + "x" * 300)
        assert listening.recv(4096) == b"STATUS=two lines " + b"x" * 190
    # Nobody listens any more, which is nothing to end for.
    Notifier(told).ready()


def test_logs_end_and_lines_stay_whole(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "logs" / "v.log", bytes_max=1000, kept=3)
    for number in range(500):
        print(f"line {number:03}", "é" * 10, file=log)
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["v.log", "v.log.1", "v.log.2"]
    lines = [line for name in reversed(files) for line in (tmp_path / "logs" / name).read_text().splitlines()]
    assert [line[:8] for line in lines] == [f"line {number:03}" for number in range(500 - len(lines), 500)]
    assert all(path.stat().st_size <= 1040 for path in (tmp_path / "logs").iterdir())


def test_a_log_that_cant_be_written_ends_nobody(tmp_path: Path) -> None:
    (tmp_path / "v.log").mkdir()
    assert RotatingLog(tmp_path / "v.log").write("lost\n") == 5


def fail(home: Path, clock: ManualClock, error: BaseException | None, waited: list[float]) -> None:
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with expected, as_service(home, clock, environment={}, wait=waited.append):
        if error is not None:
            raise error


def test_bad_ends_in_a_row_are_waited_after_longer_and_longer_and_the_file_says_why(tmp_path: Path) -> None:
    clock, waited = ManualClock(NOON), []  # type: ignore[var-annotated]
    for _ in range(6):
        fail(tmp_path, clock, InvalidError("no such device"), waited)
        clock.advance(timedelta(seconds=30))
    assert waited == [60.0, 120.0, 240.0]
    told: list[str] = []

    def look(pause_s: float) -> None:
        told.append((tmp_path / WHY_WAITING_FILE).read_text())

    with as_service(tmp_path, clock, environment={}, wait=look):
        assert not (tmp_path / WHY_WAITING_FILE).exists()
    assert "InvalidError: no such device" in told[0] and "It waits 8 min" in told[0]
    log = log_path(tmp_path).read_text()
    assert "ended: InvalidError: no such device" in log and "It waits 1 min" in log
    fail(tmp_path, clock, None, waited)
    assert len(waited) == 3, "the last run ended well"


def test_killed_without_a_word_is_a_bad_end_and_a_request_to_stop_is_none(tmp_path: Path) -> None:
    clock, waited = ManualClock(NOON), []  # type: ignore[var-annotated]
    for _ in range(LOOP_COUNT):
        Starts(tmp_path).begin(clock.now())
    fail(tmp_path, clock, KeyboardInterrupt(), waited)
    fail(tmp_path, clock, None, waited)
    assert waited == [60.0]
    assert [start.error for start in Starts(tmp_path).all()] == [None, None, None, "", ""]


def test_systemd_counts_by_itself(tmp_path: Path, manager: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        Starts(tmp_path).begin(NOON)
    with as_service(tmp_path, ManualClock(NOON), environment={"JOURNAL_STREAM": "1:2"}, wait=pytest.fail):
        sys.stdout.write("into the journal\n")
    assert capsys.readouterr().out == "into the journal\n" and not log_path(tmp_path).exists()


def test_a_damaged_file_of_starts_is_begun_anew(tmp_path: Path) -> None:
    for content in ("", "[]", '{"starts": 3}', '{"starts": [{"at": "yesterday"}]}', "\0"):
        (tmp_path / crashes.STARTS_FILE).write_text(content)
        assert Starts(tmp_path).all() == []
    Starts(tmp_path).begin(NOON)
    assert Starts(tmp_path).all() == [Start(at=NOON)]


@given(
    gaps_s=st.lists(st.integers(0, 100_000), max_size=25),
    errors=st.lists(st.sampled_from(["", "x", None]), min_size=25, max_size=25),
    later_s=st.integers(-100, 100_000),
)
def test_a_pause_is_never_longer_than_an_hour_and_never_after_a_good_end(
    gaps_s: list[int], errors: list[str | None], later_s: int
) -> None:
    starts, at = [], NOON
    for gap_s, error in zip(gaps_s, errors, strict=False):
        at += timedelta(seconds=gap_s)
        starts.append(Start(at=at, error=error))
    pause = pause_before(starts, at + timedelta(seconds=later_s))
    assert timedelta(0) <= pause <= PAUSE_MAX
    bad_in_a_row = next((n for n, start in enumerate(reversed(starts)) if not start.is_bad), len(starts))
    if bad_in_a_row < LOOP_COUNT or later_s > 900 or later_s < 0:
        assert pause == timedelta(0)
    elif all(gap <= 900 for gap in gaps_s[-LOOP_COUNT:]):
        assert pause > timedelta(0)
