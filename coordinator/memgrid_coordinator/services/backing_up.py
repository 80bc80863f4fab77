"""Back a grid up while it runs: one moment of its database, its keys, and all content."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from memgrid.digest import digest_of_file
from memgrid.errors import InvalidError, UnknownIdError
from memgrid.signing import SigningKey
from memgrid_coordinator.services.backups import (
    ABOUT,
    BLOB_LIST,
    BLOBS,
    KEYS,
    Backup,
    Progress,
    blob_path,
    copy_file,
    read_backup,
)
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import copies
from memgrid_coordinator.store.blobs import BlobStore

_LISTED_AT_ONCE = 1000
_OURS = (ABOUT, BLOB_LIST, BLOBS, KEYS)


def back_up(
    settings: Settings, blobs: BlobStore, target: Path, now: datetime, say: Progress, *, with_blobs: bool = True
) -> Backup:
    """Write a backup into a folder, or bring the one that is there up to date: content it has is not copied again.

    The database comes first: whatever it names was there by then, so that it is among the content that follows.
    Raises InvalidError for a folder that is something else.
    """
    key = SigningKey.load_or_create(settings.keys / "grid.key").public_key.hex()
    _check_target(settings, target, key)
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.chmod(0o700)  # a backup holds the grid's keys
    say("copying the database")
    database = target / "memgrid.db.new"
    copies.snapshot(settings.database_url, database)
    say("copying keys")
    keys = {path.name: digest_of_file(path) for path in sorted(settings.keys.iterdir()) if path.is_file()}
    for name in keys:
        copy_file(settings.keys / name, target / KEYS / name, mode=0o600)
    count, size_bytes = _copy_blobs(blobs, target, say, with_blobs=with_blobs)
    backup = Backup(
        created_at=now,
        version=version("memgrid"),
        schema=copies.version_in(database),
        grid_key=key,
        database=digest_of_file(database),
        database_bytes=database.stat().st_size,
        rows=copies.counts_in(database),
        keys=keys,
        blobs=count,
        blob_bytes=size_bytes,
        blob_list=digest_of_file(target / BLOB_LIST),
        has_blobs=with_blobs,
    )
    _finish(target, database, backup)
    return backup


def _check_target(settings: Settings, target: Path, key: str) -> None:
    inside = target.resolve()
    if inside == settings.data or settings.data in inside.parents:
        raise InvalidError(f"{target}: expected a folder outside of the data folder {settings.data}")
    if not target.exists() or not any(target.iterdir()):
        return
    foreign = [
        path.name for path in target.iterdir() if path.name not in _OURS and not path.name.startswith("memgrid")
    ]
    if foreign:
        raise InvalidError(
            f"{target}: expected an empty folder or an earlier backup, found {sorted(foreign)[0]!r} in it"
        )
    if (target / ABOUT).exists() and read_backup(target).grid_key != key:
        raise InvalidError(f"{target}: the backup of another grid is there")


def _copy_blobs(blobs: BlobStore, target: Path, say: Progress, *, with_blobs: bool) -> tuple[int, int]:
    """List all content, and bring what the backup lacks; returns how many there are, and their bytes."""
    say("copying content" if with_blobs else "listing content")
    count, size_bytes, last = 0, 0, None
    with (target / f"{BLOB_LIST}.new").open("w") as file:
        while page := blobs.kept_after(last, _LISTED_AT_ONCE):
            for blob in page:
                path = target / BLOBS / blob_path(blob.digest)
                if with_blobs and not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        blobs.link(blob.digest, path)
                    except UnknownIdError:
                        continue  # collected meanwhile: nothing names it
                file.write(f"{blob.digest} {blob.size_bytes}\n")
                count, size_bytes = count + 1, size_bytes + blob.size_bytes
            last = page[-1].digest
            say(f"{count} files of content, {size_bytes} bytes")
    (target / f"{BLOB_LIST}.new").replace(target / BLOB_LIST)
    return count, size_bytes


def _finish(target: Path, database: Path, backup: Backup) -> None:
    """From now on the folder is this backup; the database of the one before goes."""
    database.replace(target / backup.database_name)
    about = target / f"{ABOUT}.new"
    about.write_bytes(backup.to_bytes())
    about.replace(target / ABOUT)
    for path in target.glob("memgrid-*.db"):
        if path.name != backup.database_name:
            path.unlink()
