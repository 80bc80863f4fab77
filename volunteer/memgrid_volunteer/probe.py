"""Ends well where the walls hold that were asked for: run behind those that are to be tried."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from memgrid_volunteer.isolation import Folders, Isolation


def main() -> None:
    """`python -m memgrid_volunteer.probe ISOLATION WORK`; otherwise the last words say what does not hold."""
    isolation, folders = Isolation(sys.argv[1]), Folders(cache=Path(sys.argv[2]), work=Path(sys.argv[2]))
    for complaint in _complaints(isolation, folders):
        sys.exit(complaint)


def _complaints(isolation: Isolation, folders: Folders) -> list[str]:
    found = []
    if isolation in (Isolation.BUBBLEWRAP, Isolation.NAMESPACES):
        if _interfaces() - {"lo"}:
            found.append("the network is there")
        if "1" not in _processes() or len(_processes()) > 3:
            found.append("other processes are there")
    if _of_status("Seccomp") != "2":
        found.append("system calls are not filtered")
    if _of_status("NoNewPrivs") != "1":
        found.append("more rights could be had")
    for folder in (folders.outputs, folders.scratch):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            found.append(f"{folder.name} can't be written: {error.strerror}")
    if isolation is Isolation.BUBBLEWRAP:
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folders.inputs):
            found.append("inputs can be written")
    return found


def _interfaces() -> set[str]:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return {line.partition(":")[0].strip() for line in lines if ":" in line}


def _processes() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]


def _of_status(name: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "")


if __name__ == "__main__":
    main()
