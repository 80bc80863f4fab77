"""Which files a process may still see: a rule of the kernel's that it puts on itself, without any rights.

Source: kernel documentation, userspace-api/landlock; constants from linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# The same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
_OF_FILES = _DEVICE
"""Rights that a rule about a single file may give."""
_HANDLED_BY_VERSION = ((1, 13), (2, 14), (3, 15), (5, 16))
"""From which version on, how many rights over files are known."""
_TCP = 0b11
_SCOPES = 0b11
"""Abstract sockets and signals stay among processes behind the same rule."""


def version() -> int:
    """What this kernel knows of it; 0: nothing."""
    if sys.platform != "linux":
        return 0
    found = ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    return max(0, int(found))


def handled(known: int) -> tuple[int, bytes]:
    """The rights over files that a kernel of that version can hold back, and the ruleset that asks for all it can.

    >>> handled(1)[0] == (1 << 13) - 1, len(handled(1)[1]), len(handled(4)[1]), len(handled(7)[1])
    (True, 8, 16, 24)
    """
    bits = max((count for since, count in _HANDLED_BY_VERSION if known >= since), default=0)
    rights = (1 << bits) - 1
    if known >= 6:
        return rights, struct.pack("=QQQ", rights, _TCP, _SCOPES)
    if known >= 4:
        return rights, struct.pack("=QQ", rights, _TCP)
    return rights, struct.pack("=Q", rights)


def restrict(*, readable: Iterable[Path], writable: Iterable[Path], devices: Iterable[Path]) -> bool:
    """From now on only these, and what lies in them; False, and nothing changes, on a kernel without Landlock.

    What is not there is passed over. Raises OSError when the kernel refuses the rule.
    """
    known = version()
    if known == 0:
        return False
    rights, attributes = handled(known)
    libc = ctypes.CDLL(None, use_errno=True)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        for paths, allowed in ((readable, _READ), (writable, _WRITE), (devices, _DEVICE)):
            for path in paths:
                _allow(libc, ruleset, path, allowed & rights)
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, place)
        _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(place)


def _checked(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno() or errno.EINVAL
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return answer
