"""What an escape would reach: made outside by a trial, known inside to the worker that tries."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

TARGETS_FILE = "targets.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Addresses, files and processes outside; where the machine has none of a sort, it is empty or 0."""

    tcp_port: int
    udp_port: int
    nameserver: str
    socket_path: str
    datagram_path: str
    abstract_name: str
    key_file: str
    ssh_key: str
    home_file: str
    model_file: str
    """In the cache."""
    outside: str
    """A folder that is not the worker's."""
    victim_pid: int
    """Another process of the same user, which outlives every attempt."""
    setuid_program: str
    block_device: str
    memory_bytes: int
    disk_bytes: int
    open_files: int
    """What a worker may take in this trial."""

    def write(self, unit: Path) -> None:
        (unit / TARGETS_FILE).write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(unit: Path) -> Targets:
        return Targets(**json.loads((unit / TARGETS_FILE).read_bytes()))
