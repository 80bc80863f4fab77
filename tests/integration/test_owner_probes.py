"""Probes against the real things: a message bus, an X server, processes, files; and a driver that stands in."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from Xlib import XK, X, Xatom
from Xlib.display import Display
from Xlib.ext import xtest

from memgrid.clock import ManualClock, SystemClock
from memgrid.testing import FakeNvml
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.probes.bus import Bus
from memgrid_volunteer.owner.probes.disk import DiskProbe
from memgrid_volunteer.owner.probes.gpu import GpuProbe
from memgrid_volunteer.owner.probes.idle import Idle, IdleProbe
from memgrid_volunteer.owner.probes.idle_desktop import MutterIdle, ScreenSaverIdle
from memgrid_volunteer.owner.probes.idle_files import EvdevIdle
from memgrid_volunteer.owner.probes.idle_mac import MacIdle
from memgrid_volunteer.owner.probes.idle_windows import WindowsIdle, WindowsScreenProbe
from memgrid_volunteer.owner.probes.load import LoadProbe
from memgrid_volunteer.owner.probes.logind import Logind
from memgrid_volunteer.owner.probes.network import MeteredProbe
from memgrid_volunteer.owner.probes.nvml import RealNvml
from memgrid_volunteer.owner.probes.ours import family_of, own_pids, sees_all_pids
from memgrid_volunteer.owner.probes.power import PowerProbe
from memgrid_volunteer.owner.probes.probe import Reading, Unseen, WatchedDevice
from memgrid_volunteer.owner.probes.programs import ProgramsProbe
from memgrid_volunteer.owner.probes.screen import ScreenProbe
from memgrid_volunteer.owner.probes.thermal import ThermalProbe
from memgrid_volunteer.owner.probes.x11 import X11
from memgrid_volunteer.owner.signals import DeviceSignals, Pause
from memgrid_volunteer.owner.watching import Watcher
from tests.desktops import NETWORK_MANAGER, FakeLogind, Service, running_bus, running_x_server

NOW_S = 1_000_000_000
HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def no_desktop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever desktop the tests are run on is none of their business."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_SESSION_TYPE", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with running_bus(tmp_path) as address:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
        yield address


@pytest.fixture
def logind(bus: str) -> Iterator[FakeLogind]:
    logind = FakeLogind(bus)
    yield logind
    logind.close()


@pytest.fixture
def display() -> Iterator[str]:
    with running_x_server() as display:
        yield display


class Seen:
    """A source of input that sees what a test says."""

    name = "a test"
    sees_everybody = False

    def __init__(self, seconds: float, *, is_since_input: bool = True) -> None:
        self._idle = Idle(seconds=seconds, is_since_input=is_since_input)

    def idle_s(self) -> Idle:
        return self._idle


def idle_s(probe: IdleProbe) -> float:
    seen = probe.read()["input_idle_s"]
    assert seen is not None
    return seen


def since_boot_s() -> float:
    return time.time() - psutil.boot_time()


# -- who is at the machine ------------------------------------------------------------------------------------------


def test_a_desktops_own_word_is_taken_where_nothing_better_is_seen(logind: FakeLogind) -> None:
    probe = IdleProbe([], Logind(Bus("SYSTEM")))
    logind.log_in("1")
    assert probe.read() == {"input_idle_s": 0.0, "is_locked": False}
    logind.log_in("1", idle_since_s=time.time() - HOUR_S, is_locked=True)
    assert idle_s(probe) == pytest.approx(min(HOUR_S, since_boot_s()), abs=30) and probe.read()["is_locked"] is True


def test_a_machine_at_which_nobody_is_logged_in_has_nobody_at_it(logind: FakeLogind) -> None:
    logind.log_in("greeter", session_class="greeter")
    probe = IdleProbe([], Logind(Bus("SYSTEM")))
    assert idle_s(probe) == pytest.approx(since_boot_s(), abs=30)
    logind.log_in("back", is_active=False)
    assert idle_s(probe) == pytest.approx(since_boot_s(), abs=30)
    logind.log_in("front")
    assert idle_s(probe) == 0.0
    logind.log_out("front")
    assert idle_s(probe) == pytest.approx(since_boot_s(), abs=30)


def test_what_is_seen_of_ones_own_login_goes_before_the_hint_and_not_for_others(logind: FakeLogind) -> None:
    probe = IdleProbe([Seen(20.0)], Logind(Bus("SYSTEM")))
    logind.log_in("mine")
    assert idle_s(probe) == pytest.approx(20.0)
    logind.log_in("theirs", uid=os.getuid() + 1, seat="seat1")
    assert idle_s(probe) == 0.0


def test_a_source_that_has_seen_no_input_yet_says_no_more_than_that(logind: FakeLogind) -> None:
    logind.log_in("mine")
    assert idle_s(IdleProbe([Seen(2.0, is_since_input=False), Seen(90.0)], Logind(Bus("SYSTEM")))) == 90.0
    logind.log_in("mine", idle_since_s=time.time() - 50)
    assert idle_s(IdleProbe([Seen(2.0, is_since_input=False)], Logind(Bus("SYSTEM")))) == pytest.approx(50, abs=5)


def test_lines_typed_over_the_network_count_as_somebody(logind: FakeLogind, tmp_path: Path) -> None:
    (tmp_path / "pts").mkdir()
    terminal = tmp_path / "pts" / "7"
    terminal.touch()
    os.utime(terminal, (time.time() - 40, 0))
    logind.log_in("ssh", seat="", kind="tty", tty="pts/7")
    assert idle_s(IdleProbe([], Logind(Bus("SYSTEM")), dev=tmp_path)) == pytest.approx(40, abs=5)


def test_without_logind_only_a_machine_without_a_keyboard_is_known_to_be_alone(tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    devices.write_text('N: Name="Power Button"\nH: Handlers=event0\n')
    assert idle_s(IdleProbe([], Logind(Bus("SYSTEM")), keyboards=devices)) > 0
    devices.write_text('N: Name="Keyboard"\nH: Handlers=sysrq kbd event1 leds\n')
    with pytest.raises(Unseen, match="no answer on the system bus"):
        IdleProbe([], Logind(Bus("SYSTEM")), keyboards=devices).read()
    assert idle_s(IdleProbe([Seen(7.0)], Logind(Bus("SYSTEM")), keyboards=devices)) == 7.0
    with pytest.raises(Unseen, match="no logind"):
        IdleProbe([], None, keyboards=None).read()


def test_gnome_and_kde_tell_it_over_the_sessions_bus(bus: str) -> None:
    gnome = Service(bus, "org.gnome.Mutter.IdleMonitor")
    kde = Service(bus, "org.freedesktop.ScreenSaver")
    path, name = "/org/gnome/Mutter/IdleMonitor/Core", "org.gnome.Mutter.IdleMonitor"
    gnome.methods[path, name, "GetIdletime"] = lambda: ("t", (61_500,))
    kde.methods["/ScreenSaver", "org.freedesktop.ScreenSaver", "GetSessionIdleTime"] = lambda: ("u", (9_000,))
    session = Bus("SESSION")
    assert MutterIdle(session).idle_s() == Idle(seconds=61.5)
    assert ScreenSaverIdle(session).idle_s() == Idle(seconds=9.0)
    gnome.close()
    with pytest.raises(Unseen, match=r"org.gnome.Mutter.IdleMonitor: .*not provided"):
        MutterIdle(session).idle_s()
    kde.close()
    session.close()


def test_a_bus_that_comes_back_is_dialled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = Bus("SYSTEM")
    for _ in range(2):
        with running_bus(tmp_path) as address:
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
            logind = FakeLogind(address)
            logind.log_in("1")
            assert len(Logind(system).sessions()) == 1
            logind.close()
        with pytest.raises(Unseen, match="no answer on the system bus"):
            Logind(system).sessions()


def test_a_key_pressed_under_x_is_seen_and_so_is_the_time_since(display: str) -> None:
    x11 = X11(display)
    keyboard = Display(display)
    code = keyboard.keysym_to_keycode(XK.string_to_keysym("a"))

    def press() -> None:
        for event in (X.KeyPress, X.KeyRelease):
            xtest.fake_input(keyboard, event, code)
        keyboard.sync()

    press()
    _until(lambda: x11.idle_s().seconds > 0.2)
    before = x11.idle_s().seconds
    press()
    assert x11.idle_s().seconds < before
    keyboard.close()
    x11.close()


def test_x_is_not_believed_under_wayland_nor_where_there_is_none(
    display: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unseen, match="no DISPLAY"):
        X11().idle_s()
    with pytest.raises(Unseen, match="can't open display :987"):
        X11(":987").idle_s()
    with pytest.raises(Unseen, match="another machine's"):
        X11("far.example:0").idle_s()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    with pytest.raises(Unseen, match="under Wayland"):
        X11(display).idle_s()


def test_an_x_server_that_has_gone_is_unseen_and_not_waited_for() -> None:
    with running_x_server() as display:
        x11 = X11(display)
        assert x11.idle_s().seconds >= 0
    with pytest.raises(Unseen):
        x11.idle_s()
    with pytest.raises(Unseen, match="can't open display"):
        x11.fullscreen_program()


def test_events_of_the_kernel_count_by_their_kind(tmp_path: Path) -> None:
    devices, facts = tmp_path / "input", tmp_path / "class"
    devices.mkdir()
    (facts / "event1" / "device").mkdir(parents=True)
    (facts / "event1" / "device" / "properties").write_text("40\n")
    for name in ("event0", "event1"):
        os.mkfifo(devices / name)
    idle = EvdevIdle(devices, facts)
    assert not idle.idle_s().is_since_input
    writer = os.open(devices / "event0", os.O_WRONLY)
    with pytest.raises(OSError, match="No such device or address"):
        os.open(devices / "event1", os.O_WRONLY | os.O_NONBLOCK)  # an accelerometer: nobody listens
    os.write(writer, struct.pack("llHHi", 0, 0, 5, 0, 1))
    assert not idle.idle_s().is_since_input  # a lid
    os.write(writer, struct.pack("llHHi", 0, 0, 1, 30, 1) * 200)
    assert idle.idle_s() == Idle(seconds=0.0)
    _until(lambda: idle.idle_s().seconds > 0)
    os.close(writer)
    idle.close()


def test_input_devices_that_can_not_be_read_are_unseen(tmp_path: Path) -> None:
    with pytest.raises(Unseen, match="no input devices"):
        EvdevIdle(tmp_path).idle_s()


@pytest.mark.skipif(sys.platform != "linux", reason="says what other systems' calls do on Linux")
def test_calls_of_other_systems_say_that_this_is_not_theirs() -> None:
    with pytest.raises(Unseen, match="not Windows"):
        WindowsIdle().idle_s()
    with pytest.raises(Unseen, match="not Windows"):
        WindowsScreenProbe().read()
    with pytest.raises(Unseen, match="not macOS"):
        MacIdle().idle_s()


# -- what fills the screen ------------------------------------------------------------------------------------------


def test_a_window_that_fills_the_screen_is_named_until_it_is_gone(display: str) -> None:
    probe = ScreenProbe(X11(display))
    assert probe.read() == {"fullscreen_program": ""}
    desktop = Display(display)
    root = desktop.screen().root
    window = root.create_window(0, 0, 640, 480, 0, desktop.screen().root_depth)
    window.set_wm_class("game", "Space Game")
    state = desktop.intern_atom("_NET_WM_STATE")
    root.change_property(desktop.intern_atom("_NET_CLIENT_LIST"), Xatom.WINDOW, 32, [window.id])
    desktop.sync()
    assert probe.read() == {"fullscreen_program": ""}
    full = desktop.intern_atom("_NET_WM_STATE_FULLSCREEN")
    window.change_property(state, Xatom.ATOM, 32, [full])
    desktop.sync()
    assert probe.read() == {"fullscreen_program": "Space Game"}
    pid = desktop.intern_atom("_NET_WM_PID")
    window.change_property(pid, Xatom.CARDINAL, 32, [os.getpid()])
    desktop.sync()
    assert probe.read() == {"fullscreen_program": psutil.Process().name()}
    window.change_property(state, Xatom.ATOM, 32, [full, desktop.intern_atom("_NET_WM_STATE_HIDDEN")])
    desktop.sync()
    assert probe.read() == {"fullscreen_program": ""}
    window.destroy()
    desktop.sync()
    assert probe.read() == {"fullscreen_program": ""}
    desktop.close()


def test_under_wayland_who_keeps_the_screen_on_is_seen_and_nothing_else(
    logind: FakeLogind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    with pytest.raises(Unseen, match="under Wayland"):
        ScreenProbe(X11(), drm=tmp_path).read()
    probe = ScreenProbe(X11(), Logind(Bus("SYSTEM")), Bus("SESSION"))
    logind.log_in("1")
    logind.inhibit("sleep", "NetworkManager", "delay")
    with pytest.raises(Unseen, match="under Wayland"):
        probe.read()
    logind.inhibit("sleep:idle", "Firefox")
    assert probe.read() == {"fullscreen_program": "Firefox"}


def test_a_game_that_gnome_keeps_awake_for_is_seen(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_SESSION_TYPE", "wayland")
    gnome = Service(bus, "org.gnome.SessionManager")
    path, name = "/org/gnome/SessionManager", "org.gnome.SessionManager"
    gnome.methods[path, name, "IsInhibited"] = lambda flags: ("b", (flags == 8,))
    reading = ScreenProbe(X11(), Logind(Bus("SYSTEM")), Bus("SESSION")).read()
    assert reading == {"fullscreen_program": "a program that keeps the screen on"}
    gnome.close()


def test_a_machine_without_a_screen_has_nothing_on_it(logind: FakeLogind, tmp_path: Path) -> None:
    logind.log_in("ssh", seat="", kind="tty")
    assert ScreenProbe(X11(), Logind(Bus("SYSTEM"))).read() == {"fullscreen_program": ""}
    logind.log_in("desktop")
    with pytest.raises(Unseen, match="no DISPLAY"):
        ScreenProbe(X11(), Logind(Bus("SYSTEM"))).read()
    socket = tmp_path / "card0-HDMI-A-1"
    socket.mkdir()
    (socket / "status").write_text("disconnected\n")
    assert ScreenProbe(X11(), drm=tmp_path).read() == {"fullscreen_program": ""}
    (socket / "status").write_text("connected\n")
    with pytest.raises(Unseen, match="no DISPLAY"):
        ScreenProbe(X11(), drm=tmp_path).read()


# -- GPUs -----------------------------------------------------------------------------------------------------------

TWO_GPUS: dict[str, Any] = {
    "gpus": [
        {
            "uuid": "GPU-a",
            "temperature_c": 71,
            "power_w": 180.5,
            "power_limit_w": 300,
            "memory_used_bytes": 5_000,
            "memory_total_bytes": 8_000,
            "load_share": 0.5,
            "processes": [],
        },
        {"uuid": "GPU-b", "temperature_c": 40, "processes": []},
    ]
}
SWAPPED = (WatchedDevice(device_id="cuda:0", uuid="GPU-b"), WatchedDevice(device_id="cuda:1", uuid="GPU-a"))


def test_gpus_are_told_apart_by_their_own_names_and_what_is_not_told_is_left_out() -> None:
    reading = GpuProbe(FakeNvml(TWO_GPUS), SWAPPED, own_pids, sees_all=lambda: True).read()
    assert reading["devices"] == {
        "cuda:0": DeviceSignals(temperature_c=40.0, foreign_processes=(), foreign_memory_bytes=0),
        "cuda:1": DeviceSignals(
            temperature_c=71.0,
            power_w=180.5,
            power_limit_w=300.0,
            memory_used_bytes=5_000,
            memory_total_bytes=8_000,
            foreign_memory_bytes=0,
            foreign_processes=(),
            load_share=0.5,
        ),
    }
    in_order = tuple(WatchedDevice(device_id=f"cuda:{index}") for index in range(2))
    assert GpuProbe(FakeNvml(TWO_GPUS), in_order, own_pids).read()["devices"]["cuda:1"].temperature_c == 40.0
    with pytest.raises(Unseen, match="does not know"):
        GpuProbe(FakeNvml(TWO_GPUS), (WatchedDevice(device_id="cuda:0", uuid="GPU-c"),), own_pids).read()


def test_our_own_worker_is_nobody_else_and_a_desktop_is_no_game() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    processes = [
        {"pid": worker.pid, "name": "python", "memory_bytes": 4_000, "load_share": 0.9},
        {"pid": 1, "name": "Xorg", "memory_bytes": 300, "kind": "drawing", "load_share": 0.05},
    ]
    described: dict[str, Any] = {"gpus": [{"uuid": "GPU-a", "processes": processes}]}
    devices = (WatchedDevice(device_id="cuda:0", uuid="GPU-a"),)
    probe = GpuProbe(FakeNvml(described), devices, own_pids, sees_all=lambda: True)
    try:
        seen = probe.read()["devices"]["cuda:0"]
        assert (seen.foreign_processes, seen.foreign_memory_bytes) == ((), 300)
        processes.append({"pid": 1, "memory_bytes": 300, "kind": "computing"})
        assert probe.read()["devices"]["cuda:0"].foreign_processes == ()
        processes[1]["load_share"] = 0.7
        assert probe.read()["devices"]["cuda:0"].foreign_processes == ("Xorg",)
        strangers = GpuProbe(FakeNvml(described), devices, lambda: frozenset(), sees_all=lambda: True)
        seen = strangers.read()["devices"]["cuda:0"]
        assert (seen.foreign_processes, seen.foreign_memory_bytes) == (("Xorg", "python"), 4_300)
    finally:
        worker.communicate(b"\n")


def test_inside_a_container_nobody_is_taken_for_a_stranger() -> None:
    described = {"gpus": [{"uuid": "GPU-a", "processes": [{"pid": 4242, "memory_bytes": 1}]}]}
    devices = (WatchedDevice(device_id="cuda:0", uuid="GPU-a"),)
    seen = GpuProbe(FakeNvml(described), devices, own_pids, sees_all=lambda: False).read()["devices"]["cuda:0"]
    assert seen.foreign_processes is None and seen.foreign_memory_bytes is None


def test_a_namespace_of_ones_own_is_known_by_its_number(tmp_path: Path) -> None:
    link = tmp_path / "pid"
    link.symlink_to("pid:[4026532281]")
    assert not sees_all_pids(link)
    link.unlink()
    link.symlink_to("pid:[4026531836]")
    assert sees_all_pids(link)


def test_a_driver_that_fails_is_unseen_with_its_words_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "gpus.json"
    file.write_text(json.dumps({"error": "Driver/library version mismatch"}))
    probe = GpuProbe(FakeNvml.from_file(file), SWAPPED, own_pids)
    with pytest.raises(Unseen, match="NVML: Driver/library version mismatch"):
        probe.read()
    file.write_text(json.dumps(TWO_GPUS))
    assert set(probe.read()["devices"]) == {"cuda:0", "cuda:1"}


def test_the_real_driver_answers_or_says_why_not() -> None:
    nvml = RealNvml()
    try:
        count = nvml.count()
    except OSError as error:
        assert str(error)
        with pytest.raises(Unseen, match="NVML: "):
            GpuProbe(nvml, SWAPPED, own_pids).read()
        return
    devices = tuple(WatchedDevice(device_id=f"cuda:{index}", uuid=nvml.uuid(index)) for index in range(count))
    for seen in GpuProbe(nvml, devices, own_pids).read()["devices"].values():
        assert seen.temperature_c is not None and seen.memory_total_bytes


# -- the rest of the machine ----------------------------------------------------------------------------------------


def test_what_our_own_processes_do_is_not_the_load_of_others() -> None:
    # It spins until it is told to stop.
    program = "import select, sys\nwhile not select.select([sys.stdin], [], [], 0)[0]: pass"
    spinner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    ours, theirs = LoadProbe(lambda: family_of(spinner.pid)), LoadProbe(frozenset)
    try:
        ours.read(), theirs.read()
        _until(lambda: psutil.Process(spinner.pid).cpu_times().user > 0.5)
        ours_seen, theirs_seen = ours.read(), theirs.read()
    finally:
        spinner.communicate(b"\n")
    assert ours_seen["foreign_load_share"] is not None and theirs_seen["foreign_load_share"] is not None
    assert ours_seen["foreign_load_share"] < theirs_seen["foreign_load_share"]
    assert ours_seen["devices"]["cpu"].load_share == pytest.approx(theirs_seen["foreign_load_share"], abs=0.3)


def test_a_machine_without_a_battery_runs_on_mains() -> None:
    battery = psutil.sensors_battery()
    seen = PowerProbe().read()
    assert seen["on_battery"] is (False if battery is None else not battery.power_plugged)


def test_the_processors_power_is_the_energy_between_two_looks(tmp_path: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "energy_uj").write_text("1000000\n")
    probe = ThermalProbe(tmp_path)
    temperature_c = _power_of(probe)[1]
    (package / "energy_uj").write_text("900000000\n")
    power_w, _ = _power_of(probe)
    assert power_w is not None and power_w > 0
    (package / "energy_uj").write_text("5\n")
    assert _power_of(probe)[0] is None
    if temperature_c is None:
        with pytest.raises(Unseen, match="no sensor"):
            ThermalProbe(tmp_path / "none").read()


def _power_of(probe: ThermalProbe) -> tuple[float | None, float | None]:
    try:
        seen = probe.read()["devices"]["cpu"]
    except Unseen:
        return None, None
    return seen.power_w, seen.temperature_c


def test_an_exclusive_program_is_seen_while_it_runs(tmp_path: Path) -> None:
    game = tmp_path / "SpaceGame"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", game)
    probe = ProgramsProbe(lambda: ("spacegame.exe", "blender-that-nobody-has"))
    assert probe.read() == {"programs": frozenset()}
    process = subprocess.Popen([game, "60"])
    try:
        assert probe.read() == {"programs": frozenset({"spacegame.exe"})}
        assert ProgramsProbe(lambda: ()).read() == {"programs": frozenset()}
    finally:
        process.kill()
        process.wait()
    assert probe.read() == {"programs": frozenset()}


@pytest.mark.parametrize(("said", "is_metered"), [(1, True), (2, False), (3, True), (4, False)])
def test_network_manager_knows_or_guesses_whether_the_connection_is_metered(
    bus: str, said: int, is_metered: bool
) -> None:
    manager = Service(bus, NETWORK_MANAGER)
    facts = manager.properties[f"/{NETWORK_MANAGER.replace('.', '/')}", NETWORK_MANAGER] = {"Metered": ("u", said)}
    probe = MeteredProbe(Bus("SYSTEM"))
    assert probe.read() == {"is_metered": is_metered}
    facts["Metered"] = ("u", 0)
    with pytest.raises(Unseen, match="does not know"):
        probe.read()
    manager.close()
    with pytest.raises(Unseen, match="NetworkManager"):
        probe.read()


def test_the_disk_is_that_of_the_folder(tmp_path: Path) -> None:
    free = DiskProbe(tmp_path).read()["disk_free_bytes"]
    assert free is not None and free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    with pytest.raises(Unseen, match="No such file"):
        DiskProbe(tmp_path / "gone").read()


# -- all of them together -------------------------------------------------------------------------------------------


class Scripted:
    """A probe that does what a test says."""

    period_s = 0.01

    def __init__(self, name: str, answer: Reading | Exception, hold: threading.Event | None = None) -> None:
        self.name = name
        self.answer = answer
        self.hold = hold
        self.looks = 0

    def read(self) -> Reading:
        self.looks += 1
        if self.hold is not None:
            self.hold.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_probe_that_hangs_or_stumbles_blinds_no_other(tmp_path: Path) -> None:
    hold = threading.Event()
    good = Scripted("disk", Reading(disk_free_bytes=5))
    probes = (
        good,
        Scripted("gpu", Unseen("no driver")),
        Scripted("load", ValueError("odd")),
        Scripted("idle", Reading(input_idle_s=1.0), hold),
    )
    control = Control(tmp_path)
    watcher = Watcher(probes, SystemClock(), control, [WatchedDevice(device_id="cpu")])
    assert watcher.signals.unseen["disk"] == "has not looked yet" and watcher.signals.disk_free_bytes is None
    running = asyncio.create_task(watcher.run())
    try:
        await asyncio.to_thread(
            _until, lambda: good.looks >= 3 and watcher.signals.unseen["load"] != "has not looked yet"
        )
        seen = watcher.signals
        assert (seen.disk_free_bytes, seen.input_idle_s) == (5, None)
        assert seen.unseen == {"gpu": "no driver", "load": "ValueError: odd", "idle": "has not looked yet"}
        control.pause(SystemClock().now(), device_id="cpu")
        assert watcher.signals.pauses == (Pause(device_id="cpu"),)
        hold.set()
        await asyncio.to_thread(_until, lambda: "idle" not in watcher.signals.unseen)
        assert watcher.signals.input_idle_s == 1.0
    finally:
        hold.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_what_was_seen_too_long_ago_is_not_seen(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 6, 1, tzinfo=UTC))
    watcher = Watcher([Scripted("power", Reading(on_battery=False))], clock, Control(tmp_path), [])
    watcher.look()
    assert watcher.signals.on_battery is False
    clock.advance(timedelta(seconds=6))
    assert watcher.signals.on_battery is None and watcher.signals.unseen == {"power": "has not answered for 6 s"}


def test_a_damaged_word_of_the_owner_is_taken_for_a_pause(tmp_path: Path) -> None:
    control = Control(tmp_path)
    control.path.write_text("{")
    signals = Watcher([], SystemClock(), control, []).signals
    assert signals.pauses == (Pause(),) and "damaged" in signals.unseen["control"]


def _until(is_true: Any) -> None:
    """Poll: the world outside has its own pace."""
    while not is_true():
        time.sleep(0.01)
