"""Small files that are replaced whole, and read again when they have changed."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from memgrid.errors import InvalidError

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


def read_whole(path: Path) -> dict[str, Any] | None:
    """What `write_whole` wrote; None when there is no such file. Raises InvalidError when it is something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise InvalidError(f"{path}: damaged; remove it") from None
    if not isinstance(value, dict):
        raise InvalidError(f"{path}: damaged; remove it")
    return value


def write_whole(path: Path, value: dict[str, Any], *, durable: bool = True) -> None:
    """Replace a JSON file in one step; `durable`: it survives a power cut."""
    replace_text(path, json.dumps(value, indent=1), durable=durable)


def stamp_of(path: Path) -> Stamp | None:
    """What changes whenever a file is replaced; None while there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
