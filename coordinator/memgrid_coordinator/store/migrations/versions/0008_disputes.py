"""Where two reports on a unit differ, so that their audits look there; and agreement apart from audits passed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("disputed", sa.String(), nullable=True))
    op.add_column("trust_records", sa.Column("agreed", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("trust_records", "agreed")
    op.drop_column("leases", "disputed")
