"""From a lease to a folder the worker can run: fetched, checked, and under the right names."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from memgrid.errors import InvalidError
from memgrid.kinds.registry import kind_of
from memgrid.specs import PrefillSpec, Spec, parse_spec, unit_key_of
from memgrid.units import LeaseOffer, ModelFiles
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.isolation import Folders
from memgrid_volunteer.kept import keep, take_back
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.outbox import safe_name
from memgrid_volunteer.transfers import Fetches
from memgrid_volunteer.travelling import bring

_PAST = re.compile(r"past/\d{4}\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A unit ready to run; `pins` keeps its model in the cache until it is closed."""

    offer: LeaseOffer
    model: ModelFiles
    job: Job
    folders: Folders
    pins: contextlib.ExitStack

    def clear(self) -> None:
        """Remove the unit's folders; its results have been moved out before, if there are any."""
        self.pins.close()
        for folder in (self.job.unit_dir, self.job.out_dir):
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self) -> None:
        """Remove them, but for what the next lease of the same unit can go on from."""
        self.pins.close()
        keep(self.job.unit_dir.name, self.folders)


def check_offer(offer: LeaseOffer) -> Spec:
    """The spec of an offer; raises InvalidError unless the offer says consistently what is to be computed.

    Its inputs are those that the spec names by digest, each once, and for a prefill that continues others also their
    caches: no other name can reach the unit's folder.
    """
    safe_name(offer.lease_id)
    if unit_key_of(offer.spec) != offer.unit_key:
        raise InvalidError(f"lease {offer.lease_id}: its spec is not that of unit {offer.unit_key}")
    spec = parse_spec(offer.spec)
    if spec.model != offer.model:
        raise InvalidError(f"lease {offer.lease_id}: its spec names another model")
    wanted = {file.name: file.digest for file in kind_of(spec).inputs(spec)}
    continues = isinstance(spec, PrefillSpec) and spec.parent is not None
    seen: set[str] = set()
    for blob in offer.inputs:
        if blob.name in seen or not (blob.name in wanted or (continues and _PAST.fullmatch(blob.name))):
            raise InvalidError(f"lease {offer.lease_id}: an input may not be named {blob.name[:80]!r}")
        if wanted.get(blob.name, blob.digest) != blob.digest:
            raise InvalidError(f"lease {offer.lease_id}: its {blob.name} is not that of the spec")
        seen.add(blob.name)
    for name in wanted:
        if name not in seen:
            raise InvalidError(f"lease {offer.lease_id}: its {name} is missing")
    return spec


async def prepare(
    offer: LeaseOffer, model: ModelFiles, *, transfers: Fetches, cache: BlobCache, work: Path, tag: str = ""
) -> Prepared:
    """Fetch what is missing and lay the unit's folders out; raises a MemgridError that says what can't be had.

    `tag` stands before the lease's id in their names: it keeps grids apart.
    """
    spec = check_offer(offer)
    blobs = (*model.files, *offer.inputs)
    with contextlib.ExitStack() as pins:
        pins.enter_context(cache.pinned(blob.digest for blob in blobs))
        for blob in blobs:
            await transfers.fetch(blob)
        await bring(offer, transfers=transfers, cache=cache, work=work, tag=tag)
        model_dir = await asyncio.to_thread(cache.model_folder, model)
        folders, name = Folders(cache=cache.folder, work=work), tag + safe_name(offer.lease_id)
        await asyncio.to_thread(_lay_out, offer, name, folders, cache)
        job = Job(kind=spec.kind, unit_dir=folders.inputs / name, model_dir=model_dir, out_dir=folders.outputs / name)
        return Prepared(offer=offer, model=model, job=job, folders=folders, pins=pins.pop_all())


def _lay_out(offer: LeaseOffer, lease: str, folders: Folders, cache: BlobCache) -> None:
    unit, out = folders.inputs / lease, folders.outputs / lease
    for folder in (unit, out):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("past", *{str(Path(blob.name).parent) for blob in offer.inputs}):
        (unit / name).mkdir(parents=True, exist_ok=True)
    folders.outputs.mkdir(parents=True, exist_ok=True)
    take_back(offer.unit_key, offer.spec, out, folders.work)
    (unit / "spec.json").write_bytes(offer.spec)
    for blob in offer.inputs:
        _show(cache.path_of(blob.digest), unit / blob.name)


def _show(blob: Path, name: Path) -> None:
    # Not a hard link: where inputs are not read-only, the worker must not be able to change the cache.
    try:
        name.symlink_to(blob)
    except OSError:
        shutil.copyfile(blob, name)
