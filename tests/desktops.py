"""A desktop for tests: a real message bus of its own with logind and NetworkManager on it, and a real X server."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_call, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection

LOGIND = "org.freedesktop.login1"
NETWORK_MANAGER = "org.freedesktop.NetworkManager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_CONFIG = """\
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_requested_reply="true"/>
    <allow send_type="signal"/><allow receive_requested_reply="true"/><allow receive_type="method_call"/>
  </policy>
</busconfig>
"""
Answer = tuple[str, tuple[Any, ...]]
Methods = dict[tuple[str, str, str], Callable[..., Answer]]
"""By path, interface and method: the signature and the body of what it returns."""
Properties = dict[tuple[str, str], dict[str, tuple[str, Any]]]
"""By path and interface, as D-Bus has them: a signature and a value each."""


@contextmanager
def running_bus(folder: Path) -> Iterator[str]:
    """The address of a dbus-daemon of one's own."""
    program = shutil.which("dbus-daemon")
    if program is None:
        pytest.skip("needs dbus-daemon; scripts/test installs it (Debian: dbus)")
    config, socket = folder / "bus.conf", folder / "bus"
    config.write_text(_CONFIG.format(socket=socket))
    process = subprocess.Popen(
        [program, f"--config-file={config}", "--nofork", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate()


class Service:
    """Owns a name on a bus and answers with what a test has put into its tables."""

    def __init__(self, address: str, name: str) -> None:
        self.methods: Methods = {}
        self.properties: Properties = {}
        self._address = address
        self._connection: DBusConnection = open_dbus_connection(bus=address)
        self._connection.send_and_get_reply(message_bus.RequestName(name))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """A message to oneself ends the thread: a socket that is only closed may be waited on forever."""
        stop = new_method_call(DBusAddress("/", self._connection.unique_name, "test.Stop"), "Stop")
        with open_dbus_connection(bus=self._address) as other:
            other.send(stop)
            self._thread.join(5)
        self._connection.close()

    def _serve(self) -> None:
        while True:
            message = self._connection.receive()
            if message.header.message_type is not MessageType.method_call:
                continue
            fields = message.header.fields
            path, interface = fields[HeaderFields.path], fields.get(HeaderFields.interface, "")
            if interface == "test.Stop":
                return
            answer = self._answer(path, interface, fields[HeaderFields.member], message.body)
            if answer is None:
                self._connection.send(new_error(message, "org.freedesktop.DBus.Error.UnknownMethod"))
            else:
                self._connection.send(new_method_return(message, *answer))

    def _answer(self, path: str, interface: str, member: str, body: tuple[Any, ...]) -> Answer | None:
        if interface != _PROPERTIES:
            method = self.methods.get((path, interface, member))
            return None if method is None else method(*body)
        found = self.properties.get((path, body[0]))
        if found is None:
            return None
        return ("a{sv}", (found,)) if member == "GetAll" else ("v", (found[body[1]],))


class FakeLogind:
    """Logins and inhibitors as systemd's logind tells them."""

    def __init__(self, address: str) -> None:
        self._service = Service(address, LOGIND)
        self._ids: list[str] = []
        self._inhibitors: list[tuple[str, str, str, str, int, int]] = []
        manager = ("/org/freedesktop/login1", f"{LOGIND}.Manager")
        self._service.methods[(*manager, "ListSessions")] = self._sessions
        self._service.methods[(*manager, "ListInhibitors")] = lambda: ("a(ssssuu)", (self._inhibitors,))

    def log_in(
        self,
        name: str,
        *,
        uid: int | None = None,
        seat: str = "seat0",
        kind: str = "wayland",
        session_class: str = "user",
        is_active: bool = True,
        is_locked: bool = False,
        idle_since_s: float | None = None,
        tty: str = "",
    ) -> None:
        """A login, or what has become of it."""
        self._service.properties[(f"/session/{name}", f"{LOGIND}.Session")] = {
            "User": ("(uo)", (os.getuid() if uid is None else uid, "/user")),
            "Seat": ("(so)", (seat, "/seat")),
            "TTY": ("s", tty),
            "Type": ("s", kind),
            "Class": ("s", session_class),
            "Active": ("b", is_active),
            "LockedHint": ("b", is_locked),
            "IdleHint": ("b", idle_since_s is not None),
            "IdleSinceHint": ("t", int((idle_since_s or 0) * 1e6)),
        }
        self._ids = [*(other for other in self._ids if other != name), name]

    def log_out(self, name: str) -> None:
        self._ids.remove(name)

    def inhibit(self, what: str, who: str, mode: str = "block") -> None:
        self._inhibitors.append((what, who, "because", mode, os.getuid(), os.getpid()))

    def close(self) -> None:
        self._service.close()

    def _sessions(self) -> Answer:
        return "a(susso)", ([(name, 1000, "user", "seat0", f"/session/{name}") for name in self._ids],)


@contextmanager
def running_x_server() -> Iterator[str]:
    """The display of an Xvfb of one's own."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("needs Xvfb; scripts/test installs it (Debian: xvfb)")
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [program, "-displayfd", str(writer), "-screen", "0", "640x480x24", "-nolisten", "tcp", "-noreset"],
        pass_fds=(writer,),
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as told:
            yield f":{told.readline().strip()}"
    finally:
        process.terminate()
        process.wait()
