"""What a service manager is told of a volunteer: one definition, written for systemd, launchd or Windows."""

from __future__ import annotations

import plistlib
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.sax.saxutils import escape

START_LIMIT = 5
START_LIMIT_INTERVAL_S = 900
"""So many failures within so long, and a service stays down: its owner has to look."""
RESTART_S = 15
WATCHDOG_S = 120
STOP_LIMIT_S = 45
_TASK_NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"


class Manager(StrEnum):
    SYSTEMD = "systemd"
    LAUNCHD = "launchd"
    TASK_SCHEDULER = "task-scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The command to keep running, its name for the manager, and the volunteer's folder."""

    name: str
    command: tuple[str, ...]
    home: Path

    @property
    def log(self) -> Path:
        """What is printed before there is a log of our own; small."""
        return self.home / "logs" / "start.log"


def definition(manager: Manager, service: Service) -> bytes:
    """The file that tells a manager of the service, as that manager reads it.

    >>> service = Service(name="memgrid-volunteer", command=("/opt/memgrid", "volunteer", "run"), home=Path("/d"))
    >>> b"ExecStart=/opt/memgrid volunteer run" in definition(Manager.SYSTEMD, service)
    True
    """
    match manager:
        case Manager.SYSTEMD:
            return _unit(service).encode()
        case Manager.LAUNCHD:
            return _plist(service)
        case Manager.TASK_SCHEDULER:
            return _task(service).encode("utf-16")


def _unit(service: Service) -> str:
    """A unit of the user's own manager. What it holds back are system calls and addresses, for a user's manager may
    not do more; mounts and namespaces stay, because the worker's walls are made of them."""
    return f"""\
# Written by `memgrid volunteer install`; `memgrid volunteer uninstall` removes it.
[Unit]
Description=memgrid volunteer: gives this machine's idle time to a grid
StartLimitIntervalSec={START_LIMIT_INTERVAL_S}
StartLimitBurst={START_LIMIT}

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(map(_systemd_word, service.command))}
Restart=on-failure
RestartSec={RESTART_S}
# Bad input, or what only somebody can mend: the next start would find the same.
RestartPreventExitStatus=2 3
WatchdogSec={WATCHDOG_S}
WatchdogSignal=SIGTERM
TimeoutStartSec=60
TimeoutStopSec={STOP_LIMIT_S}
KillMode=mixed
# A worker that was killed for memory is started again by the volunteer itself.
OOMPolicy=continue
OOMScoreAdjust=500
Nice=10
CPUWeight=10
IOSchedulingClass=idle
TasksMax=8192
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
# Netlink is what bubblewrap sets the worker's loopback up with.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK

[Install]
WantedBy=default.target
"""


def _systemd_word(word: str) -> str:
    """One word of a command line: percent and dollar stand for themselves, blanks and quotes, too.

    >>> print(_systemd_word("/home/a b/100%"))
    "/home/a b/100%%"
    """
    if "\n" in word:
        raise ValueError("a line break can't stand in a unit")
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if plain != word or not word or set(word) & set(" \t';") else word


def _plist(service: Service) -> bytes:
    return plistlib.dumps(
        {
            "Label": service.name,
            "ProgramArguments": list(service.command),
            "RunAtLoad": True,
            # Ended well, it stays so: its owner has stopped it.
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": RESTART_S,
            "ExitTimeOut": STOP_LIMIT_S,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 10,
            "Umask": 0o077,
            "StandardOutPath": str(service.log),
            "StandardErrorPath": str(service.log),
        }
    )


def _task(service: Service) -> str:
    """Windows wants the elements in this order. Battery and idleness are the volunteer's own business."""
    command, arguments = service.command[0], subprocess.list2cmdline(service.command[1:])
    return f"""\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="{_TASK_NAMESPACE}">
  <RegistrationInfo>
    <Description>memgrid volunteer: gives this machine's idle time to a grid</Description>
    <URI>\\{escape(service.name)}</URI>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <Enabled>true</Enabled>
    </LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <AllowHardTerminate>true</AllowHardTerminate>
    <StartWhenAvailable>true</StartWhenAvailable>
    <RunOnlyIfNetworkAvailable>false</RunOnlyIfNetworkAvailable>
    <AllowStartOnDemand>true</AllowStartOnDemand>
    <Enabled>true</Enabled>
    <Hidden>false</Hidden>
    <RunOnlyIfIdle>false</RunOnlyIfIdle>
    <WakeToRun>false</WakeToRun>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>7</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>{START_LIMIT}</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(command)}</Command>
      <Arguments>{escape(arguments)}</Arguments>
      <WorkingDirectory>{escape(str(service.home))}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>
"""
