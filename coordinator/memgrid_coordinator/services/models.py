"""Models in the pool, as volunteers fetch them, as the planner reads them, and as the engine loads them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from memgrid.digest import Digest
from memgrid.errors import InvalidError, UnknownCubeError, UnknownModelError
from memgrid.units import BlobRef
from memgrid_coordinator.policy.manifests import model_files, parse_manifest
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledModel:
    """A model as it was pushed: where from, and its files with the paths the data plane serves them at."""

    repository: str
    manifest_digest: Digest
    files: tuple[BlobRef, ...]


class ModelFolders:
    """What hosts get of a model, in one folder: its weights and its configuration, but no tokenizer."""

    def __init__(self, store: Store, catalogue: Catalogue, blobs: BlobStore, folder: Path) -> None:
        self._store = store
        self._catalogue = catalogue
        self._blobs = blobs
        self._folder = folder

    async def folder_of(self, model: Digest) -> Path:
        """The folder of a model that a campaign named, to be read only; raises UnknownIdError when a file is gone."""
        known = await self._store.read(lambda connection: self._catalogue.files(connection, model))
        name = "worker-" + model.removeprefix("sha256:")
        return await asyncio.to_thread(_materialise, self._blobs, known.files, self._folder, name)


class Models:
    """Finds models by their names in the pool."""

    def __init__(self, publishing: Publishing, blobs: BlobStore, folder: Path) -> None:
        self._publishing = publishing
        self._blobs = blobs
        self._folder = folder

    async def find(self, reference: str) -> PooledModel:
        """The model a name like `models/x[:tag][@digest]` stands for; raises UnknownModelError, InvalidError."""
        try:
            pushed = await self._publishing.resolve(reference)
        except UnknownCubeError:
            raise UnknownModelError(
                f"model {reference} is not in the pool; push it with `memgrid model push FOLDER NAME`"
            ) from None
        try:
            files = model_files(parse_manifest(pushed.content, pushed.media_type))
        except InvalidError as error:
            raise InvalidError(f"{reference}: {error}") from None
        return PooledModel(
            repository=pushed.repository,
            manifest_digest=pushed.digest,
            files=tuple(
                BlobRef(
                    name=name,
                    digest=file.digest,
                    size_bytes=file.size_bytes,
                    path=f"/v2/{pushed.repository}/blobs/{file.digest}",
                )
                for name, file in files.items()
            ),
        )

    async def folder_of(self, model: PooledModel) -> Path:
        """The model's files in one folder, under their names, to be read only; they take no further room."""
        name = model.manifest_digest.removeprefix("sha256:")
        return await asyncio.to_thread(_materialise, self._blobs, model.files, self._folder, name)


def _materialise(blobs: BlobStore, files: tuple[BlobRef, ...], folder: Path, name: str) -> Path:
    target = folder / name
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder, prefix="draft-"))
    try:
        for file in files:
            blobs.link(file.digest, draft / file.name)
        draft.rename(target)
    except OSError:
        # Whoever was faster made the same folder: a name with content can't be renamed over.
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target
