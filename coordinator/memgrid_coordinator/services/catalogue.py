"""The models campaigns named: their geometry and files, looked up once."""

from __future__ import annotations

import json

from sqlalchemy import Connection

from memgrid.cube.identity import ModelIdentity
from memgrid.digest import Digest
from memgrid.kinds.prefill import ModelGeometry
from memgrid.units import BlobRef, ModelFiles
from memgrid_coordinator.store import models


class Catalogue:
    """A cache over the models table; its rows never change."""

    def __init__(self) -> None:
        self._identities: dict[Digest, ModelIdentity] = {}
        self._files: dict[Digest, ModelFiles] = {}

    def add(
        self, connection: Connection, identity: ModelIdentity, repository: str, files: tuple[BlobRef, ...]
    ) -> None:
        models.add(
            connection,
            identity.digest,
            repository=repository,
            identity=json.dumps(identity.to_json()),
            files=files,
        )

    def identity(self, connection: Connection, model: Digest) -> ModelIdentity:
        if model not in self._identities:
            self._identities[model] = ModelIdentity.from_json(json.loads(models.identity(connection, model)))
        return self._identities[model]

    def geometry(self, connection: Connection, model: Digest) -> ModelGeometry:
        return self.identity(connection, model).geometry

    def files(self, connection: Connection, model: Digest) -> ModelFiles:
        if model not in self._files:
            self._files[model] = models.files(connection, model)
        return self._files[model]
