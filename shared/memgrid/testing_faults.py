"""Bad luck by name: what disks, clocks and machines do to a grid sooner or later; for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 1 << 16


class Faults:
    """Each is the real thing where the system lets us: a small file system, a listener, a signal.

    A context manager's fault ends with its block.
    """

    @staticmethod
    @contextlib.contextmanager
    def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
        """A file system of its own behind a folder, of at most so many bytes; PermissionError where nobody may."""
        folder.mkdir(parents=True, exist_ok=True)
        _mount(["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)])
        try:
            yield
        finally:
            # Lazily: a process that lingers in it must not keep a test from ending.
            subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)

    @staticmethod
    @contextlib.contextmanager
    def full_disk(folder: Path) -> Iterator[None]:
        """No byte more fits where the folder is. Only for a `small_disk`: any other would be filled in earnest."""
        if not os.path.ismount(folder):
            raise ValueError(f"{folder} is no disk of its own")
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(_BLOCK_BYTES)):
                pass
        try:
            yield
        finally:
            filler.unlink(missing_ok=True)

    @staticmethod
    @contextlib.contextmanager
    def read_only_disk(folder: Path) -> Iterator[None]:
        """A `small_disk` takes no writes, as a disk does after errors."""
        _mount(["-o", "remount,ro", str(folder)])
        try:
            yield
        finally:
            _mount(["-o", "remount,rw", str(folder)])

    @staticmethod
    def half_written(path: Path) -> None:
        """A file lost its second half: power went, and the disk had lied about what was on it."""
        path.chmod(0o644)
        os.truncate(path, path.stat().st_size // 2)

    @staticmethod
    def flipped_bit(path: Path) -> None:
        """One bit of a file is not what it was."""
        path.chmod(0o644)
        with path.open("r+b") as file:
            middle = path.stat().st_size // 2
            file.seek(middle)
            (byte,) = file.read(1)
            file.seek(middle)
            file.write(bytes([byte ^ 1]))

    @staticmethod
    @contextlib.contextmanager
    def port_taken() -> Iterator[int]:
        """Somebody else listens on a port of 127.0.0.1."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            yield listener.getsockname()[1]

    @staticmethod
    def killed_for_memory(pid: int) -> None:
        """The kernel ends a process without a word, as it does when memory runs out."""
        os.kill(pid, signal.SIGKILL)


def _mount(arguments: list[str]) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        raise PermissionError("only root may mount")
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")
