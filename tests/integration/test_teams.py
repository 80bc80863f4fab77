"""Teams and standings over real gRPC: who may found one, who gets in, and what everybody may see."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection

from memgrid.cli.control import control_plane
from memgrid.endpoint import GridEndpoint
from memgrid.errors import BadChallengeError, BadSignatureError, InvalidError, NotAllowedError, UnknownHostError
from memgrid.leaderboard import Ranked, leaderboard_from_message
from memgrid.nickname import nickname
from memgrid.signing import LOGIN_TYPE, TEAM_TYPE, SigningKey
from memgrid.teams import Standing, TeamAsk
from memgrid.testing import SimulatedHost
from memgrid.units import AccountId, HostId
from memgrid.v1 import grid_pb2 as grid_pb
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.wire import challenge_from_message, signed_to_message, team_to_body
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import UnitState
from memgrid_coordinator.policy.teams import FOUNDED_MAX, MOVES_A_DAY_MAX
from memgrid_coordinator.records import Caller, Role
from memgrid_coordinator.services.banning import Banning
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.store import audit_log, credits, hosts
from memgrid_volunteer import team_cli
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.standing import ask_standing
from tests.grids import simulated_hosts
from tests.ledgers import add_lease, add_unit

Grid = tuple[Coordinator, GridEndpoint]
MEMGRID = Path(sys.executable).with_name("memgrid")
OWNER = Caller(role=Role.OWNER, name="owner")


async def ask(coordinator: Coordinator, host: SimulatedHost, team: str | None = None, code: str = "") -> Standing:
    return await ask_standing(coordinator.address.url, key=host.key, team=team, code=code)


async def earn(coordinator: Coordinator, host: SimulatedHost, flops: int) -> AccountId:
    """Credit, as if a result of the host had been accepted; returns its account."""

    def step(connection: Connection) -> AccountId:
        known = hosts.get_host(connection, HostId(host.host_id))
        assert known is not None
        unit_id = add_unit(connection, flops, flops=flops)
        lease = add_lease(connection, f"l{flops}", known.account_id, unit_id, host=known.host_id)
        credits.grant(connection, [(lease, flops)], datetime.now(UTC))
        return known.account_id

    return await coordinator.store.write(step)


async def test_a_team_is_founded_and_entered_with_its_code(grid: Grid) -> None:
    coordinator, endpoint = grid
    async with simulated_hosts(endpoint, 3) as (founder, member, stranger):
        with pytest.raises(NotAllowedError, match="founded by who has credit"):
            await ask(coordinator, founder, "Early Birds")
        await earn(coordinator, founder, 1000)
        founded = await ask(coordinator, founder, "  Early  Birds ")
        assert (founded.team, founded.team_members, founded.rank) == ("Early Birds", 1, 1)
        assert len(founded.join_code) >= 16
        for name in ("Early Birds", "EARLY-BIRDS", "Ear1y Birds"):
            with pytest.raises(NotAllowedError, match="looks like that"):
                await ask(coordinator, stranger, name)
        with pytest.raises(NotAllowedError, match="not the code"):
            await ask(coordinator, stranger, "Early Birds", "guessed")
        joined = await ask(coordinator, member, "early birds", founded.join_code)
        assert (joined.team, joined.team_members, joined.join_code) == ("Early Birds", 2, ""), "told once"
        with pytest.raises(InvalidError, match="there is no team 'Nobody'"):
            await ask(coordinator, stranger, "Nobody", founded.join_code)

        await earn(coordinator, member, 500)
        assert (await ask(coordinator, founder)).team_flops == 500.0, "what was earned before counts for no team"
        left = await ask(coordinator, member, "")
        assert left.team == ""
        await earn(coordinator, member, 700)
        seen = await ask(coordinator, founder)
        assert (seen.team_flops, seen.team_members, seen.flops) == (500.0, 1, 1000.0)
        assert (await ask(coordinator, member)).rank == 1
        with pytest.raises(InvalidError, match="in no team"):
            await ask(coordinator, member, "")

        acts = await coordinator.store.read(lambda connection: audit_log.newest(connection, 10))
        assert [(act.action, act.subject, act.role) for act in acts[:3]] == [
            ("team_leave", "Early Birds", Role.VOLUNTEER),
            ("team_join", "Early Birds", Role.VOLUNTEER),
            ("team_found", "Early Birds", Role.VOLUNTEER),
        ]


async def test_names_and_moves_have_limits(grid: Grid) -> None:
    coordinator, endpoint = grid
    async with simulated_hosts(endpoint, 1) as (host,):
        await earn(coordinator, host, 1)
        codes = [(await ask(coordinator, host, f"Team {letter}")).join_code for letter in "abcdef"[:FOUNDED_MAX]]
        with pytest.raises(NotAllowedError, match="as many as one may"):
            await ask(coordinator, host, "One more")
        for number in range(MOVES_A_DAY_MAX - FOUNDED_MAX):
            await ask(coordinator, host, f"Team {'ab'[number % 2]}", codes[number % 2])
        with pytest.raises(NotAllowedError, match="try again tomorrow"):
            await ask(coordinator, host, "")


async def test_only_the_key_of_an_account_speaks_for_it(grid: Grid) -> None:
    coordinator, endpoint = grid
    async with simulated_hosts(endpoint, 1) as (host,):
        nonce = challenge_from_message(await host.stub.GetChallenge(pb.GetChallengeRequest())).nonce
        body = team_to_body(TeamAsk(nonce=nonce))
        with pytest.raises(BadSignatureError):
            await host.stub.AskStanding(signed_to_message(host.key.sign(LOGIN_TYPE, body)))
        signed = signed_to_message(host.key.sign(TEAM_TYPE, body))
        await host.stub.AskStanding(signed)
        with pytest.raises(BadChallengeError):
            await host.stub.AskStanding(signed)
        with pytest.raises(UnknownHostError, match="no account here"):
            await ask_standing(coordinator.address.url, key=SigningKey.generate())
        await host.sync()  # its session was not touched


async def test_who_was_banned_is_on_no_board_and_changes_nothing(grid: Grid) -> None:
    coordinator, endpoint = grid
    async with simulated_hosts(endpoint, 2) as (good, bad):
        for host, flops in ((good, 10), (bad, 20)):
            account = await earn(coordinator, host, flops)
        await ask(coordinator, bad, "Bad company")
        await earn(coordinator, bad, 30)
        rule = JudgingRule.of(coordinator.settings, coordinator.grid_key)
        await Banning(coordinator.store, coordinator.clock, rule).ban(OWNER, account, "cheated")
        with pytest.raises(NotAllowedError, match="banned"):
            await ask(coordinator, bad, "")
        for by in Ranked:
            async with control_plane(endpoint, None) as plane:
                board = leaderboard_from_message(await plane.grid.GetLeaderboard(grid_pb.LeaderboardRequest(by=by)))
            assert board.flops == (10.0 if by is Ranked.ACCOUNTS else 0.0)
            assert nickname(account) not in [line.name for line in board.lines]


async def memgrid(*words: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `memgrid …`."""
    process = await asyncio.create_subprocess_exec(
        MEMGRID, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def test_the_command_line_says_what_it_did(grid: Grid, tmp_path: Path) -> None:
    coordinator, endpoint = grid
    homes = [Home(tmp_path / name) for name in ("ada", "bob")]
    async with simulated_hosts(endpoint, 1) as (other,):
        for number, home in enumerate(homes):
            home.make()
            host = SimulatedHost(endpoint=endpoint, key=home.key())
            await host.enrol()
            account = await earn(coordinator, host, 2_000_000 + number)
            home.join(
                Membership(
                    url=coordinator.address.url, name="g", account_id=account, host_id=host.host_id, label="attic"
                )
            )
            await host.close()
        await earn(coordinator, other, 5_000_000)
        ada, bob = (("--home", home.folder) for home in homes)
        code, out, error = await memgrid("volunteer", "team", "Early Birds", *ada)
        assert (code, error) == (0, "") and out.startswith("founded Early Birds: 1 member, 0 FLOP")
        secret = out.split("--code ")[1].strip()
        code, out, _ = await memgrid("volunteer", "team", "Early Birds", "--code", secret, *bob)
        assert code == 0 and out.startswith("in team Early Birds: 2 members")
        code, out, error = await memgrid("volunteer", "status", *ada)
        assert "standing   2.0 MFLOP for 1 results; rank 3 of 3" in out, out + error
        assert "team       Early Birds: 2 members" in out
        code, out, error = await memgrid("--grid", coordinator.address.url, "leaderboard", "--lines", "2")
        assert (code, error) == (0, "") and out.startswith("3 volunteers gave 9.0 MFLOP in 3 results ever")
        assert "further: --cursor 2" in out


async def test_a_standing_is_asked_for_but_not_waited_for(grid: Grid, tmp_path: Path) -> None:
    coordinator, endpoint = grid
    home = Home(tmp_path / "ada")
    home.make()
    host = SimulatedHost(endpoint=endpoint, key=home.key())
    await host.enrol()
    account = await earn(coordinator, host, 3)
    await host.close()
    url = coordinator.address.url
    membership = Membership(url=url, name="g", account_id=account, host_id=host.host_id, label="attic")
    home.join(membership)
    ((told, reason),) = await asyncio.to_thread(team_cli.standings_of, [home])
    assert told is not None and (told["flops"], told["rank"], told["team"], reason) == (3.0, 1, "", "")
    founded = await asyncio.to_thread(team_cli.change_team, home, "Night Owls", code="", is_leaving=False)
    shown = await asyncio.to_thread(team_cli.change_team, home, None, code="", is_leaving=False)
    assert shown == {**founded, "founded": False} and len(shown["code"]) >= 16, "its members can tell others"
    for name, code, leaving, says in (
        ("x", "", False, "2 to 32"),
        (None, "c", False, "of which team"),
        ("Night Owls", "", True, "--leave alone"),
    ):
        with pytest.raises(InvalidError, match=says):
            await asyncio.to_thread(team_cli.change_team, home, name, code=code, is_leaving=leaving)
    home.join(replace(membership, url="https://127.0.0.1:9"))
    ((told, reason),) = await asyncio.to_thread(team_cli.standings_of, [home])
    assert told is None and "127.0.0.1:9" in reason


async def test_credit_that_waits_for_audits_is_shown_as_in_escrow(grid: Grid) -> None:
    coordinator, endpoint = grid
    async with simulated_hosts(endpoint, 1) as (host,):
        account = await earn(coordinator, host, 5)

        def hold(connection: Connection) -> None:
            unit_id = add_unit(connection, 77, flops=700, state=UnitState.PROVISIONAL)
            add_lease(connection, "held", account, unit_id, host=host.host_id)

        await coordinator.store.write(hold)
        seen = await ask(coordinator, host)
        assert (seen.flops, seen.escrow_flops, seen.results) == (5.0, 700.0, 1)
