"""Make a grid of a backup: checked byte by byte, all of it or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from memgrid.errors import InvalidError
from memgrid_coordinator.services.backups import (
    BLOBS,
    KEYS,
    Backup,
    DamagedBackupError,
    Progress,
    blob_path,
    check_backup,
    copy_file,
    listed_blobs,
    read_backup,
)
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import copies, upgrading

_DATABASE = "memgrid.db"
_GROWING = ".restoring"
_KEY_MODE = 0o600
_BLOB_MODE = 0o444


def check(source: Path, say: Progress) -> Backup:
    """Whether a backup can be restored; writes nothing. Raises InvalidError, DamagedBackupError."""
    backup = read_backup(source)
    if backup.schema not in upgrading.versions():
        raise InvalidError(
            f"{source}: memgrid {backup.version} wrote it with schema {backup.schema}, "
            f"this one knows up to {upgrading.versions()[-1]}: update memgrid first"
        )
    check_backup(source, backup, say)
    problems = copies.problems_of(source / backup.database_name)
    if problems:
        raise DamagedBackupError(f"{source / backup.database_name}: {problems[0]} ({len(problems)} problems)")
    return backup


def restore(source: Path, settings: Settings, say: Progress) -> Backup:
    """Put a backup where no grid is yet. A restore that is cut off leaves no grid, and may be begun anew.

    Raises InvalidError when something is there already, DamagedBackupError.
    """
    data, growing = settings.data, settings.data / _GROWING
    there = {path.name for path in data.iterdir()} if data.exists() else set()
    if there and (_GROWING not in there or _DATABASE in there):
        raise InvalidError(f"--data: {data}: expected an empty or a new folder; a grid is never written over")
    is_file = copies.file_of(settings.database_url) is not None
    if not is_file and not copies.is_empty(settings.database_url):
        raise InvalidError("--database: expected an empty database; a grid is never written over")
    backup = check(source, say)
    for left in (growing, data / KEYS, data / BLOBS):  # of a restore that was cut off
        shutil.rmtree(left, ignore_errors=True)
    growing.mkdir(parents=True)
    (growing / KEYS).mkdir(mode=0o700)
    for name in backup.keys:
        copy_file(source / KEYS / name, growing / KEYS / name, mode=_KEY_MODE)
    if backup.has_blobs:
        say(f"copying {backup.blobs} files of content")
        for digest, _ in listed_blobs(source):
            copy_file(source / BLOBS / blob_path(digest), growing / BLOBS / blob_path(digest), mode=_BLOB_MODE)
    say("bringing back the database")
    database = growing / _DATABASE
    copy_file(source / backup.database_name, database)
    if is_file:
        upgrading.migrate(f"sqlite:///{database}")
    else:
        copies.pour(database, settings.database_url)
        database.unlink()
    # The database comes last: without it there is no grid.
    for name in (BLOBS, KEYS, _DATABASE):
        if (growing / name).exists():
            (growing / name).rename(data / name)
    growing.rmdir()
    return backup
