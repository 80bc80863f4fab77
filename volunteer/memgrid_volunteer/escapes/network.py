"""Ways out over sockets."""

from __future__ import annotations

import ctypes
import os
import socket

from memgrid_volunteer.escapes.targets import Targets
from memgrid_volunteer.kinds.job import Job

_LIMIT_S = 2.0
_IO_URING_SETUP = 425


def connect_tcp(targets: Targets, job: Job) -> None:
    with socket.socket() as connection:
        connection.settimeout(_LIMIT_S)
        connection.connect(("127.0.0.1", targets.tcp_port))


def send_by_fast_open(targets: Targets, job: Job) -> None:
    """A connection that is made by sending, without a call to connect."""
    with socket.socket() as connection:
        connection.sendto(b"secret", socket.MSG_FASTOPEN, ("127.0.0.1", targets.tcp_port))


def listen_tcp(targets: Targets, job: Job) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()


def send_udp(targets: Targets, job: Job) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"secret", ("127.0.0.1", targets.udp_port))


def ask_nameserver(targets: Targets, job: Job) -> None:
    question = bytes.fromhex("000101000001000000000000") + b"\x06secret\x07example\x00" + bytes.fromhex("00010001")
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(question, (targets.nameserver, 53))


def connect_unix(targets: Targets, job: Job) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(targets.socket_path)


def connect_abstract(targets: Targets, job: Job) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{targets.abstract_name}")


def send_unix(targets: Targets, job: Job) -> None:
    """As a message to the system's log or to a service manager would go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"secret", targets.datagram_path)


def send_past_a_pair(targets: Targets, job: Job) -> None:
    """One of two sockets that know each other sends to a third."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendmsg([b"secret"], (), 0, targets.datagram_path)


def open_packets(targets: Targets, job: Job) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


def open_netlink(targets: Targets, job: Job) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()


def set_up_io_uring(targets: Targets, job: Job) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(_IO_URING_SETUP, 8, ctypes.create_string_buffer(120))
    if handle < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    os.close(handle)
