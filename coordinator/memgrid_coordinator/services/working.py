"""Have something made on the engine: content in by address, content out by address."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memgrid.digest import Digest, canonical_json, digest_of_file
from memgrid.kinds.refusal import RefusedError
from memgrid.units import ReasonCode
from memgrid_coordinator.heavy.made_file import MadeFile
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.recipes.steps import Seen, Work
from memgrid_coordinator.records import Made
from memgrid_coordinator.services.models import ModelFolders
from memgrid_coordinator.store.blobs import BlobStore


class Working:
    """Runs a recipe's work. Twice the same work gives the same content, so that doing it again costs time only."""

    def __init__(
        self, *, blobs: BlobStore, engine: Engine, replays: Engine, models: ModelFolders, folder: Path
    ) -> None:
        self._blobs = blobs
        self._engine = engine
        self._replays = replays
        self._models = models
        self._folder = folder

    async def make(self, seen: Seen, work: Work) -> list[Made]:
        """What was made, in the content store; raises RefusedError (STATE_MISSING) when what it needs is gone."""
        wanted = [digest for digests in work.files.values() for digest in digests]
        async with self._blobs.at_hand(wanted) as paths:
            for name, digests in work.files.items():
                for digest in digests:
                    _check_here(digest, name, paths)
            files = {name: tuple(paths[digest] for digest in digests) for name, digests in work.files.items()}
            return await self._run(seen, work, files)

    async def _run(self, seen: Seen, work: Work, files: dict[str, tuple[Path, ...]]) -> list[Made]:
        options: dict[str, Any] = dict(work.options)
        if work.needs_model:
            options["model_folder"] = await self._models.folder_of(seen.base.digest)
        self._folder.mkdir(parents=True, exist_ok=True)
        out = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._folder))
        # What needs a model takes long, as replays do: quick work must not wait for it.
        engine = self._replays if work.needs_model else self._engine
        try:
            made: Sequence[MadeFile] = await engine.run(work.function, out=out, files=files, **options)
            return [await asyncio.to_thread(self._keep, one) for one in made]
        finally:
            await asyncio.to_thread(shutil.rmtree, out, ignore_errors=True)

    def clear(self) -> None:
        """Remove what a killed process left; call it before anything is made."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _keep(self, made: MadeFile) -> Made:
        if made.path is None:
            digest = self._blobs.put_bytes(canonical_json(made.detail))
        else:
            digest = digest_of_file(made.path)
            self._blobs.adopt(made.path, digest)
        return Made(name=made.name, digest=digest, detail=json.dumps(made.detail))


def _check_here(digest: Digest, name: str, paths: Mapping[Digest, Path]) -> None:
    if digest not in paths:
        raise RefusedError(ReasonCode.STATE_MISSING, f"{name}, {digest[:19]}…, is gone from the grid's store")
