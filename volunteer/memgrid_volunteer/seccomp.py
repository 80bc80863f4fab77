"""A filter over system calls that a process puts on itself: no network, no processes, no way at the machine.

The program is classic BPF, assembled here, for no library is on every machine. It is a list of what is refused rather
than of what is allowed: GPU drivers use calls that nobody but them knows. What a worker computes with (memory, files,
threads, `ioctl`) stays; whatever reaches beyond the worker goes.

Source: kernel documentation, userspace-api/seccomp_filter; numbers from asm/unistd.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass

_SYSCALL_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # name: (x86_64, aarch64)
    # Other programs: nothing is started, watched, stopped or limited.
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    # The network. A socket of the machine itself may be made, for CUDA makes one; but connected to nothing.
    "connect": (42, 203),
    # What io_uring does no filter sees.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Namespaces and mounts, of which the other walls are made.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # Keys that the kernel keeps.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Memory that is no process's own, and so is not seen where memory is counted.
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # The kernel itself, where its holes were.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "lookup_dcookie": (212, 18),
    "syslog": (103, 116),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    # The machine.
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
}
_UNKNOWN_TO_OLD_KERNELS = {
    # The C library then takes `clone`, whose flags can be looked at; programs that want the others do without.
    "clone3": (435, 435),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET = 1, 1, 5
_F_SETOWN, _F_SETOWN_EX = 8, 15
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT = 0, 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def _argument_at(index: int) -> int:
    """Where the low half of an argument lies; both machines are little-endian."""
    return 16 + 8 * index


def _refuse(number: int) -> int:
    return 0x00050000 | number


@dataclass(frozen=True, slots=True)
class _Step:
    code: int
    value: int
    if_true: int = 0
    if_false: int = 0

    def packed(self) -> bytes:
        return struct.pack("<HBBI", self.code, self.if_true, self.if_false, self.value)


def is_known(machine: str) -> bool:
    """Whether there is a filter for this kind of processor.

    >>> is_known("x86_64"), is_known("riscv64")
    (True, False)
    """
    return machine in _AUDIT_ARCH


def number_of(name: str, machine: str) -> int:
    """The number of a call that the filter refuses.

    >>> number_of("mount", "x86_64"), number_of("mount", "aarch64")
    (165, 40)
    """
    number = _SYSCALL_NUMBERS[name][_COLUMN[machine]]
    assert number is not None
    return number


def program(machine: str, own_pid: int) -> bytes:
    """The filter for a process of that number, 8 bytes a step.

    >>> len(program("x86_64", 17)) % 8
    0
    """
    steps = [
        _Step(_LOAD, _ARCH_AT),
        # Calls of another architecture have other numbers, and would be looked up in the wrong list.
        _Step(_JUMP_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _Step(_RETURN, _KILL),
        _Step(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        steps += [_Step(_JUMP_AT_LEAST, _X32_BIT, 0, 1), _Step(_RETURN, _KILL)]
    column = _COLUMN[machine]
    for numbers, answer in ((_SYSCALL_NUMBERS, errno.EPERM), (_UNKNOWN_TO_OLD_KERNELS, errno.ENOSYS)):
        for both in numbers.values():
            if (number := both[column]) is not None:
                steps += [_Step(_JUMP_EQUAL, number, 0, 1), _Step(_RETURN, _refuse(answer))]
    for number, judged in _judged_by_arguments(machine, own_pid):
        steps += [_Step(_JUMP_EQUAL, number, 0, len(judged)), *judged]
    steps.append(_Step(_RETURN, _ALLOW))
    return b"".join(step.packed() for step in steps)


def _judged_by_arguments(machine: str, own_pid: int) -> list[tuple[int, list[_Step]]]:
    """Calls that are allowed or not by what they ask for; each list ends with a return."""
    allow, refuse = _Step(_RETURN, _ALLOW), _Step(_RETURN, _refuse(errno.EPERM))
    column = _COLUMN[machine]

    def number(on_intel: int, on_arm: int) -> int:
        return (on_intel, on_arm)[column]

    def among(index: int, values: tuple[int, ...], *, mask: int = 0xFFFFFFFF) -> list[_Step]:
        """Allowed only with one of these."""
        tests = [_Step(_JUMP_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]
        return [_Step(_LOAD, _argument_at(index)), _Step(_AND, mask), *tests, refuse, allow]

    def not_among(index: int, values: tuple[int, ...]) -> list[_Step]:
        tests = [_Step(_JUMP_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]
        return [_Step(_LOAD, _argument_at(index)), *tests, allow, refuse]

    # A thread of one's own, and nothing else that `clone` can make.
    clone = [_Step(_LOAD, _argument_at(0)), _Step(_JUMP_ANY, _CLONE_THREAD, 1, 0), refuse, allow]
    # Sockets with a connection only: others can send to an address that no filter sees.
    kinds = (_SOCK_STREAM, _SOCK_SEQPACKET)
    unix = [_Step(_LOAD, _argument_at(0)), _Step(_JUMP_EQUAL, _AF_UNIX, 1, 0), refuse]
    return [
        (number(56, 220), clone),
        (number(41, 198), [*unix, *among(1, kinds, mask=0xF)]),
        (number(53, 199), [*unix, *among(1, kinds, mask=0xF)]),
        (number(62, 129), among(0, (own_pid,))),
        (number(234, 131), among(0, (own_pid,))),
        (number(302, 261), among(0, (0, own_pid))),
        (number(72, 25), not_among(1, (_F_SETOWN, _F_SETOWN_EX))),
        (number(16, 29), not_among(1, (_TIOCSTI, _TIOCLINUX))),
    ]


def restrict() -> None:
    """Put the filter on this process, for good; raises OSError where the kernel or the processor has none.

    Threads that run already are not bound: call it before there are any.
    """
    machine = platform.machine()
    if sys.platform != "linux" or not is_known(machine):
        raise OSError(errno.ENOSYS, f"no filter of system calls for {sys.platform} on {machine}")
    code = program(machine, os.getpid())
    kept = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    # Else a program with more rights could be started behind a filter it does not expect.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0):
        raise OSError(ctypes.get_errno(), "the system call filter was refused")
