"""Where two reports on a unit differ, so that their audits look there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("disputed", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("leases", "disputed")
