"""How far the schema of a database is behind this release, in words."""

from __future__ import annotations

from alembic.script import ScriptDirectory

from memgrid_coordinator.store.dialects import open_engine
from memgrid_coordinator.store.upgrading import alembic_config, version_of


def pending(version: str | None) -> list[str]:
    """What `migrate` would apply to a schema of that version: one line each, in order.

    >>> [line[:4] for line in pending("0001")][:2]
    ['0002', '0003']
    """
    scripts = list(ScriptDirectory.from_config(alembic_config("sqlite://")).walk_revisions())
    newer = [script for script in reversed(scripts) if version is None or script.revision > version]
    return [f"{script.revision} {script.doc}" for script in newer]


def version_at(url: str) -> str | None:
    """The schema's version in the database at a URL, which stays as it is; None of an empty one."""
    engine = open_engine(url)
    try:
        return version_of(engine)
    finally:
        engine.dispose()
