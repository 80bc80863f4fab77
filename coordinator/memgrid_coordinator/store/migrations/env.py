"""How Alembic reaches the database; `store/engine.py` starts it."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

from memgrid_coordinator.store import tables as _tables  # noqa: F401 - declares the metadata
from memgrid_coordinator.store.dialects import open_engine

url = context.config.get_main_option("sqlalchemy.url")
assert url is not None
engine = open_engine(url)
with engine.connect().execution_options(memgrid_writes=True) as connection:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
