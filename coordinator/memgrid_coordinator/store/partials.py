"""Uploads that are not finished yet: bytes so far and what they are for, on disk."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from memgrid.digest import Digest, digest_of_file
from memgrid.errors import UnknownIdError
from memgrid_coordinator.store.disk import refusals_in_words

_FORM = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload: whose, where to, and what was admitted. `expected` is the only digest that will do, if known."""

    upload_id: str
    owner: str
    repository: str
    limit_bytes: int
    expected: Digest | None
    started_at: datetime


class PartialStore:
    """A folder with two files an upload: `<id>.json`, what it is for; `<id>.part`, the bytes so far.

    Nothing here is synced: after a power cut an upload may have fewer bytes than it was told of, and its client
    asks how many there are before it goes on. The finished file is synced when it becomes a blob.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @refusals_in_words()
    def begin(self, upload: Upload) -> None:
        self._path(upload.upload_id, "part").touch(exist_ok=False)
        state = {**asdict(upload), "started_at": upload.started_at.isoformat()}
        draft = self._path(upload.upload_id, "tmp")
        draft.write_text(json.dumps(state))
        draft.replace(self._path(upload.upload_id, "json"))

    def load(self) -> Iterator[Upload]:
        """Every upload that can go on; removes the remains of those that can't."""
        for path in list(self._folder.iterdir()):
            if path.suffix == ".json" and path.with_suffix(".part").exists():
                value = json.loads(path.read_text())
                started_at = datetime.fromisoformat(value.pop("started_at"))
                yield Upload(started_at=started_at, **value)
            elif not (path.suffix == ".part" and path.with_suffix(".json").exists()):
                path.unlink()

    def open(self, upload_id: str) -> PartialFile:
        """Raises UnknownIdError for an upload that has ended or never was."""
        path = self._path(upload_id, "part")
        if not path.exists():
            raise UnknownIdError(f"upload {upload_id} has ended; begin again")
        return PartialFile(path)

    def remove(self, upload_id: str) -> None:
        """Forget an upload; removing it twice is fine."""
        for suffix in ("json", "part"):
            with suppress(FileNotFoundError):
                self._path(upload_id, suffix).unlink()

    def _path(self, upload_id: str, suffix: str) -> Path:
        if not _FORM.fullmatch(upload_id):
            raise UnknownIdError(f"upload {upload_id[:40]!r} is not known; begin again")
        return self._folder / f"{upload_id}.{suffix}"


class PartialFile:
    """The bytes of one upload. It hashes as it writes, so that the end of an upload needn't read it all again.

    Used from several threads: a client that lost its connection may come back while its old request still lingers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._sealed = False
        self._hash = hashlib.sha256()
        self._hashed_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How many bytes are here; raises UnknownIdError when the upload has ended."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            raise UnknownIdError(f"upload {self.path.stem} has ended; begin again") from None

    def append(self, content: bytes, offset: int) -> bool:
        """Put bytes at the end; False, and nothing is written, when the end is not at `offset`.

        Raises UnknownIdError once the upload has ended, OSError when the disk is full.
        """
        with self._lock:
            if self._sealed:
                raise UnknownIdError(f"upload {self.path.stem} has ended; begin again")
            if offset != self.size_bytes:
                return False
            with self.path.open("ab", buffering=0) as file:
                view = memoryview(content)
                while view:
                    written = file.write(view)
                    if self._hashed_bytes == offset:
                        self._hash.update(view[:written])
                        self._hashed_bytes += written
                    view, offset = view[written:], offset + written
            return True

    def seal(self) -> Digest:
        """The address of what is here, and no byte is added after it was taken."""
        with self._lock:
            self._sealed = True
            if self._hashed_bytes == self.size_bytes:
                return Digest("sha256:" + self._hash.hexdigest())
            return digest_of_file(self.path)  # begun before this process started
