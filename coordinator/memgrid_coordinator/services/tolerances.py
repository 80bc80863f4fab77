"""The limits that hold for a model: those that this grid measured, and the built-in ones where it measured none."""

from __future__ import annotations

import asyncio
import json
from functools import partial

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.kinds.tolerances import BUILT_IN, Tolerances
from memgrid_coordinator.heavy.calibration.evidence import evidence
from memgrid_coordinator.records import Caller
from memgrid_coordinator.services.calibrated import Calibrated
from memgrid_coordinator.store import audit_log, calibrations
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.calibrations import Calibration
from memgrid_coordinator.store.engine import Store


class ModelTolerances:
    """Finds the limits of a model; a table is read once, for content never changes."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._read: dict[Digest, Tolerances] = {}

    async def of(self, model: Digest) -> Tolerances:
        """Limits for every check. Raises UnknownIdError when the content store has lost what was measured."""
        last = await self._store.read(partial(calibrations.latest, model=model))
        if last is None:
            return BUILT_IN
        if last.tolerances not in self._read:
            content = await asyncio.to_thread(self._blobs.read_bytes, last.tolerances)
            self._read[last.tolerances] = Tolerances.from_bytes(content).over(BUILT_IN)
        return self._read[last.tolerances]

    async def is_calibrated(self, model: Digest) -> bool:
        return await self._store.read(partial(calibrations.latest, model=model)) is not None


async def keep(store: Store, blobs: BlobStore, clock: Clock, caller: Caller, calibrated: Calibrated) -> Calibration:
    """Let a calibration count from now on; the coordinator may run meanwhile. It must not have been refused."""
    assert not calibrated.is_refused, "a table that can't tell cheats from honest answers is not for use"
    found = json.dumps(
        evidence(
            facts=calibrated.facts,
            rows=calibrated.rows,
            samples=calibrated.samples,
            lossless=calibrated.lossless,
        ),
        allow_nan=False,
    )
    now = clock.now()
    kept = Calibration(
        model=calibrated.model.digest,
        tolerances=await asyncio.to_thread(blobs.put_bytes, calibrated.tolerances(now).to_bytes()),
        evidence=await asyncio.to_thread(blobs.put_bytes, found.encode()),
        made_at=now,
    )

    def step(connection: Connection) -> None:
        calibrations.add(connection, kept)
        audit_log.note(connection, caller, "calibrate", kept.model, now, detail=kept.tolerances)

    await store.write(step)
    return kept
