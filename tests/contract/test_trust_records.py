"""What is known of hosts, in each store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection

from memgrid.testing import FACTS
from memgrid.units import AccountId, HostId, SessionId
from memgrid_coordinator.policy.trust import TrustRecord
from memgrid_coordinator.records import Host
from memgrid_coordinator.store import hosts, trust_records
from memgrid_coordinator.store.engine import Store
from tests.contract.conftest import a_host

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def enrol(connection: Connection, host: Host) -> None:
    hosts.add_account(connection, host.account_id, host.account_id.encode(), NOW)
    hosts.add_host(
        connection, host.host_id, account_id=host.account_id, label="host", facts=FACTS, flops_per_s=1e9, now=NOW
    )


async def test_a_class_that_is_no_longer_punished_is_forgiven_what_it_was(empty_store: Store) -> None:
    broken, whole = a_host("broken"), a_host("whole")

    def step(connection: Connection) -> list[str]:
        for host in (broken, whole):
            enrol(connection, host)
            hosts.set_faults(connection, host.host_id, 4, LATER)
            trust_records.put(connection, host, "prefill", host.account_id, TrustRecord(faults=3), NOW)
        trust_records.put(connection, broken, "study", "broken", TrustRecord(faults=2), NOW)
        forgiven = trust_records.forgive(connection, "prefill", "broken")
        hosts.forgive(connection, forgiven)
        return list(forgiven)

    assert await empty_store.write(step) == [broken.host_id]

    def look(connection: Connection) -> tuple[object, ...]:
        rests = [hosts.get_host(connection, host.host_id) for host in (broken, whole)]
        records = [
            trust_records.get(connection, broken.host_id, "prefill", "broken"),
            trust_records.get(connection, broken.host_id, "study", "broken"),
            trust_records.get(connection, whole.host_id, "prefill", "whole"),
        ]
        return [host and host.suspended_until for host in rests], [record.faults for record in records]

    assert await empty_store.read(look) == ([None, LATER], [0, 2, 3])


async def test_a_record_is_kept_as_it_was_put_and_counts_for_its_account(empty_store: Store) -> None:
    host, record = a_host("alice"), TrustRecord(results=9, passed=4, faults=1, agreed=7)

    def step(connection: Connection) -> None:
        enrol(connection, host)
        trust_records.put(connection, host, "prefill", "here", record, NOW)
        trust_records.put(connection, host, "study", "here", TrustRecord(passed=10), NOW)

    await empty_store.write(step)
    assert await empty_store.read(lambda each: trust_records.get(each, host.host_id, "prefill", "here")) == record
    assert await empty_store.read(lambda each: trust_records.good_of(each, AccountId("alice"))) == 11


@pytest.mark.parametrize(
    ("other", "is_alone"),
    [
        (None, True),
        (("bob", "", LATER), False),
        (("bob", "93.184.216.0/24", LATER), True),
        (("bob", "151.101.1.0/24", LATER), False),
        (("bob", "", NOW), True),
        (("alice", "", LATER), True),
    ],
)
async def test_a_host_is_alone_when_nobody_else_could_confirm_it(
    empty_store: Store, other: tuple[str, str, datetime] | None, is_alone: bool
) -> None:
    host = a_host("alice", "93.184.216.0/24")

    def step(connection: Connection) -> bool:
        enrol(connection, host)
        if other is not None:
            account, network, seen_at = other
            another = replace(a_host(account, network), host_id=HostId("another"))
            if account != host.account_id:
                hosts.add_account(connection, another.account_id, b"other", NOW)
            given = {"account_id": another.account_id, "label": "other", "facts": FACTS, "flops_per_s": 1e9}
            hosts.add_host(connection, another.host_id, now=NOW, **given)
            hosts.begin_session(connection, another.host_id, SessionId("session"), FACTS, network, seen_at)
        return hosts.is_alone(connection, host, LATER)

    assert await empty_store.write(step) is is_alone
