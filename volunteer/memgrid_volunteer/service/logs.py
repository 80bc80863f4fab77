"""What a service prints, in files of bounded size, for managers that keep none themselves."""

from __future__ import annotations

import io
import threading
from pathlib import Path

LOG_BYTES_MAX = 2 << 20
LOGS_KEPT = 5


class RotatingLog(io.TextIOBase):
    """A text stream into `NAME.log`; full, it becomes `NAME.log.1`, that one `.2`, and the oldest goes.

    Lines stay whole. A disk that is full loses lines and ends nobody.
    """

    def __init__(self, path: Path, *, bytes_max: int = LOG_BYTES_MAX, kept: int = LOGS_KEPT) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._kept = kept
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        content = text.encode(errors="replace")
        with self._lock:
            try:
                if self._size_bytes() + len(content) > self._bytes_max and self._ends_a_line():
                    self._rotate()
                with self._path.open("ab") as file:
                    file.write(content)
            except OSError:
                return len(text)
        return len(text)

    def _size_bytes(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def _ends_a_line(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, io.SEEK_END)
            return file.read(1) == b"\n"

    def _rotate(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        self._numbered(self._kept).unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
