"""What is done of units whose leases were given back, for other hosts of the same account."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from memgrid_coordinator.store.types import UtcDateTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=True),
        sa.Column("ends_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"]),
        sa.ForeignKeyConstraint(["unit_id"], ["units.unit_id"]),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.host_id"]),
        sa.PrimaryKeyConstraint("lease_id"),
    )
    op.create_index("ix_checkpoints_unit_id", "checkpoints", ["unit_id"])
    op.create_index("ix_checkpoints_account_id", "checkpoints", ["account_id"])


def downgrade() -> None:
    op.drop_table("checkpoints")
