"""What the store promises about documents that advance in stages, orders of several files, and pauses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError

from memgrid.digest import digest_of
from memgrid.units import AccountId, HostId, LeaseId, Output, Reason, ReasonCode, UnitKey, Wishes
from memgrid_coordinator.lifecycle import DocumentState, LeaseState
from memgrid_coordinator.progress import Progress, Stage
from memgrid_coordinator.records import CampaignId, Demand, Lease, Made, NewDocument, NewUnit
from memgrid_coordinator.store import campaigns, leases, units, uploads
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.tables import accounts, hosts
from memgrid_coordinator.store.wishes import which_are_wished
from tests.contract.conftest import a_host

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FILES = tuple(
    Output(name=name, digest=digest_of(name.encode()), size_bytes=10)
    for name in ("state.safetensors", "trace.json", "state-0001.safetensors")
)


@pytest.fixture
async def store(empty_store: Store) -> Store:
    await empty_store.write(add_host)
    return empty_store


def add_host(connection: Connection) -> None:
    connection.execute(insert(accounts).values(account_id="a", public_key=b"k", created_at=NOW))
    row = {"host_id": "h", "account_id": "a", "label": "l", "facts": "", "sequence": 0, "flops_per_s": 1.0}
    connection.execute(insert(hosts).values(**row, recent_faults=0, created_at=NOW, seen_at=NOW))


def new_unit(name: str, *, kind: str = "train", model: str = "model", flops: int = 1) -> NewUnit:
    return NewUnit(
        key=UnitKey(digest_of(name.encode()).removeprefix("sha256:")),
        kind=kind,
        spec=name.encode(),
        model=digest_of(model.encode()),
        token_count=1,
        flops=flops,
    )


def new_campaign(connection: Connection, name: str, wanted: tuple[NewUnit, ...], recipe: str = "distill") -> int:
    """A running campaign of one document; returns the document."""
    given = {"name": name, "model": "m", "spec": "{}", "priority": 0}
    campaigns.add(connection, CampaignId(name), request_id=name, recipe=recipe, now=NOW, **given)  # type: ignore[arg-type]
    new = [unit for unit in wanted if unit.key not in units.by_key(connection, [unit.key])]
    units.add(connection, new, Demand(min_replicas=1, max_replicas=3))
    ids = units.ids_by_key(connection, [unit.key for unit in wanted])
    units.open_units(connection, list(ids.values()), NOW)
    document = NewDocument(
        name=name,
        source_uri="",
        source_digest=digest_of(b""),
        licence="MIT",
        tokens=1,
        units=wanted,
        made=(Made(name="frame", digest=digest_of(b"frame")),),
        progress=Progress(stage=Stage.STUDY, steps_total=4),
    )
    return campaigns.add_documents(connection, CampaignId(name), [document], ids)[0]


def lease_of(connection: Connection, unit_id: int, number: int = 1) -> Lease:
    found = units.by_id(connection, [unit_id])[unit_id]
    lease = Lease(
        lease_id=LeaseId(f"lease{number}"),
        unit_id=unit_id,
        unit_key=found.key,
        host_id=HostId("h"),
        account_id=AccountId("a"),
        fence=number,
        state=LeaseState.LEASED,
        granted_at=NOW,
        deadline_at=NOW,
        reported_at=None,
        outputs=(),
        sketch=b"",
        facts=None,
        reason=None,
    )
    leases.grant(connection, [lease])
    return lease


def ordered(connection: Connection) -> LeaseId:
    """One lease of which three files are wanted."""
    document_id = new_campaign(connection, "c", (new_unit("u"),))
    lease = lease_of(connection, campaigns.units_of(connection, document_id)[0])
    uploads.order(connection, [(lease, FILES, NOW + timedelta(minutes=1))])
    return lease.lease_id


async def test_an_order_is_received_when_its_last_file_is(store: Store) -> None:
    lease_id = await store.write(ordered)

    def arrive(connection: Connection) -> list[Any]:
        told = [sorted(one.name for one in uploads.ordered_from(connection, HostId("h")))]
        for output in FILES:
            told.append(uploads.end(connection, [lease_id], "verify"))
            told.append(uploads.receive(connection, [(lease_id, output.digest)]))
        told.append(uploads.receive(connection, [(lease_id, FILES[0].digest)]))
        return told

    names, *moves = await store.write(arrive)
    assert names == sorted(output.name for output in FILES)
    nothing: frozenset[LeaseId] = frozenset()
    assert moves == [nothing] * 5 + [frozenset({lease_id}), nothing]
    assert await store.read(lambda connection: uploads.received(connection, 9)) == [lease_id]
    assert await store.write(lambda connection: uploads.end(connection, [lease_id], "verify")) == {lease_id}
    assert await store.write(lambda connection: uploads.end(connection, [lease_id], "refuse")) == nothing


async def test_an_order_that_lacks_a_file_is_overdue_as_a_whole(store: Store) -> None:
    lease_id = await store.write(ordered)
    await store.write(lambda connection: uploads.receive(connection, [(lease_id, FILES[0].digest)]))
    late = NOW + timedelta(minutes=2)
    assert await store.read(lambda connection: uploads.overdue(connection, NOW, 9)) == []
    assert await store.read(lambda connection: uploads.overdue(connection, late, 9)) == [lease_id]
    assert await store.read(lambda connection: uploads.received(connection, 9)) == []
    assert await store.write(lambda connection: uploads.end(connection, [lease_id], "refuse")) == {lease_id}
    assert await store.read(lambda connection: uploads.overdue(connection, late, 9)) == []
    assert await store.read(lambda connection: uploads.tried(connection, [1])) == {lease_id}


async def test_two_files_of_the_same_bytes_arrive_together(store: Store) -> None:
    twins = tuple(Output(name=name, digest=digest_of(b"same"), size_bytes=4) for name in ("a", "b"))

    def step(connection: Connection) -> frozenset[LeaseId]:
        document_id = new_campaign(connection, "c", (new_unit("u"),))
        lease = lease_of(connection, campaigns.units_of(connection, document_id)[0])
        uploads.order(connection, [(lease, twins, NOW)])
        return uploads.receive(connection, [(lease.lease_id, twins[0].digest)])

    assert await store.write(step) == {LeaseId("lease1")}


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (Wishes(), ["study", "long", "both"]),
        (Wishes(kinds=frozenset({"study", "prefill"})), ["study"]),
        (Wishes(campaigns=frozenset({"other"})), ["both"]),
        (Wishes(campaigns=frozenset({"other", "one"})), ["study", "long", "both"]),
        (Wishes(avoided_campaigns=frozenset({"other"})), ["study", "long"]),
        (Wishes(avoided_campaigns=frozenset({"nobody"})), ["study", "long", "both"]),
        (Wishes(longest=timedelta(seconds=2)), ["study", "both"]),
        (Wishes(kinds=frozenset({"study"}), avoided_campaigns=frozenset({"one"})), []),
    ],
)
async def test_hosts_are_given_what_their_owners_wish(store: Store, wishes: Wishes, expected: list[str]) -> None:
    host = a_host("b")
    shared = new_unit("both")
    own = (new_unit("study", kind="study"), new_unit("long", flops=int(3 * host.flops_per_s)))

    def step(connection: Connection) -> list[str]:
        new_campaign(connection, "one", (*own, shared))
        new_campaign(connection, "other", (shared,))
        found = units.lease_candidates(connection, host, 9, NOW, wishes)
        every = [unit.unit_id for unit in units.lease_candidates(connection, host, 9, NOW)]
        among = which_are_wished(connection, every, wishes, host.flops_per_s)
        assert among == {unit.unit_id for unit in found}
        return [unit.spec.decode() for unit in found]

    assert await store.write(step) == expected


async def test_a_pause_holds_what_only_it_wants(store: Store) -> None:
    shared, own = new_unit("shared"), new_unit("own")

    def leasable(connection: Connection) -> set[bytes]:
        return {unit.spec for unit in units.lease_candidates(connection, a_host("b"), 9, NOW)}

    def step(connection: Connection) -> list[set[bytes]]:
        new_campaign(connection, "one", (shared, own))
        new_campaign(connection, "other", (shared,))
        seen = [leasable(connection)]
        for name, verb in (("one", "pause"), ("other", "pause"), ("one", "resume"), ("one", "cancel")):
            assert campaigns.move(connection, CampaignId(name), verb, NOW)
            campaigns.hold_units(connection, CampaignId(name))
            seen.append(leasable(connection))
        return seen

    both, first = {b"shared", b"own"}, {b"shared"}
    assert await store.write(step) == [both, first, set(), both, set()]


async def test_only_what_has_not_ended_can_be_paused_and_only_what_is_paused_resumed(store: Store) -> None:
    def step(connection: Connection) -> list[bool]:
        new_campaign(connection, "c", (new_unit("u"),))
        verbs = ("resume", "pause", "pause", "complete", "resume", "resume", "pause", "cancel", "resume", "cancel")
        return [campaigns.move(connection, CampaignId("c"), verb, NOW) for verb in verbs]

    assert await store.write(step) == [False, True, False, False, True, False, True, True, False, False]


async def test_what_was_made_for_a_document_keeps_its_name(store: Store) -> None:
    document_id = await store.write(lambda connection: new_campaign(connection, "c", (new_unit("u"),)))
    start = Made(name="start", digest=digest_of(b"start"), detail='{"start": "compacted"}')
    await store.write(lambda connection: campaigns.add_made(connection, document_id, start))
    with pytest.raises(IntegrityError):
        await store.write(lambda connection: campaigns.add_made(connection, document_id, start))
    made = await store.read(lambda connection: campaigns.made_of(connection, document_id))
    assert made == {"frame": Made(name="frame", digest=digest_of(b"frame")), "start": start}


async def test_units_follow_one_another_in_the_order_in_which_they_were_asked_for(store: Store) -> None:
    def step(connection: Connection) -> list[bytes]:
        document_id = new_campaign(connection, "c", (new_unit("b"), new_unit("a")))
        units.add(connection, [new_unit("z"), new_unit("c")], Demand(min_replicas=1, max_replicas=1))
        keys = [new_unit("z").key, new_unit("c").key]
        by_key = units.by_key(connection, keys)
        campaigns.add_units(connection, document_id, [by_key[key].unit_id for key in keys])
        found = units.by_id(connection, campaigns.units_of(connection, document_id))
        return [found[unit_id].spec for unit_id in campaigns.units_of(connection, document_id)]

    *studied, third, fourth = await store.write(step)
    assert (sorted(studied), third, fourth) == ([b"a", b"b"], b"z", b"c")


async def test_documents_are_looked_at_when_a_unit_of_theirs_has_ended(store: Store) -> None:
    def step(connection: Connection) -> list[list[int]]:
        quiet = new_campaign(connection, "quiet", (new_unit("u"),))
        busy = new_campaign(connection, "busy", (new_unit("v"),))
        new_campaign(connection, "caches", (new_unit("w"),), recipe="activation")
        (unit_id,) = campaigns.units_of(connection, busy)
        units.move(connection, [unit_id], "fail", NOW)
        units.give_reasons(connection, {unit_id: Reason(code=ReasonCode.DIVERGED, text="step 3")})
        unit = units.by_id(connection, [unit_id])[unit_id]
        assert (unit.settled_at, unit.reason) == (NOW, Reason(code=ReasonCode.DIVERGED, text="step 3"))
        units.revive(connection, [unit_id])
        assert units.by_id(connection, [unit_id])[unit_id].reason is None
        units.move(connection, [unit_id], "fail", NOW)
        found = [
            campaigns.staged_documents(connection, since) for since in (None, NOW, NOW + timedelta(microseconds=1))
        ]
        campaigns.end_document(connection, busy, DocumentState.FAILED)
        campaigns.move(connection, CampaignId("quiet"), "pause", NOW)
        assert found == [[quiet, busy], [busy], []]
        return [campaigns.staged_documents(connection, None)]

    assert await store.write(step) == [[]]


async def test_progress_is_kept_and_told_once(store: Store) -> None:
    progress = Progress(stage=Stage.TRAIN, steps=2, steps_total=4, losses=((0, 1.5), (1, 1.25)))

    def step(connection: Connection) -> list[Any]:
        document_id = new_campaign(connection, "c", (new_unit("u"),))
        told: list[Any] = [campaigns.set_progress(connection, document_id, progress) for _ in range(2)]
        told.append(campaigns.document(connection, document_id).progress)
        campaigns.end_document(connection, document_id, DocumentState.CANCELLED)
        return [*told, campaigns.set_progress(connection, document_id, Progress())]

    assert await store.write(step) == [True, False, progress, False]


async def test_what_hosts_say_they_took_is_summed(store: Store) -> None:
    def step(connection: Connection) -> float:
        document_id = new_campaign(connection, "c", (new_unit("u"),))
        (unit_id,) = campaigns.units_of(connection, document_id)
        for number, seconds in ((1, 1800.0), (2, 5400.0)):
            lease = lease_of(connection, unit_id, number)
            connection.execute(
                text("UPDATE leases SET compute_s = :s WHERE lease_id = :l"), {"s": seconds, "l": lease.lease_id}
            )
        return campaigns.device_hours(connection, CampaignId("c"))

    assert await store.write(step) == 2.0
