"""Which version the schema of a database has, and which versions this release knows."""

from __future__ import annotations

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from memgrid_coordinator.store.engine import alembic_config, open_engine


def newest() -> str:
    """The version that this release works with."""
    head = _scripts().get_current_head()
    assert head is not None, "there is at least one migration"
    return head


def known() -> list[str]:
    """All versions, oldest first."""
    return [script.revision for script in reversed(list(_scripts().walk_revisions()))]


def pending(version: str | None) -> list[str]:
    """What `migrate` would apply to a schema of that version: one line each, in order.

    >>> pending(newest())
    []
    """
    scripts = list(reversed(list(_scripts().walk_revisions())))
    versions = [script.revision for script in scripts]
    begin = 0 if version is None else versions.index(version) + 1
    return [f"{script.revision} {script.doc}" for script in scripts[begin:]]


def version_of(engine: Engine) -> str | None:
    """The schema's version; None for an empty database."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def version_at(url: str) -> str | None:
    """The same, of the database at a URL; nothing is changed there."""
    engine = open_engine(url)
    try:
        return version_of(engine)
    finally:
        engine.dispose()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config("sqlite://"))
