"""The schema's version: what the database has, what this release needs, and the way from one to the other."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, text

from memgrid.errors import InvalidError
from memgrid_coordinator.store.dialects import open_engine

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(url: str) -> None:
    """Bring the schema to the newest version; raises InvalidError when it is newer than this release.

    Several coordinators may start at once: they take turns, and all but the first find nothing to do.
    """
    engine = open_engine(url)
    try:
        found = version_of(engine)
    finally:
        engine.dispose()
    if found == versions()[-1]:
        return  # Alembic takes a quarter of a second to load
    if found is not None and found not in versions():
        raise InvalidError(
            f"--database: its schema {found} is newer than this release, which knows {versions()[-1]}; "
            "upgrade memgrid, or restore a backup"
        )
    from alembic import command

    command.upgrade(alembic_config(url), "head")


def version_of(engine: Engine) -> str | None:
    """The version of the schema; None of an empty database."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return version


@cache
def versions() -> tuple[str, ...]:
    """All that this release knows, oldest first; each file's name begins with its own."""
    return tuple(sorted(path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*_*.py")))


def alembic_config(url: str) -> Config:
    """Raises nothing; Alembic itself reads the folder."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config
