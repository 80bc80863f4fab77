"""documents that advance in stages: what was made for them, several files an upload, units on hold."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from memgrid_coordinator.store.types import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OPEN = "state = 'open' AND vacancies > 0"
_TO_LEASE = f"{_OPEN} AND NOT on_hold"


def upgrade() -> None:
    op.add_column("campaigns", sa.Column("recipe", sa.String(), nullable=False, server_default="activation"))
    op.add_column("documents", sa.Column("progress", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "document_blobs",
        sa.Column("document_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["document_id"], ["documents.document_id"]),
        sa.PrimaryKeyConstraint("document_id", "name"),
    )
    op.add_column("units", sa.Column("reason_code", sa.String(), nullable=True))
    op.add_column("units", sa.Column("reason_text", sa.String(), nullable=False, server_default=""))
    op.add_column("units", sa.Column("on_hold", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.drop_index("units_to_lease", "units")
    _index_what_to_lease(_TO_LEASE)
    op.add_column("leases", sa.Column("compute_s", sa.Float(), nullable=False, server_default="0"))
    _sum_up_leases()
    op.add_column("pool_cubes", sa.Column("gap_closed", sa.Float(), nullable=True))
    _rebuild_uploads("lease_id", "name")


def downgrade() -> None:
    _rebuild_uploads("lease_id")
    op.drop_column("pool_cubes", "gap_closed")
    op.drop_column("leases", "compute_s")
    op.drop_index("units_to_lease", "units")
    _index_what_to_lease(_OPEN)
    for column in ("on_hold", "reason_text", "reason_code"):
        op.drop_column("units", column)
    op.drop_table("document_blobs")
    op.drop_column("documents", "progress")
    op.drop_column("campaigns", "recipe")


def _index_what_to_lease(condition: str) -> None:
    where = sa.text(condition)
    op.create_index(
        "units_to_lease",
        "units",
        [sa.text("priority DESC"), "unit_id"],
        sqlite_where=where,
        postgresql_where=where,
    )


def _sum_up_leases() -> None:
    """What hosts said so far, where it can be summed."""
    connection = op.get_bind()
    leases = sa.table("leases", sa.column("lease_id"), sa.column("facts"), sa.column("compute_s"))
    found = connection.execute(sa.select(leases.c.lease_id, leases.c.facts).where(leases.c.facts != "")).all()
    rows = [{"reported": lease_id, "seconds": float(json.loads(facts)[1])} for lease_id, facts in found]
    if rows:
        update = sa.update(leases).where(leases.c.lease_id == sa.bindparam("reported"))
        connection.execute(update.values(compute_s=sa.bindparam("seconds")), rows)


def _rebuild_uploads(*key: str) -> None:
    """The table anew, under another primary key; SQLite can't change one in place."""
    # The names of indexes are unique in the whole database.
    op.drop_index("uploads_due", "uploads")
    op.drop_index("ix_uploads_host_id", "uploads")
    op.rename_table("uploads", "uploads_before")
    op.create_table(
        "uploads",
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.host_id"]),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"]),
        sa.ForeignKeyConstraint(["unit_id"], ["units.unit_id"]),
        sa.PrimaryKeyConstraint(*key),
    )
    columns = "lease_id, name, host_id, unit_id, digest, size_bytes, state, due_at"
    # An older release knows caches only.
    once = "" if "name" in key else " WHERE name = 'kv.safetensors'"
    op.execute(f"INSERT INTO uploads ({columns}) SELECT {columns} FROM uploads_before{once}")
    op.drop_table("uploads_before")
    op.create_index("uploads_due", "uploads", ["state", "due_at"])
    op.create_index("ix_uploads_host_id", "uploads", ["host_id"])
