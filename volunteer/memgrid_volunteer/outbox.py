"""Finished work on disk until its verdict is known: a kill at any moment loses none of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memgrid.digest import digest_of, digest_of_file
from memgrid.errors import InvalidError
from memgrid.log import get_logger
from memgrid.units import SKETCH_BYTES_MAX, LeaseId, LeaseOffer, Output, ReportClaim, WorkFacts
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.wire import report_from_message, report_to_message
from memgrid_volunteer.kinds.job import SKETCH_FILE
from memgrid_volunteer.outputs import output_names

_LEASE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_REPORT_FILE = "report.pb"
_ACKNOWLEDGED_FILE = "acknowledged"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One unit's results; `acknowledged` when the coordinator has its report on disk."""

    claim: ReportClaim
    folder: Path
    acknowledged: bool

    @property
    def output(self) -> Path:
        """The main one."""
        return self.folder / self.claim.outputs[0].name

    def sketch(self) -> bytes:
        return (self.folder / SKETCH_FILE).read_bytes()


class Outbox:
    """A folder a lease: what its unit made, the sketch, the report; it appears whole, by one rename."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[LeaseId, Finished] = {}
        for entry in sorted(folder.iterdir()):
            self._load(entry)

    def add(self, offer: LeaseOffer, out_dir: Path, facts: WorkFacts) -> Finished:
        """Take over a worker's output folder, durably; takes as long as the disk does.

        Raises InvalidError when the folder does not hold what a unit makes.
        """
        making = self._folder / f"making-{safe_name(offer.lease_id)}"
        shutil.rmtree(making, ignore_errors=True)
        # Out of the worker's sight first: what is checked from here on can't change any more.
        out_dir.rename(making)
        names = output_names(offer.spec)
        for name in (*names, SKETCH_FILE):
            file = making / name
            if file.is_symlink() or not file.is_file():
                raise InvalidError(f"the worker left no {name}")
        if (making / SKETCH_FILE).stat().st_size > SKETCH_BYTES_MAX:
            raise InvalidError("the worker's sketch is too large")
        claim = _claim(offer, making, names, facts)
        (making / _REPORT_FILE).write_bytes(report_to_message(claim).SerializeToString())
        for name in (*names, SKETCH_FILE, _REPORT_FILE):
            _sync(making / name)
        _sync(making)
        final = self._folder / safe_name(offer.lease_id)
        making.rename(final)
        _sync(self._folder)
        finished = Finished(claim=claim, folder=final, acknowledged=False)
        self._entries[offer.lease_id] = finished
        return finished

    def find(self, lease_id: LeaseId) -> Finished | None:
        return self._entries.get(lease_id)

    def to_report(self) -> list[Finished]:
        return [entry for entry in self._entries.values() if not entry.acknowledged]

    def awaiting(self) -> tuple[LeaseId, ...]:
        """Leases whose verdict is still to come."""
        return tuple(lease_id for lease_id, entry in self._entries.items() if entry.acknowledged)

    def acknowledge(self, lease_id: LeaseId) -> None:
        entry = self._entries.get(lease_id)
        if entry is not None and not entry.acknowledged:
            # Not synced: forgotten in a power cut, the report is merely sent once more.
            with suppress(OSError):
                (entry.folder / _ACKNOWLEDGED_FILE).touch()
            self._entries[lease_id] = Finished(claim=entry.claim, folder=entry.folder, acknowledged=True)

    def drop(self, lease_id: LeaseId) -> None:
        """Nobody needs it any more."""
        entry = self._entries.pop(lease_id, None)
        if entry is not None:
            shutil.rmtree(entry.folder, ignore_errors=True)

    @property
    def is_empty(self) -> bool:
        return not self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def size_bytes(self) -> int:
        return sum(output.size_bytes for entry in self._entries.values() for output in entry.claim.outputs)

    def _load(self, folder: Path) -> None:
        try:
            claim = report_from_message(pb.Report.FromString((folder / _REPORT_FILE).read_bytes()))
            complete = folder.name == claim.lease_id and all((folder / one.name).is_file() for one in claim.outputs)
        except (OSError, ValueError, InvalidError):
            complete = False
        if not complete:
            log.info("unfinished work thrown away", folder=folder.name)
            shutil.rmtree(folder, ignore_errors=True)
            return
        acknowledged = (folder / _ACKNOWLEDGED_FILE).exists()
        self._entries[claim.lease_id] = Finished(claim=claim, folder=folder, acknowledged=acknowledged)


def safe_name(lease_id: LeaseId) -> str:
    """A lease's id as a folder name; raises InvalidError when the grid made one up that is none."""
    if not _LEASE_ID.fullmatch(lease_id):
        raise InvalidError(f"lease id: expected letters, digits, - and _, found {lease_id[:80]!r}")
    return lease_id


def _claim(offer: LeaseOffer, folder: Path, names: Sequence[str], facts: WorkFacts) -> ReportClaim:
    return ReportClaim(
        lease_id=offer.lease_id,
        fence=offer.fence,
        unit_key=offer.unit_key,
        outputs=tuple(_output(folder / name) for name in names),
        sketch_digest=digest_of((folder / SKETCH_FILE).read_bytes()),
        facts=facts,
    )


def _output(file: Path) -> Output:
    return Output(name=file.name, digest=digest_of_file(file), size_bytes=file.stat().st_size)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
