"""What an ended unit leaves on a node for its supervisor to fetch: its outputs, or its committed files as one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memgrid.digest import digest_of_file
from memgrid.errors import InvalidError
from memgrid.log import get_logger
from memgrid.units import BlobRef, LeaseOffer, ReasonCode
from memgrid_volunteer.cluster.words import LEFT, PACKED
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.kinds.job import SKETCH_FILE, Outcome
from memgrid_volunteer.outputs import output_names
from memgrid_volunteer.packing import Packed, pack

_FAILS_AGAIN = (ReasonCode.UNIT_FAILED, ReasonCode.INPUT_UNAVAILABLE)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where they lie, by name, and what the supervisor is told of them."""

    folder: Path
    """The unit's output folder, where no worker sees it any more."""
    paths: Mapping[str, Path]
    blobs: tuple[BlobRef, ...]

    def put_back(self, out_dir: Path) -> None:
        """To where it was, for whoever keeps or clears a unit."""
        self.folder.rename(out_dir)
        if PACKED in self.paths:
            self.paths[PACKED].unlink(missing_ok=True)


def may_go_on(outcome: Outcome) -> bool:
    """Whether a unit was cut off, so that it can go on from what it has committed."""
    return outcome.failure is not None and outcome.failure.code not in _FAILS_AGAIN


def files_of(prepared: Prepared, outcome: Outcome) -> Files:
    """Hashes all of it, which takes as long as the disk does. Raises OSError when the output folder has gone."""
    folder = prepared.folders.work / LEFT / prepared.job.unit_dir.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    prepared.job.out_dir.rename(folder)
    if outcome.facts is not None:
        paths = {name: folder / name for name in (*output_names(prepared.offer.spec), SKETCH_FILE)}
        # What is missing or odd is found out, and said, by whoever reports it.
        whole = {name: path for name, path in paths.items() if path.is_file() and not path.is_symlink()}
        return Files(folder=folder, paths=whole, blobs=tuple(_blob(name, path) for name, path in whole.items()))
    packed = _packed(folder, prepared.offer) if may_go_on(outcome) else None
    if packed is None:
        return Files(folder=folder, paths={}, blobs=())
    blob = BlobRef(name=PACKED, digest=packed.digest, size_bytes=packed.size_bytes)
    return Files(folder=folder, paths={PACKED: packed.path}, blobs=(blob,))


def _packed(folder: Path, offer: LeaseOffer) -> Packed | None:
    try:
        return pack(folder, offer.spec, folder.with_name(f"{folder.name}.{PACKED}"))
    except InvalidError:
        return None  # it was too short to commit anything
    except OSError as error:
        log.warning("half-done unit not packed", lease_id=offer.lease_id, error=str(error))
        return None


def _blob(name: str, path: Path) -> BlobRef:
    return BlobRef(name=name, digest=digest_of_file(path), size_bytes=path.stat().st_size)
