"""Small files that are replaced whole, and read again when they have changed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

Stamp = tuple[int, int, int]


def replace_text(path: Path, text: str, *, durable: bool = True) -> None:
    """A reader sees the old text or the new, never a part; `durable`: it survives a power cut."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def stamp_of(path: Path) -> Stamp | None:
    """What changes whenever a file is replaced; None while there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
