"""What was said is said again, changed on the way, or said in another's name."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from memgrid import wire
from memgrid.digest import Digest
from memgrid.endpoint import GridEndpoint
from memgrid.enrolment import LogInAsk
from memgrid.errors import (
    BadChallengeError,
    BadSignatureError,
    SessionReplacedError,
    StaleSequenceError,
    TokenRequiredError,
    UnknownHostError,
)
from memgrid.kinds.prefill import ModelGeometry
from memgrid.signing import ENROL_TYPE, LOGIN_TYPE, REPORTS_TYPE, SigningKey
from memgrid.testing import FACTS, SimulatedGpu, SimulatedHost, SimulatedWork
from memgrid.units import HostId, ReasonCode, SyncAsk
from memgrid_coordinator.app import Coordinator
from tests.grids import running_coordinator, simulated_hosts, submit, work_on
from tests.integration.attacks.attackers import TEXT, TWO, lease_states, only, standing


def ask_of(host: SimulatedHost, work: SimulatedWork) -> SyncAsk:
    return SyncAsk(
        sequence=host.sequence,
        held=(),
        awaiting=(),
        reports=(),
        sketches={Digest(work.claim.sketch_digest): work.sketch},
        released=(),
        want=0,
        wait=timedelta(0),
    )


async def test_replay_of_a_sync_counts_once(grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry) -> None:
    """The attacker has recorded a host's Sync and sends the very bytes again, at once and later, to be paid twice.

    A call with the same number is the same call; a lease is reported once, whatever comes; an older number is stale.
    """
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust=TWO)
    async with simulated_hosts(endpoint, 1) as (host,):
        work = await work_on(coordinator, SimulatedGpu(geometry), only(await host.sync(want=1)))
        host.sequence += 1
        recorded = ask_of(host, work), host.signed([work.claim])
        assert (await host.send(*recorded)).acks[0].reason is None
        before = await standing(coordinator)
        again = (await host.send(*recorded)).acks[0]
        assert again.reason is not None and again.reason.code is ReasonCode.ALREADY_REPORTED
        await host.sync()
        await host.sync()
        with pytest.raises(StaleSequenceError):
            await host.send(*recorded)
        assert await standing(coordinator) == before
        assert (await lease_states(coordinator, work.claim.lease_id))[0] == "reported"


async def test_replay_of_reports_in_another_session_or_call_is_refused(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """The attacker has a host's token and an old signed batch of its reports, and wants it to count in a new call.

    What is signed names the host, the session and the number of the call.
    """
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust=TWO)
    async with simulated_hosts(endpoint, 1) as (host,):
        work = await work_on(coordinator, SimulatedGpu(geometry), only(await host.sync(want=1)))
        recorded = host.signed([work.claim])
        before = await standing(coordinator)
        host.sequence += 1
        with pytest.raises(BadSignatureError, match="another sync"):
            await host.send(ask_of(host, work), recorded)
        await host.log_in()
        host.sequence = 1
        with pytest.raises(BadSignatureError, match="another log-in"):
            await host.send(ask_of(host, work), recorded)
        assert await standing(coordinator) == before
        assert (await lease_states(coordinator, work.claim.lease_id))[0] == "leased"


async def test_replay_of_a_log_in_is_refused(grid: tuple[Coordinator, GridEndpoint]) -> None:
    """The attacker has recorded a signed log-in and sends it again, to get a token of that host.

    What is signed holds a challenge that is good once.
    """
    _, endpoint = grid
    async with simulated_hosts(endpoint, 1) as (host,):
        ask = LogInAsk(nonce=await host._nonce(), host_id=host.host_id, facts=FACTS)
        recorded = wire.signed_to_message(host.key.sign(LOGIN_TYPE, wire.log_in_to_body(ask)))
        await host.stub.LogIn(recorded)
        with pytest.raises(BadChallengeError):
            await host.stub.LogIn(recorded)


async def test_replay_from_another_grid_is_refused(grid: tuple[Coordinator, GridEndpoint], tmp_path: Path) -> None:
    """A grid that a volunteer has joined passes the signed log-in on to another grid, to work there in its name.

    The challenge is the other grid's: it never gave that one.
    """
    _, endpoint = grid
    async with (
        simulated_hosts(endpoint, 1) as (host,),
        running_coordinator(tmp_path / "other") as (_, elsewhere),
        simulated_hosts(elsewhere, 1) as (there,),
    ):
        ask = LogInAsk(nonce=await host._nonce(), host_id=there.host_id, facts=FACTS)
        for_here = wire.signed_to_message(there.key.sign(LOGIN_TYPE, wire.log_in_to_body(ask)))
        with pytest.raises(BadChallengeError):
            await there.stub.LogIn(for_here)
        there.token = host.token
        with pytest.raises(TokenRequiredError):
            await there.sync(want=1)


async def test_tampered_body_under_valid_auth_is_refused(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """The attacker sits where TLS ends (or has the token): everything is the host's, but the reports are changed.

    The signature stands over every byte, with what it is for; it is checked before anything in it is parsed.
    """
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust=TWO)
    async with simulated_hosts(endpoint, 1) as (host,):
        work = await work_on(coordinator, SimulatedGpu(geometry), only(await host.sync(want=1)))
        before = await standing(coordinator)
        host.sequence += 1
        ask, signed = ask_of(host, work), host.signed([work.claim])
        stranger = SigningKey.generate()
        forgeries = {
            "a byte more": replace(signed, body=signed.body + b"\x0a\x00"),
            "a byte less": replace(signed, body=signed.body[:-1]),
            "another's key": replace(signed, public_key=stranger.public_key),
            "another's signature": stranger.sign(REPORTS_TYPE, signed.body),
            "signed for something else": host.key.sign(ENROL_TYPE, signed.body),
            "called something else": replace(signed, type=LOGIN_TYPE),
            "a signature of nought": replace(signed, signature=bytes(64)),
            "a key of nought": replace(signed, public_key=bytes(32), signature=bytes(64)),
        }
        for name, forged in forgeries.items():
            with pytest.raises(BadSignatureError):
                await host.send(ask, forged)
            assert await standing(coordinator) == before, name
        assert (await lease_states(coordinator, work.claim.lease_id))[0] == "leased"
        assert (await host.send(ask, signed)).acks[0].accepted, "the true one still counts"


async def test_clone_of_an_identity_works_alone_or_not_at_all(grid: tuple[Coordinator, GridEndpoint]) -> None:
    """The attacker has copied a host's key and runs beside it, to hold twice the leases or to take over its record.

    A log-in ends the one before it: of two with one key only one has a session, and it is the same host with the same
    leases, not one more.
    """
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, activation=CHUNKS_OF_16, trust=TWO)
    async with simulated_hosts(endpoint, 1) as (host,):
        held = (await host.sync(want=2)).leases
        clone = SimulatedHost(endpoint=endpoint, key=host.key, label=host.label)
        await clone.enrol()
        assert clone.host_id == host.host_id
        with pytest.raises(SessionReplacedError):
            await host.sync(held=held)
        assert (await clone.sync(want=2)).leases == held, "not two more"
        other = SimulatedHost(endpoint=endpoint, key=host.key, label="another machine")
        await other.enrol()
        assert other.host_id != host.host_id
        theirs = {offer.unit_key for offer in (await other.sync(want=9)).leases}
        assert not theirs & {offer.unit_key for offer in held}, "one account never answers a unit twice"
        for one in (clone, other):
            await one.close()


async def test_key_of_another_opens_no_host(grid: tuple[Coordinator, GridEndpoint]) -> None:
    """The attacker knows a host's id, from a leaderboard say, and logs in as it with a key of his own."""
    _, endpoint = grid
    async with simulated_hosts(endpoint, 2) as (host, thief):
        for wanted in (host.host_id, HostId("0" * 32)):
            ask = LogInAsk(nonce=await thief._nonce(), host_id=wanted, facts=FACTS)
            signed = wire.signed_to_message(thief.key.sign(LOGIN_TYPE, wire.log_in_to_body(ask)))
            with pytest.raises((BadSignatureError, UnknownHostError), match=r"belongs to another key|not enrolled"):
                await thief.stub.LogIn(signed)
        assert (await host.sync()).acks == (), "the host's session goes on"


CHUNKS_OF_16 = {"layout": "independent", "chunk_tokens": 16, "wrap": "plain"}
