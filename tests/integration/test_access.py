"""Who may do what: tokens that are given, used and taken back under a running grid, and volunteers shut out."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memgrid.channel import open_channel
from memgrid.clock import ManualClock
from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.errors import (
    InvalidError,
    MemgridError,
    NotAllowedError,
    SessionReplacedError,
    TokenExpiredError,
    TokenRequiredError,
    UnknownCubeError,
    UnknownIdError,
)
from memgrid.testing import SimulatedGpu
from memgrid.units import ReasonCode
from memgrid.v1 import campaigns_pb2 as pb
from memgrid.v1.campaigns_pb2_grpc import CampaignsStub
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.cli import app
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.records import Caller, Role
from memgrid_coordinator.services.access import Access
from memgrid_coordinator.services.explaining import Explaining
from memgrid_coordinator.store.engine import Store
from tests.grids import (
    OPERATOR,
    campaign_of,
    eventually,
    run_until_ended,
    simulated_hosts,
    submit,
    work_on,
)

OWNER = Caller(role=Role.OWNER, name="the owner")
TEXT = "The valve opens at three bar and closes at two. "


async def tool(coordinator: Coordinator, *arguments: str) -> str:
    """What `memgrid coordinator …` prints about this grid; it raises what it would tell."""
    words = [*arguments, "--data", str(coordinator.settings.data)]
    result = await asyncio.to_thread(CliRunner().invoke, app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


async def ask(endpoint: GridEndpoint, token: str | None, call: str, message: Any) -> Any:
    """One call of the control plane with a token."""
    channel = open_channel(endpoint, lambda: token)
    try:
        return await getattr(CampaignsStub(channel), call)(message)
    finally:
        await channel.close()


async def begin_push(endpoint: GridEndpoint, token: str | None, repository: str) -> int:
    """The status with which the data plane answers who wants to push."""
    async with async_http_client(endpoint, token) as http:
        return (await http.post(f"/v2/{repository}/blobs/uploads/")).status_code


async def test_a_reader_sees_and_changes_nothing_until_the_token_is_revoked(
    grid: tuple[Coordinator, GridEndpoint],
) -> None:
    coordinator, endpoint = grid
    token = await tool(coordinator, "token", "create", "wall display", "--role", "reader")
    campaign_id = (await submit(coordinator, {"a.txt": TEXT})).campaign.campaign_id
    listed = await ask(endpoint, token, "List", pb.ListCampaignsRequest())
    assert [campaign.campaign_id for campaign in listed.campaigns] == [campaign_id]
    with pytest.raises(NotAllowedError, match="needs an operator token; this one is a reader's"):
        await ask(endpoint, token, "Cancel", pb.GetCampaignRequest(campaign_id=campaign_id))
    assert await begin_push(endpoint, token, "sources/a") == 403
    with pytest.raises(TokenRequiredError):
        await ask(endpoint, None, "List", pb.ListCampaignsRequest())
    with pytest.raises(TokenRequiredError):
        await ask(endpoint, token[:-1] + ("0" if token[-1] != "0" else "1"), "List", pb.ListCampaignsRequest())

    await tool(coordinator, "token", "revoke", "wall display")
    with pytest.raises(NotAllowedError, match="'wall display' was revoked"):
        await ask(endpoint, token, "List", pb.ListCampaignsRequest())
    (shown,) = json.loads(await tool(coordinator, "token", "list", "--json"))
    assert (shown["name"], shown["role"]) == ("wall display", "reader")
    assert shown["revoked_at"] is not None


async def test_what_operators_do_is_kept_under_their_name(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, endpoint = grid
    token = await tool(coordinator, "token", "create", "nightly", "--role", "operator", "--expires-days", "7")
    campaign_id = (await submit(coordinator, {"a.txt": TEXT})).campaign.campaign_id
    assert await begin_push(endpoint, token, "sources/a") == 202
    for call in ("Pause", "Pause", "Resume", "Cancel"):
        await ask(endpoint, token, call, pb.GetCampaignRequest(campaign_id=campaign_id))
    acts = json.loads(await tool(coordinator, "audit", "--json"))
    assert [(act["who"], act["role"], act["action"], act["subject"]) for act in acts[:3]] == [
        ("nightly", "operator", "campaign_cancel", campaign_id),
        ("nightly", "operator", "campaign_resume", campaign_id),
        ("nightly", "operator", "campaign_pause", campaign_id),
    ], "what changes nothing is not kept"
    (created,) = [act for act in acts if act["action"] == "token_create"]
    assert created["who"].endswith("at the command line")
    kept = b"".join(path.read_bytes() for path in coordinator.settings.data.rglob("*") if path.is_file())
    assert token.encode() not in kept
    assert token.removeprefix("access.").encode() not in kept


async def test_what_is_put_into_the_pool_and_taken_out_is_kept(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, _ = grid
    digest = (await coordinator.publishing.resolve("models/tiny")).digest
    with pytest.raises(UnknownCubeError):
        await coordinator.publishing.remove_manifest(OPERATOR, "models/tiny", "nightly")
    await coordinator.publishing.remove_manifest(OPERATOR, "models/tiny", "latest")
    acts = await Access(coordinator.store, coordinator.clock).acts(OWNER, 9)
    assert [(act.role, act.action, act.subject, act.detail) for act in acts] == [
        (OPERATOR.role, "pool_remove", "models/tiny, latest", ""),
        (OPERATOR.role, "pool_push", "models/tiny:latest", digest),
    ], "what removed nothing is not kept"


async def test_tokens_end_and_are_given_by_owners_only(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    store = Store(f"sqlite:///{tmp_path / 'memgrid.db'}")
    try:
        access = Access(store, clock)
        token = await access.create(OWNER, "week", Role.OPERATOR, timedelta(days=7))
        assert await access.identify(token) == Caller(role=Role.OPERATOR, name="week")
        clock.advance(timedelta(days=7))
        with pytest.raises(TokenExpiredError, match="'week' has expired"):
            await access.identify(token)
        with pytest.raises(InvalidError, match="there is or was a token 'week'"):
            await access.create(OWNER, "week", Role.READER, None)
        for role in (Role.VOLUNTEER, Role.ANONYMOUS):
            with pytest.raises(InvalidError, match="--role"):
                await access.create(OWNER, "odd", role, None)
        with pytest.raises(InvalidError, match="name: expected"):
            await access.create(OWNER, "a\nb", Role.READER, None)
        with pytest.raises(UnknownIdError):
            await access.revoke(OWNER, "nobody")
        for lesser in (Role.OPERATOR, Role.READER, Role.VOLUNTEER):
            with pytest.raises(NotAllowedError):
                await access.create(Caller(role=lesser), "mine", Role.OWNER, None)
            with pytest.raises(NotAllowedError):
                await access.acts(Caller(role=lesser), 1)
    finally:
        store.close()


async def test_a_banned_volunteer_is_out_and_its_work_goes_to_others(
    grid: tuple[Coordinator, GridEndpoint], tiny_model_folder: Path
) -> None:
    coordinator, endpoint = grid
    geometry = identity_of_folder(tiny_model_folder).geometry
    submission = await submit(coordinator, {"a.txt": TEXT * 4})
    async with simulated_hosts(endpoint, 3) as (bad, good, other):
        (offer,) = (await bad.sync(want=1)).leases
        await bad.sync(want=1, held=[offer], work=[await work_on(coordinator, SimulatedGpu(geometry), offer)])
        told = await tool(coordinator, "ban", bad.host_id[:12], "--reason", "makes things up")
        assert "is banned: 1 hosts, 1 leases ended" in told
        with pytest.raises(SessionReplacedError):
            await bad.sync(want=1)
        for refused in (bad.log_in, bad.enrol):
            with pytest.raises(NotAllowedError, match="banned by the grid's owner: makes things up"):
                await refused()
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in (good, other)})
        campaign = await campaign_of(coordinator, submission)
        assert campaign.state is CampaignState.COMPLETED
        assert campaign.rejections_by_reason == {"banned": 1}
        story = await Explaining(coordinator.store).explain(bad.host_id)
        assert "host_banned" in [line.event.name for line in story.lines]
        await tool(coordinator, "unban", bad.host_id)
        await bad.log_in()
        assert (await bad.sync()).leases == ()


async def test_what_was_ordered_from_a_banned_volunteer_is_ordered_from_another(
    grid: tuple[Coordinator, GridEndpoint], tiny_model_folder: Path
) -> None:
    coordinator, endpoint = grid
    gpu = SimulatedGpu(identity_of_folder(tiny_model_folder).geometry)
    await submit(coordinator, {"a.txt": TEXT}, trust={"min_replicas": 2, "max_replicas": 3})
    async with simulated_hosts(endpoint, 2) as hosts:
        for host in hosts:
            (offer,) = (await host.sync(want=1)).leases
            await host.sync(held=[offer], work=[await work_on(coordinator, gpu, offer)])

        async def asked() -> list[Any]:
            return [host for host in hosts if (await host.sync()).uploads]

        (chosen,) = await eventually(asked)
        await tool(coordinator, "ban", chosen.host_id, "--reason", "sold")
        (left,) = [host for host in hosts if host is not chosen]

        async def works_again() -> bool:
            (unit,) = (await left.sync(want=1)).leases or (None,)
            return unit is None and (await campaign_units(coordinator)) == {"open": 1}

        await eventually(works_again)
        story = await Explaining(coordinator.store).explain(chosen.host_id)
        reasons = [line.event.reason.code for line in story.lines if line.event.reason is not None]
        assert ReasonCode.BANNED in reasons


async def campaign_units(coordinator: Coordinator) -> dict[str, int]:
    (campaign,) = await coordinator.campaigns.recent(1)
    return campaign.units_by_state


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["token", "revoke", "nobody"], "there is no token 'nobody'"),
        (["ban", "abc"], "expected at least 6 characters"),
        (["ban", "abcdefgh"], "there is no host or account 'abcdefgh'"),
    ],
)
async def test_what_is_not_there_is_said_so(
    grid: tuple[Coordinator, GridEndpoint], words: list[str], says: str
) -> None:
    with pytest.raises(MemgridError, match=says):
        await tool(grid[0], *words)
