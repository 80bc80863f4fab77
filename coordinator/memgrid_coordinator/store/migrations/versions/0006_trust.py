"""audits, what they showed of hosts, limits measured for models, retracted cubes, networks of hosts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from memgrid_coordinator.store.types import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
_WANTED = sa.text("state = 'wanted'")


def upgrade() -> None:
    op.add_column("hosts", sa.Column("network", sa.String(), nullable=False, server_default=""))
    op.add_column("units", sa.Column("epsilon", sa.Float(), nullable=True))
    op.add_column("units", sa.Column("f_bar", sa.Float(), nullable=True))
    op.add_column("leases", sa.Column("is_drawn", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("leases", sa.Column("network", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "audits",
        sa.Column("audit_id", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("numerics_class", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reported_at", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("passed_since", sa.Integer(), nullable=False),
        sa.Column("done_at", UtcDateTime(), nullable=True),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("found", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"]),
        sa.ForeignKeyConstraint(["unit_id"], ["units.unit_id"]),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.host_id"]),
        sa.PrimaryKeyConstraint("audit_id"),
    )
    op.create_index("audits_due", "audits", ["due_at"], sqlite_where=_WANTED, postgresql_where=_WANTED)
    op.create_index("audits_open", "audits", ["host_id"], sqlite_where=_WANTED, postgresql_where=_WANTED)
    op.create_index("audits_of_class", "audits", ["numerics_class", "done_at"])
    op.create_index("ix_audits_lease_id", "audits", ["lease_id"])
    op.create_table(
        "trust_records",
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("numerics_class", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("results", sa.Integer(), nullable=False),
        sa.Column("passed", sa.Integer(), nullable=False),
        sa.Column("faults", sa.Integer(), nullable=False),
        sa.Column("recent", sa.String(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.host_id"]),
        sa.PrimaryKeyConstraint("host_id", "kind", "numerics_class"),
    )
    op.create_index("ix_trust_records_account_id", "trust_records", ["account_id"])
    op.create_table(
        "calibrations",
        sa.Column("calibration_id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("evidence", sa.String(), nullable=False),
        sa.Column("made_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("calibration_id"),
    )
    op.create_index("ix_calibrations_model", "calibrations", ["model"])
    op.create_table(
        "class_suspensions",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("numerics_class", sa.String(), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("audits", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("hosts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "numerics_class"),
    )
    op.create_table(
        "retractions",
        sa.Column("retraction_id", sa.Integer(), nullable=False),
        sa.Column("repository", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("cube_digest", sa.String(), nullable=False),
        sa.Column("manifest_digest", sa.String(), nullable=False),
        sa.Column("reason_code", sa.String(), nullable=False),
        sa.Column("reason_text", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("retraction_id"),
    )
    op.create_index("ix_retractions_cube_digest", "retractions", ["cube_digest"])
    op.create_index("ix_retractions_manifest_digest", "retractions", ["manifest_digest"])


def downgrade() -> None:
    op.drop_table("retractions")
    op.drop_table("class_suspensions")
    op.drop_table("calibrations")
    op.drop_table("trust_records")
    op.drop_table("audits")
    for table, column in (
        ("leases", "network"),
        ("leases", "is_drawn"),
        ("units", "f_bar"),
        ("units", "epsilon"),
        ("hosts", "network"),
    ):
        op.drop_column(table, column)
