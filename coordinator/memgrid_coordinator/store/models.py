"""Models that campaigns named."""

from __future__ import annotations

import json
from dataclasses import asdict

from sqlalchemy import Connection, insert, select

from memgrid.digest import Digest
from memgrid.units import BlobRef, ModelFiles
from memgrid_coordinator.store.tables import models


def add(
    connection: Connection, digest: Digest, *, repository: str, identity: str, files: tuple[BlobRef, ...]
) -> None:
    """Remember a model; the same one again changes nothing."""
    if connection.execute(select(models.c.digest).where(models.c.digest == digest)).scalar() is None:
        listed = json.dumps([asdict(file) for file in files])
        connection.execute(
            insert(models).values(digest=digest, repository=repository, identity=identity, files=listed)
        )


def identity(connection: Connection, digest: Digest) -> str:
    """The identity of a model as JSON; the caller knows that it exists."""
    found: str = connection.execute(select(models.c.identity).where(models.c.digest == digest)).scalar_one()
    return found


def files(connection: Connection, digest: Digest) -> ModelFiles:
    found = connection.execute(select(models.c.files).where(models.c.digest == digest)).scalar_one()
    return ModelFiles(digest=digest, files=tuple(BlobRef(**entry) for entry in json.loads(found)))
