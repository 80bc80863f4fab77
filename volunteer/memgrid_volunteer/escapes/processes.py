"""Ways at other processes, and at more of one's own."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

from memgrid_volunteer.escapes.targets import Targets
from memgrid_volunteer.kinds.job import Job

_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_CLONE3 = 435
_BOMB = 400


def see_others(targets: Targets, job: Job) -> None:
    if str(targets.victim_pid) not in os.listdir("/proc"):  # noqa: PTH208 - the error is the point
        raise OSError(errno.ENOENT, "not among the processes")


def read_environment(targets: Targets, job: Job) -> None:
    Path(f"/proc/{targets.victim_pid}/environ").read_bytes()


def read_through_root(targets: Targets, job: Job) -> None:
    """Another process sees files that this one does not: its root is a way to them."""
    Path(f"/proc/{targets.victim_pid}/root{targets.key_file}").read_bytes()


def signal_other(targets: Targets, job: Job) -> None:
    os.kill(targets.victim_pid, signal.SIGCONT)


def trace_other(targets: Targets, job: Job) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_ATTACH, targets.victim_pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(targets.victim_pid, 0x40000000)
    libc.ptrace(_PTRACE_DETACH, targets.victim_pid, None, None)


def read_memory(targets: Targets, job: Job) -> None:
    Path(f"/proc/{targets.victim_pid}/mem").open("rb").close()


def limit_other(targets: Targets, job: Job) -> None:
    resource.prlimit(targets.victim_pid, resource.RLIMIT_CORE, (0, 0))


def start_process(targets: Targets, job: Job) -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def start_process_otherwise(targets: Targets, job: Job) -> None:
    """By the newest of the calls that make processes, which keeps its wishes where no filter sees them."""
    wishes = (ctypes.c_uint64 * 8)(0, 0, 0, 0, signal.SIGCHLD)
    libc = ctypes.CDLL(None, use_errno=True)
    child = libc.syscall(_CLONE3, wishes, ctypes.sizeof(wishes))
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def fork_bomb(targets: Targets, job: Job) -> None:
    """Bounded, for where nothing stops it: each child only waits."""
    for _ in range(_BOMB):
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
    time.sleep(20)


def start_program(targets: Targets, job: Job) -> None:
    subprocess.run(["/bin/sh", "-c", ":"], check=True)


def become_program(targets: Targets, job: Job) -> None:
    """Another program in the place of this one: no new process, and nothing left of what it imported."""
    os.execv("/bin/sh", ["/bin/sh", "-c", "exit 7"])


def start_setuid(targets: Targets, job: Job) -> None:
    if not targets.setuid_program:
        raise OSError(errno.ENOENT, "there is none")
    subprocess.run([targets.setuid_program, "--version"], check=False, capture_output=True)
