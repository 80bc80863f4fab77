"""What a backup is: a folder with a database, keys, content, and one file that says what belongs to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from memgrid.digest import Digest, digest_of_file, parse_digest
from memgrid.errors import InvalidError, MemgridError

FORMAT = 1
ABOUT = "backup.json"
KEYS = "keys"
BLOBS = "blobs"
BLOB_LIST = "blobs.txt"
Progress = Callable[[str], None]


class DamagedBackupError(MemgridError):
    """A backup whose bytes are not what they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What stands in `backup.json`; it is written last, so that a backup which has one is whole.

    `rows` are those of the tables that people know; `blob_list` is the digest of the list of all content, which
    lies beside it when `has_blobs`.
    """

    created_at: datetime
    version: str
    schema: str
    grid_key: str
    database: Digest
    database_bytes: int
    rows: dict[str, int]
    keys: dict[str, Digest]
    blobs: int
    blob_bytes: int
    blob_list: Digest
    has_blobs: bool

    @property
    def database_name(self) -> str:
        return f"memgrid-{self.database.removeprefix('sha256:')[:12]}.db"

    def to_bytes(self) -> bytes:
        value = {"format": FORMAT, **asdict(self), "created_at": self.created_at.isoformat()}
        return json.dumps(value, indent=2).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Self:
        """Raises InvalidError."""
        try:
            value: dict[str, Any] = json.loads(content)
            if value.pop("format") != FORMAT:
                raise InvalidError(f"{where}: expected a backup of format {FORMAT}; a newer memgrid wrote it")
            value["created_at"] = datetime.fromisoformat(value["created_at"])
            backup = cls(**value)
            for digest in (backup.database, backup.blob_list, *backup.keys.values()):
                parse_digest(digest)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InvalidError(f"{where}: expected what `memgrid coordinator backup` writes") from None
        if any(Path(name).name != name for name in backup.keys):
            raise InvalidError(f"{where}: keys: expected plain file names")
        return backup


def read_backup(folder: Path) -> Backup:
    """Raises InvalidError for a folder that is none, or one that was cut off before it was whole."""
    try:
        return Backup.from_bytes((folder / ABOUT).read_bytes(), str(folder / ABOUT))
    except FileNotFoundError:
        raise InvalidError(f"{folder}: no {ABOUT} in it: not a backup, or one that was cut off") from None


def check_backup(folder: Path, backup: Backup, say: Progress) -> None:
    """Read every byte of a backup and compare it with what was written; raises DamagedBackupError."""
    for path, digest in _files_of(folder, backup):
        check_file(path, digest)
    if backup.has_blobs:
        say(f"checking {backup.blobs} files of content")
        for digest, _ in listed_blobs(folder):
            check_file(folder / BLOBS / blob_path(digest), digest)


def check_file(path: Path, digest: Digest) -> None:
    """Raises DamagedBackupError."""
    try:
        found = digest_of_file(path)
    except FileNotFoundError:
        raise DamagedBackupError(f"{path}: the file is gone") from None
    if found != digest:
        raise DamagedBackupError(f"{path}: expected {digest}, found {found}: the file was damaged or changed")


def listed_blobs(folder: Path) -> Iterator[tuple[Digest, int]]:
    """The content that belongs to a backup: digests and sizes."""
    with (folder / BLOB_LIST).open() as file:
        for line in file:
            digest, size_bytes = line.split()
            yield parse_digest(digest), int(size_bytes)


def blob_path(digest: Digest) -> Path:
    """Where content lies below a folder of blobs.

    >>> blob_path(Digest("sha256:" + "ab" * 32)).parts[:2]
    ('sha256', 'ab')
    """
    hexadecimal = digest.removeprefix("sha256:")
    return Path("sha256") / hexadecimal[:2] / hexadecimal


def copy_file(source: Path, target: Path, *, mode: int | None = None) -> None:
    """Whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".new")
    shutil.copyfile(source, temporary)
    if mode is not None:
        temporary.chmod(mode)
    temporary.replace(target)


def _files_of(folder: Path, backup: Backup) -> Iterator[tuple[Path, Digest]]:
    yield folder / backup.database_name, backup.database
    yield folder / BLOB_LIST, backup.blob_list
    for name, digest in backup.keys.items():
        yield folder / KEYS / name, digest
