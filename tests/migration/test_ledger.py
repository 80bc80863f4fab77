"""The ledger of a former release: every line keeps its number, is summed up, and can't be changed any more."""

from __future__ import annotations

import pytest
from alembic import command
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from memgrid_coordinator.store.credits import whole
from memgrid_coordinator.store.dialects import open_engine
from memgrid_coordinator.store.upgrading import alembic_config, migrate

HUGE = 2**62
DAY_US = 86_400_000_000
LINES = [
    (3, "l1", "ada", HUGE, 20_000 * DAY_US),
    (7, "l2", "ada", HUGE, 20_000 * DAY_US + DAY_US - 1),
    (8, "l3", "ada", 5, 20_001 * DAY_US),
    (9, "l4", "bob", HUGE + 1, 20_001 * DAY_US + 1),
]


@pytest.fixture
def former(empty_database: str) -> str:
    """A database of 0005 with some credit."""
    command.upgrade(alembic_config(empty_database), "0005")
    engine = open_engine(empty_database)
    with engine.begin() as connection:
        for account in ("ada", "bob"):
            new = "INSERT INTO accounts (account_id, public_key, created_at, banned_reason) VALUES (:a, :k, 0, '')"
            connection.execute(text(new), {"a": account, "k": account.encode()})
            host = "INSERT INTO hosts (host_id, account_id, label, facts, sequence, flops_per_s, recent_faults, created_at, seen_at) VALUES (:a, :a, 'l', '', 0, 1, 0, 0, 0)"  # noqa: E501
            connection.execute(text(host), {"a": account})
        unit = "INSERT INTO units (unit_id, key, kind, state, spec, model, tokens_digest, token_count, flops, priority, min_replicas, max_replicas, vacancies, fence, failures, output_bytes, reason_text) VALUES (1, 'k', 'prefill', 'accepted', :s, 'm', '', 1, 1, 0, 2, 5, 0, 1, 0, 1, '')"  # noqa: E501
        connection.execute(text(unit), {"s": b""})
        for number, lease, account, flops, at in LINES:
            given = {"n": number, "l": lease, "a": account, "f": flops, "at": at, "s": b""}
            held = "INSERT INTO leases (lease_id, unit_id, host_id, account_id, fence, state, granted_at, deadline_at, outputs, sketch, facts, reason_text) VALUES (:l, 1, :a, :a, 1, 'agreed', 0, 0, '[]', :s, '', '')"  # noqa: E501
            connection.execute(text(held), given)
            line = "INSERT INTO credits (credit_id, lease_id, account_id, host_id, unit_id, flops, granted_at) VALUES (:n, :l, :a, :a, 1, :f, :at)"  # noqa: E501
            connection.execute(text(line), given)
    engine.dispose()
    return empty_database


def rows(engine: Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_a_ledger_keeps_its_lines_and_is_summed_up(former: str) -> None:
    migrate(former)
    engine = open_engine(former)
    kept = rows(engine, "SELECT credit_id, lease_id, account_id, flops, granted_at FROM credits ORDER BY credit_id")
    assert kept == LINES
    assert rows(engine, "SELECT DISTINCT entry, team_id FROM credits") == [("earned", None)]
    days = rows(engine, "SELECT day, account_id, results, flops_high, flops_low FROM credit_days WHERE team_id = ''")
    summed = {(day, account): (results, whole(high, low)) for day, account, results, high, low in days}  # type: ignore[arg-type]
    assert summed == {
        (0, "ada"): (3, 2 * HUGE + 5),
        (0, "bob"): (1, HUGE + 1),
        (739_163, "ada"): (2, 2 * HUGE),
        (739_164, "ada"): (1, 5),
        (739_164, "bob"): (1, HUGE + 1),
    }
    for change in ("UPDATE credits SET flops = 0 WHERE credit_id = 3", "DELETE FROM credits WHERE credit_id = 3"):
        with pytest.raises(DBAPIError, match="written once"), engine.begin() as connection:
            connection.execute(text(change))
    again = "INSERT INTO credits (lease_id, entry, account_id, host_id, unit_id, flops, granted_at) VALUES ('l1', 'reversed', 'ada', 'ada', 1, :f, :at)"  # noqa: E501
    with engine.begin() as connection:
        connection.execute(text(again), {"f": -HUGE, "at": 20_002 * DAY_US})
    assert rows(engine, "SELECT max(credit_id) FROM credits") == [(10,)], "numbers go on where they were"
    engine.dispose()


def test_an_older_release_gets_the_lines_that_still_stand(former: str) -> None:
    migrate(former)
    engine = open_engine(former)
    again = "INSERT INTO credits (lease_id, entry, account_id, host_id, unit_id, flops, granted_at) VALUES ('l1', 'reversed', 'ada', 'ada', 1, :f, :at)"  # noqa: E501
    with engine.begin() as connection:
        connection.execute(text(again), {"f": -HUGE, "at": 20_002 * DAY_US})
    command.downgrade(alembic_config(former), "0005")
    left = rows(engine, "SELECT credit_id, lease_id, account_id, flops, granted_at FROM credits ORDER BY credit_id")
    assert left == LINES[1:]
    command.upgrade(alembic_config(former), "head")
    assert rows(engine, "SELECT sum(results) FROM credit_days WHERE day = 0") == [(3,)]
    engine.dispose()
