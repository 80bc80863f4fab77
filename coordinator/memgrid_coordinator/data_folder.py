"""One data folder, one coordinator: a lock that the system lets go of when its holder dies, however that dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from memgrid.errors import InvalidError

LOCK_FILE = "lock"


class Occupied:
    """A data folder that is this process's until `release`."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidError, naming the process that has it, when the folder is another's."""
        path = folder / LOCK_FILE
        self._file: IO[str] = path.open("a+")
        if not _try_lock(self._file):
            self._file.close()
            raise InvalidError(
                f"--data: {folder}: a coordinator is running here already (pid {_pid_in(path)}); "
                "stop it, or serve from another folder"
            )
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let others have it. Idempotent."""
        self._file.close()


def occupant(folder: Path) -> str | None:
    """The process id of the coordinator that runs here; None when nobody does."""
    path = folder / LOCK_FILE
    try:
        with path.open("r") as file:
            return None if _try_lock(file) else _pid_in(path)
    except FileNotFoundError:
        return None


def _pid_in(path: Path) -> str:
    return path.read_text().strip() or "unknown"


def _try_lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system: its owner has to take care
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
