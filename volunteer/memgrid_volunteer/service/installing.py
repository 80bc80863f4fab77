"""Hand a volunteer to the service manager of this machine's user, and take it back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memgrid.errors import InternalError, InvalidError, UnavailableError
from memgrid_volunteer.home import Home, default_home
from memgrid_volunteer.service.definition import Manager, Service, definition

Call = tuple[str, ...]
_CALL_LIMIT_S = 30.0
_NAME = "memgrid-volunteer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What installing does here: a file, and commands after it; and what takes both back."""

    manager: Manager
    service: Service
    path: Path
    content: bytes
    begin: tuple[Call, ...]
    end: tuple[Call, ...]
    show: Call

    @property
    def advice(self) -> str:
        """What only the owner can decide."""
        if self.manager is Manager.SYSTEMD:
            return (
                "It runs while you are logged in. To have it run from the start of the machine on, whoever is there,"
                f" once say: loginctl enable-linger {os.environ.get('USER', '$USER')}"
            )
        return "It runs while you are logged in."


def plan_for(manager: Manager, home: Home, run_options: Sequence[str] = ()) -> Plan:
    """What installing means for one manager; nothing is done yet."""
    service = Service(
        name=_name_of(home),
        command=(*_memgrid(), "volunteer", "run", "--service", "--home", str(home.folder), *run_options),
        home=home.folder,
    )
    name = service.name
    begin: tuple[Call, ...]
    end: tuple[Call, ...]
    show: Call
    match manager:
        case Manager.SYSTEMD:
            path = _config_home() / "systemd" / "user" / f"{name}.service"
            begin = (("systemctl", "--user", "daemon-reload"), ("systemctl", "--user", "enable", "--now", path.name))
            end = (("systemctl", "--user", "disable", "--now", path.name),)
            show = ("systemctl", "--user", "show", "--property=ActiveState,SubState,Result,NRestarts,StatusText")
            show = (*show, path.name)
        case Manager.LAUNCHD:
            path = Path.home() / "Library" / "LaunchAgents" / f"{name}.plist"
            domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"
            begin = (("launchctl", "bootstrap", domain, str(path)),)
            end = (("launchctl", "bootout", f"{domain}/{name}"),)
            show = ("launchctl", "print", f"{domain}/{name}")
        case Manager.TASK_SCHEDULER:
            path = home.folder / f"{name}.xml"
            begin = (
                ("schtasks", "/Create", "/F", "/TN", name, "/XML", str(path)),
                ("schtasks", "/Run", "/TN", name),
            )
            end = (("schtasks", "/End", "/TN", name), ("schtasks", "/Delete", "/F", "/TN", name))
            show = ("schtasks", "/Query", "/TN", name, "/FO", "LIST")
    content = definition(manager, service)
    return Plan(manager=manager, service=service, path=path, content=content, begin=begin, end=end, show=show)


def manager_here() -> Manager:
    """The manager of this system's users; raises UnavailableError where there is none that we know."""
    managers = {"linux": Manager.SYSTEMD, "darwin": Manager.LAUNCHD, "win32": Manager.TASK_SCHEDULER}
    tools = {Manager.SYSTEMD: "systemctl", Manager.LAUNCHD: "launchctl", Manager.TASK_SCHEDULER: "schtasks"}
    manager = managers.get(sys.platform)
    if manager is None or shutil.which(tools[manager]) is None:
        raise UnavailableError(
            "no service manager that is known here; start `memgrid volunteer run --service` yourself"
        )
    return manager


def install(plan: Plan, home: Home) -> None:
    """Write the file and have the service started, now and with every login. Raises MemgridError."""
    home.joined()
    if home.is_running and not plan.path.exists():
        raise InvalidError(f"{home.folder}: a volunteer is running here already; stop it first")
    for folder in (plan.path.parent, plan.service.log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    plan.path.write_bytes(plan.content)
    for command in plan.begin:
        try:
            call(command)
        except InternalError as error:
            raise UnavailableError(f"{error}; the definition is written, at {plan.path}") from None


def uninstall(plan: Plan) -> bool:
    """Stop the service and remove its file; False when there was none. Raises MemgridError."""
    if not plan.path.exists():
        return False
    problem = None
    for command in plan.end:
        try:
            call(command)
        except InternalError as error:
            problem = problem or error
    plan.path.unlink()
    if plan.manager is Manager.SYSTEMD and problem is None:
        call(plan.begin[0])
    if problem is not None:
        raise UnavailableError(f"{problem}; the definition is removed, and is not started again")
    return True


def state(plan: Plan) -> dict[str, str]:
    """How the manager sees the service, in its own words; `state` is "not installed" where it knows none."""
    if not plan.path.exists():
        return {"state": "not installed"}
    try:
        told = call(plan.show)
    except InternalError as error:
        return {"state": f"not known: {error}"}
    found = dict(re.findall(r"(?m)^\s*([\w ]+?)\s*[=:]\s*(\S.*?)\s*$", told))
    return {"state": found.get("ActiveState") or found.get("state") or found.get("Status") or "installed", **found}


def call(command: Sequence[str]) -> str:
    """What a command prints; raises InternalError with its last words when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_LIMIT_S, check=False)
    except FileNotFoundError:
        raise InternalError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise InternalError(f"{' '.join(command)}: no answer in {_CALL_LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
        raise InternalError(f"{' '.join(command)}: {words[-1]}")
    return done.stdout


def _name_of(home: Home) -> str:
    """One service a home: several grids at once have homes of their own."""
    if home.folder == default_home().resolve():
        return _NAME
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", home.folder.name).strip("-.") or "home"
    return f"{_NAME}-{plain}"


def _memgrid() -> tuple[str, ...]:
    script = Path(sys.executable).with_name("memgrid.exe" if sys.platform == "win32" else "memgrid")
    if script.exists():
        return (str(script),)
    return (sys.executable, "-c", "from memgrid.cli.main import main; main()")


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
