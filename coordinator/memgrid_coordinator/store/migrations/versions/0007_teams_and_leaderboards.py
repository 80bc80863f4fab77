"""teams, a ledger that the database itself keeps from being changed, and its sums by day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from memgrid_coordinator.store.types import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_EPOCH_DAY = 719_163
"""1970-01-01, in days since the beginning of the year 1."""
_DAY_US = 86_400_000_000
_SAID = "the ledger is written once: a line that was wrong is taken back by another"
_COMMON = "lease_id, account_id, host_id, unit_id, flops, granted_at"


def upgrade() -> None:
    op.create_table(
        "teams",
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("likeness", sa.String(), nullable=False),
        sa.Column("code_digest", sa.String(), nullable=False),
        sa.Column("founded_by", sa.String(), nullable=False),
        sa.Column("founded_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("team_id"),
        sa.UniqueConstraint("likeness"),
    )
    op.create_index("ix_teams_founded_by", "teams", ["founded_by"])
    op.add_column("accounts", sa.Column("team_id", sa.String(), nullable=True))
    op.add_column("accounts", sa.Column("team_day", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("accounts", sa.Column("team_moves", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("ix_accounts_team_id", "accounts", ["team_id"])
    _rebuild_ledger(
        sa.Column("entry", sa.String(), nullable=False, server_default="earned"),
        sa.Column("team_id", sa.String(), nullable=True),
        sa.UniqueConstraint("lease_id", "entry"),
    )
    op.create_table(
        "credit_days",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("results", sa.BigInteger(), nullable=False),
        sa.Column("flops_high", sa.BigInteger(), nullable=False),
        sa.Column("flops_low", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", "account_id", "team_id"),
    )
    _sum_up("0")
    _sum_up(f"granted_at / {_DAY_US} + {_EPOCH_DAY}")
    _forbid_changes()


def downgrade() -> None:
    _allow_changes()
    op.drop_table("credit_days")
    # An older release knows lines that earn only: what was taken back was never given.
    wrong = "SELECT lease_id FROM credits WHERE entry = 'reversed'"
    op.execute(f"DELETE FROM credits WHERE lease_id IN ({wrong})")
    _rebuild_ledger(sa.UniqueConstraint("lease_id"))
    op.drop_index("ix_accounts_team_id", "accounts")
    for column in ("team_moves", "team_day", "team_id"):
        op.drop_column("accounts", column)
    op.drop_table("teams")


def _rebuild_ledger(*own: sa.Column[object] | sa.UniqueConstraint) -> None:
    """The table anew, with another key; SQLite can't change one in place. Lines keep their numbers."""
    op.drop_index("ix_credits_account_id", "credits")
    op.rename_table("credits", "credits_before")
    if op.get_bind().dialect.name == "postgresql":
        # Names of constraints and sequences stay with the old table, and stand in the way of the new one.
        op.execute("ALTER TABLE credits_before RENAME CONSTRAINT credits_pkey TO credits_before_pkey")
        op.execute("ALTER SEQUENCE credits_credit_id_seq RENAME TO credits_before_credit_id_seq")
        _rename_unique_constraints()
    op.create_table(
        "credits",
        sa.Column("credit_id", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("unit_id", sa.Integer(), nullable=False),
        sa.Column("flops", sa.BigInteger(), nullable=False),
        sa.Column("granted_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"]),
        sa.PrimaryKeyConstraint("credit_id"),
        *own,
    )
    op.execute(f"INSERT INTO credits (credit_id, {_COMMON}) SELECT credit_id, {_COMMON} FROM credits_before")
    if op.get_bind().dialect.name == "postgresql":
        highest = "(SELECT max(credit_id) FROM credits)"
        sequence = "pg_get_serial_sequence('credits', 'credit_id')"
        op.execute(f"SELECT setval({sequence}, {highest}) WHERE {highest} IS NOT NULL")
    op.drop_table("credits_before")
    op.create_index("ix_credits_account_id", "credits", ["account_id"])


def _rename_unique_constraints() -> None:
    """They are found by what they are: their names were given by the database."""
    kept = "conrelid = 'credits_before'::regclass AND contype = 'u'"
    for name in op.get_bind().execute(sa.text(f"SELECT conname FROM pg_constraint WHERE {kept}")).scalars():
        op.execute(f'ALTER TABLE credits_before RENAME CONSTRAINT "{name}" TO "before_{name}"')


def _sum_up(day: str) -> None:
    sums = "count(*), sum(flops >> 32), sum(flops & 4294967295)"
    columns = "day, account_id, team_id, results, flops_high, flops_low"
    op.execute(f"INSERT INTO credit_days ({columns}) SELECT {day}, account_id, '', {sums} FROM credits GROUP BY 1, 2")


def _forbid_changes() -> None:
    """A migration that builds this table anew has to do this again: on SQLite a table takes its triggers along."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            name = f"credits_refuse_{verb.lower()}"
            op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON credits BEGIN SELECT RAISE(ABORT, '{_SAID}'); END")
        return
    raising = f"BEGIN RAISE EXCEPTION '{_SAID}'; END"
    op.execute(f"CREATE FUNCTION credits_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {raising} $$")
    for verb, each in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        name = f"credits_refuse_{verb.partition(' ')[0].lower()}"
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {verb} ON credits FOR EACH {each} EXECUTE FUNCTION credits_refuse()"
        )


def _allow_changes() -> None:
    on = " ON credits" if op.get_bind().dialect.name == "postgresql" else ""
    verbs = ("update", "truncate") if on else ("update", "delete")
    for verb in verbs:
        op.execute(f"DROP TRIGGER credits_refuse_{verb}{on}")
    if on:
        op.execute("DROP FUNCTION credits_refuse()")
