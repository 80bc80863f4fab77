"""how often cubes were pulled, and an index of what was rejected."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cube_pulls",
        sa.Column("cube_digest", sa.String(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("pulls", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cube_digest", "day"),
    )
    op.create_index(
        "leases_rejected",
        "leases",
        ["reason_code"],
        sqlite_where=sa.text("state = 'rejected'"),
        postgresql_where=sa.text("state = 'rejected'"),
    )


def downgrade() -> None:
    op.drop_index("leases_rejected", "leases")
    op.drop_table("cube_pulls")
