"""Files that parsers are given, in a folder of this process alone."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp


@cache
def folder() -> Path:
    """In memory, where the system has such a place: a file is written for each execution."""
    memory = Path("/dev/shm")
    made = Path(mkdtemp(prefix="memgrid-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def fresh_file(content: bytes) -> Path:
    """What is mapped still must not change under its reader, so each content is a file of its own."""
    path = folder() / "upload.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def kept_file(name: str, content: bytes) -> Path:
    """A file that is read whole, or stays as it is."""
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
    return path
