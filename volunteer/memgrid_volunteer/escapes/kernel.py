"""Ways at the kernel and the machine beneath it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
from pathlib import Path

from memgrid_volunteer.escapes.targets import Targets
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.seccomp import number_of

_CLONE_NEWUSER = 0x10000000
_KEYCTL_GET_KEYRING_ID, _KEY_SPEC_SESSION_KEYRING = 0, -3
_PERF_SOFTWARE, _PERF_ATTRIBUTES_BYTES = 1, 112


def _call(name: str, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(number_of(name, platform.machine()), *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), name)
    return int(answer)


def mount(targets: Targets, job: Job) -> None:
    _call("mount", b"none", os.fsencode(job.out_dir), b"tmpfs", 0, None)


def make_namespaces(targets: Targets, job: Job) -> None:
    """Where one may, it is the first step to everything else."""
    _call("unshare", _CLONE_NEWUSER)


def read_keyring(targets: Targets, job: Job) -> None:
    _call("keyctl", _KEYCTL_GET_KEYRING_ID, _KEY_SPEC_SESSION_KEYRING, 0)


def load_bpf(targets: Targets, job: Job) -> None:
    """A map, which programs of the kernel share with those who made it."""
    attributes = (ctypes.c_uint32 * 18)(2, 4, 4, 1)
    os.close(_call("bpf", 0, attributes, 72))


def open_perf(targets: Targets, job: Job) -> None:
    attributes = (ctypes.c_uint32 * (_PERF_ATTRIBUTES_BYTES // 4))(_PERF_SOFTWARE, _PERF_ATTRIBUTES_BYTES)
    os.close(_call("perf_event_open", attributes, 0, -1, -1, 0))


def open_userfaultfd(targets: Targets, job: Job) -> None:
    os.close(_call("userfaultfd", 1))


def load_kernel(targets: Targets, job: Job) -> None:
    _call("kexec_load", 0, 0, None, 0)


def load_module(targets: Targets, job: Job) -> None:
    _call("init_module", b"", 0, b"")


def make_device(targets: Targets, job: Job) -> None:
    node = job.out_dir / "null"
    os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    node.unlink()


def open_disk(targets: Targets, job: Job) -> None:
    if not targets.block_device:
        raise OSError(errno.ENOENT, "there is none")
    Path(targets.block_device).open("rb").close()


def open_memory(targets: Targets, job: Job) -> None:
    Path("/dev/mem").open("rb").close()


def call_as_32_bit(targets: Targets, job: Job) -> None:
    """The same calls by other numbers: a filter that knows one list only lets them through."""
    libc = ctypes.CDLL(None, use_errno=True)
    # x32's getpid, harmless by itself; processors without x32 know no such number.
    if libc.syscall(0x40000000 | 39) < 0:
        raise OSError(ctypes.get_errno(), "getpid")
