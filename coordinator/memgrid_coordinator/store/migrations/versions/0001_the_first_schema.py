"""the first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from memgrid_coordinator.store.types import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("account_id"),
        sa.UniqueConstraint("public_key"),
    )
    op.create_table(
        "campaigns",
        sa.Column("campaign_id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("spec", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("campaign_id"),
        sa.UniqueConstraint("request_id"),
    )
    with op.batch_alter_table("campaigns", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_campaigns_created_at"), ["created_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_campaigns_state"), ["state"], unique=False)

    op.create_table(
        "events",
        sa.Column("event_id", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=True),
        sa.Column("lease_id", sa.String(), nullable=True),
        sa.Column("host_id", sa.String(), nullable=True),
        sa.Column("campaign_id", sa.String(), nullable=True),
        sa.Column("cube_digest", sa.String(), nullable=True),
        sa.Column("reason_code", sa.String(), nullable=True),
        sa.Column("reason_text", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_campaign_id"), ["campaign_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_cube_digest"), ["cube_digest"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_host_id"), ["host_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "invites",
        sa.Column("code_digest", sa.String(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("code_digest"),
    )
    op.create_table(
        "models",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("repository", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("files", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "pool_blobs",
        sa.Column("repository", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("repository", "digest"),
    )
    with op.batch_alter_table("pool_blobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pool_blobs_digest"), ["digest"], unique=False)

    op.create_table(
        "pool_cubes",
        sa.Column("pool_cube_id", sa.Integer(), nullable=False),
        sa.Column("repository", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("cube_digest", sa.String(), nullable=False),
        sa.Column("manifest_digest", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("search_text", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("payload_bytes", sa.BigInteger(), nullable=False),
        sa.Column("licence", sa.String(), nullable=False),
        sa.Column("produced_flops", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("pool_cube_id"),
        sa.UniqueConstraint("repository", "tag"),
    )
    with op.batch_alter_table("pool_cubes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pool_cubes_created_at"), ["created_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_pool_cubes_cube_digest"), ["cube_digest"], unique=False)

    op.create_table(
        "pool_manifests",
        sa.Column("repository", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("artifact_type", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=True),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("repository", "digest"),
    )
    with op.batch_alter_table("pool_manifests", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pool_manifests_subject"), ["subject"], unique=False)

    op.create_table(
        "pool_tags",
        sa.Column("repository", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("repository", "tag"),
    )
    op.create_table(
        "units",
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("tokens_digest", sa.String(), nullable=False),
        sa.Column("token_count", sa.Integer(), nullable=False),
        sa.Column("flops", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("min_replicas", sa.Integer(), nullable=False),
        sa.Column("max_replicas", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("vacancies", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("output_digest", sa.String(), nullable=True),
        sa.Column("output_bytes", sa.BigInteger(), nullable=False),
        sa.Column("accepted_lease_id", sa.String(), nullable=True),
        sa.Column("opened_at", UtcDateTime(), nullable=True),
        sa.Column("settled_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["units.unit_id"],
        ),
        sa.PrimaryKeyConstraint("unit_id"),
        sa.UniqueConstraint("key"),
    )
    with op.batch_alter_table("units", schema=None) as batch_op:
        batch_op.create_index("units_by_kind", ["kind", "state"], unique=False)
        batch_op.create_index("units_by_parent", ["parent_id"], unique=False)
        batch_op.create_index(
            "units_undecided",
            ["unit_id"],
            unique=False,
            sqlite_where=sa.text("state = 'open' AND vacancies = 0"),
            postgresql_where=sa.text("state = 'open' AND vacancies = 0"),
        )

    op.create_table(
        "documents",
        sa.Column("document_id", sa.Integer(), nullable=False),
        sa.Column("campaign_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("source_uri", sa.String(), nullable=False),
        sa.Column("source_digest", sa.String(), nullable=False),
        sa.Column("licence", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("cube", sa.String(), nullable=False),
        sa.Column("cube_digest", sa.String(), nullable=True),
        sa.Column("reason_code", sa.String(), nullable=True),
        sa.Column("reason_text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"],
            ["campaigns.campaign_id"],
        ),
        sa.PrimaryKeyConstraint("document_id"),
        sa.UniqueConstraint("campaign_id", "name"),
    )
    with op.batch_alter_table("documents", schema=None) as batch_op:
        batch_op.create_index("documents_by_state", ["state"], unique=False)

    op.create_table(
        "hosts",
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("facts", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=True),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("flops_per_s", sa.Float(), nullable=False),
        sa.Column("recent_faults", sa.Integer(), nullable=False),
        sa.Column("suspended_until", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["accounts.account_id"],
        ),
        sa.PrimaryKeyConstraint("host_id"),
        sa.UniqueConstraint("account_id", "label"),
    )
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_hosts_seen_at"), ["seen_at"], unique=False)

    op.create_table(
        "document_units",
        sa.Column("document_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.document_id"],
        ),
        sa.ForeignKeyConstraint(
            ["unit_id"],
            ["units.unit_id"],
        ),
        sa.PrimaryKeyConstraint("document_id", "position"),
    )
    with op.batch_alter_table("document_units", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_document_units_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "leases",
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("granted_at", UtcDateTime(), nullable=False),
        sa.Column("deadline_at", UtcDateTime(), nullable=False),
        sa.Column("reported_at", UtcDateTime(), nullable=True),
        sa.Column("outputs", sa.String(), nullable=False),
        sa.Column("sketch", sa.LargeBinary(), nullable=False),
        sa.Column("facts", sa.String(), nullable=False),
        sa.Column("statement_id", sa.Integer(), nullable=True),
        sa.Column("reason_code", sa.String(), nullable=True),
        sa.Column("reason_text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["hosts.host_id"],
        ),
        sa.ForeignKeyConstraint(
            ["unit_id"],
            ["units.unit_id"],
        ),
        sa.PrimaryKeyConstraint("lease_id"),
    )
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.create_index("leases_by_unit", ["unit_id", "account_id"], unique=False)
        batch_op.create_index(
            "leases_due",
            ["deadline_at"],
            unique=False,
            sqlite_where=sa.text("state = 'leased'"),
            postgresql_where=sa.text("state = 'leased'"),
        )
        batch_op.create_index(
            "leases_held",
            ["host_id"],
            unique=False,
            sqlite_where=sa.text("state = 'leased'"),
            postgresql_where=sa.text("state = 'leased'"),
        )

    op.create_table(
        "statements",
        sa.Column("statement_id", sa.Integer(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["hosts.host_id"],
        ),
        sa.PrimaryKeyConstraint("statement_id"),
    )
    op.create_table(
        "credits",
        sa.Column("credit_id", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.Column("flops", sa.BigInteger(), nullable=False),
        sa.Column("granted_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["lease_id"],
            ["leases.lease_id"],
        ),
        sa.PrimaryKeyConstraint("credit_id"),
        sa.UniqueConstraint("lease_id"),
    )
    with op.batch_alter_table("credits", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_credits_account_id"), ["account_id"], unique=False)

    op.create_table(
        "uploads",
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["hosts.host_id"],
        ),
        sa.ForeignKeyConstraint(
            ["lease_id"],
            ["leases.lease_id"],
        ),
        sa.ForeignKeyConstraint(
            ["unit_id"],
            ["units.unit_id"],
        ),
        sa.PrimaryKeyConstraint("lease_id"),
    )
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_uploads_host_id"), ["host_id"], unique=False)
        batch_op.create_index("uploads_due", ["state", "due_at"], unique=False)

    # Alembic can't generate an index with a direction; the condition makes it as small as the queue.
    op.create_index(
        "units_to_lease",
        "units",
        [sa.text("priority DESC"), "unit_id"],
        sqlite_where=sa.text("state = 'open' AND vacancies > 0"),
        postgresql_where=sa.text("state = 'open' AND vacancies > 0"),
    )


def downgrade() -> None:
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.drop_index("uploads_due")
        batch_op.drop_index(batch_op.f("ix_uploads_host_id"))

    op.drop_table("uploads")
    with op.batch_alter_table("credits", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_credits_account_id"))

    op.drop_table("credits")
    op.drop_table("statements")
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.drop_index(
            "leases_held", sqlite_where=sa.text("state = 'leased'"), postgresql_where=sa.text("state = 'leased'")
        )
        batch_op.drop_index(
            "leases_due", sqlite_where=sa.text("state = 'leased'"), postgresql_where=sa.text("state = 'leased'")
        )
        batch_op.drop_index("leases_by_unit")

    op.drop_table("leases")
    with op.batch_alter_table("document_units", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_document_units_unit_id"))

    op.drop_table("document_units")
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_hosts_seen_at"))

    op.drop_table("hosts")
    with op.batch_alter_table("documents", schema=None) as batch_op:
        batch_op.drop_index("documents_by_state")

    op.drop_table("documents")
    with op.batch_alter_table("units", schema=None) as batch_op:
        batch_op.drop_index(
            "units_undecided",
            sqlite_where=sa.text("state = 'open' AND vacancies = 0"),
            postgresql_where=sa.text("state = 'open' AND vacancies = 0"),
        )
        batch_op.drop_index("units_by_parent")
        batch_op.drop_index("units_by_kind")

    op.drop_table("units")
    op.drop_table("pool_tags")
    with op.batch_alter_table("pool_manifests", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_pool_manifests_subject"))

    op.drop_table("pool_manifests")
    with op.batch_alter_table("pool_cubes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_pool_cubes_cube_digest"))
        batch_op.drop_index(batch_op.f("ix_pool_cubes_created_at"))

    op.drop_table("pool_cubes")
    with op.batch_alter_table("pool_blobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_pool_blobs_digest"))

    op.drop_table("pool_blobs")
    op.drop_table("models")
    op.drop_table("invites")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_events_unit_id"))
        batch_op.drop_index(batch_op.f("ix_events_host_id"))
        batch_op.drop_index(batch_op.f("ix_events_cube_digest"))
        batch_op.drop_index(batch_op.f("ix_events_campaign_id"))

    op.drop_table("events")
    with op.batch_alter_table("campaigns", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_campaigns_state"))
        batch_op.drop_index(batch_op.f("ix_campaigns_created_at"))

    op.drop_table("campaigns")
    op.drop_table("accounts")
