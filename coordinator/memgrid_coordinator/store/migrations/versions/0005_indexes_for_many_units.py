"""indexes that answer what is asked every few seconds, without a look at the rows of a million units."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create("units_waiting_since", "units", ["opened_at"], "state = 'open' AND vacancies > 0 AND NOT on_hold")
    _create("leases_reported", "leases", ["unit_id"], "state = 'reported'")
    op.create_index("leases_summed", "leases", ["unit_id", "account_id", "state", "compute_s"])
    op.drop_index("leases_by_unit", "leases")


def downgrade() -> None:
    op.create_index("leases_by_unit", "leases", ["unit_id", "account_id"])
    op.drop_index("leases_summed", "leases")
    op.drop_index("leases_reported", "leases")
    op.drop_index("units_waiting_since", "units")


def _create(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
