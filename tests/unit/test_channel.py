"""Errors keep their class across gRPC, tokens travel, and only the pinned server is spoken to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.channel import (
    BACKOFF_MAX_S,
    ERROR_CODE_KEY,
    SERVER_OPTIONS,
    STATUS_BY_CODE,
    WAIT_MAX_S,
    WAIT_MS_KEY,
    backoff_s,
    error_of,
    open_channel,
    told_wait_s,
    trailing_of,
)
from memgrid.endpoint import GridEndpoint
from memgrid.errors import (
    BusyError,
    ErrorCode,
    InternalError,
    MemgridError,
    StaleSequenceError,
    TokenExpiredError,
    UnavailableError,
)
from memgrid.v1 import campaigns_pb2, campaigns_pb2_grpc, volunteers_pb2, volunteers_pb2_grpc
from tests.certificates import make_certificate


class Volunteers(volunteers_pb2_grpc.VolunteersServicer):
    """Raises what it is told to, or answers with the caller's token as the nonce."""

    error: MemgridError | None = None
    bug = False

    async def GetChallenge(  # noqa: N802
        self, request: volunteers_pb2.GetChallengeRequest, context: grpc.aio.ServicerContext
    ) -> volunteers_pb2.Challenge:
        if self.bug:
            raise RuntimeError("a bug")
        if self.error is not None:
            context.set_trailing_metadata(((ERROR_CODE_KEY, self.error.code.value),))
            await context.abort(STATUS_BY_CODE[self.error.code], str(self.error))
        metadata = dict(context.invocation_metadata() or ())
        return volunteers_pb2.Challenge(nonce=str(metadata.get("authorization")).encode())


class Campaigns(campaigns_pb2_grpc.CampaignsServicer):
    """Sends two campaigns, then fails."""

    async def Watch(  # noqa: N802
        self, request: campaigns_pb2.GetCampaignRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[campaigns_pb2.Campaign]:
        yield campaigns_pb2.Campaign(name="one")
        yield campaigns_pb2.Campaign(name="two")
        context.set_trailing_metadata(((ERROR_CODE_KEY, "stale_sequence"),))
        await context.abort(grpc.StatusCode.ABORTED, "enough")


class Grid:
    """A real server with TLS, and the endpoint that leads to it."""

    def __init__(self) -> None:
        certificate = make_certificate()
        self.volunteers = Volunteers()
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        volunteers_pb2_grpc.add_VolunteersServicer_to_server(self.volunteers, self.server)
        campaigns_pb2_grpc.add_CampaignsServicer_to_server(Campaigns(), self.server)
        credentials = grpc.ssl_server_credentials([(certificate.key_pem, certificate.certificate_pem)])
        port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.endpoint = GridEndpoint(
            url=f"https://127.0.0.1:{port}",
            name="test",
            version="0",
            grpc_target=f"127.0.0.1:{port}",
            grid_key=b"\0" * 32,
            enrolment="open",
            max_blob_bytes=1,
            certificate_pem=certificate.certificate_pem.decode(),
        )


@pytest.fixture
async def grid() -> AsyncIterator[Grid]:
    grid = Grid()
    await grid.server.start()
    yield grid
    await grid.server.stop(None)


async def ask(endpoint: GridEndpoint, token: str | None = None) -> bytes:
    async with open_channel(endpoint, lambda: token) as channel:
        stub = volunteers_pb2_grpc.VolunteersStub(channel)
        answer = await stub.GetChallenge(volunteers_pb2.GetChallengeRequest(), timeout=5)
        return answer.nonce


async def test_the_token_travels_and_none_is_none(grid: Grid) -> None:
    assert await ask(grid.endpoint, "secret") == b"Bearer secret"
    assert await ask(grid.endpoint, None) == b"None"


@pytest.mark.parametrize("code", [code for code in ErrorCode if code in MemgridError.by_code])
async def test_an_error_arrives_as_the_class_that_was_raised(grid: Grid, code: ErrorCode) -> None:
    grid.volunteers.error = MemgridError.of(code, "lease 7f3a has been reclaimed; claim again")
    with pytest.raises(MemgridError, match=r"^lease 7f3a has been reclaimed; claim again$") as failure:
        await ask(grid.endpoint)
    assert type(failure.value) is MemgridError.by_code[code]


@given(wait_s=st.floats(0, 1e9), ticket=st.text("0123456789abcdef./", max_size=60), seed=st.integers())
def test_a_busy_server_says_when_to_come_back_and_nobody_waits_for_ever(
    wait_s: float, ticket: str, seed: int
) -> None:
    sent = grpc.aio.Metadata(*trailing_of(BusyError("later", wait_s=wait_s, ticket=ticket)))
    busy = error_of(grpc.StatusCode.UNAVAILABLE, "later", sent)
    assert isinstance(busy, BusyError)
    assert busy.ticket == ticket
    assert busy.wait_s == pytest.approx(min(wait_s, WAIT_MAX_S), abs=1e-3)
    assert busy.wait_s <= told_wait_s(busy, random.Random(seed)) <= 1.25 * busy.wait_s


@pytest.mark.parametrize("value", ["", "-1", "1e9", "soon", "9" * 400])
def test_a_wait_that_can_not_be_meant_is_no_reason_to_fail(value: str) -> None:
    trailing = grpc.aio.Metadata((ERROR_CODE_KEY, "busy"), (WAIT_MS_KEY, value))
    busy = error_of(grpc.StatusCode.UNAVAILABLE, "later", trailing)
    assert isinstance(busy, BusyError)
    assert 0 < busy.wait_s <= WAIT_MAX_S


async def test_a_bug_on_the_other_side_is_internal(grid: Grid) -> None:
    grid.volunteers.bug = True
    with pytest.raises(InternalError):
        await ask(grid.endpoint)


async def test_a_server_that_is_gone_is_unavailable(grid: Grid) -> None:
    await grid.server.stop(None)
    with pytest.raises(UnavailableError):
        await ask(grid.endpoint)


async def test_another_certificate_is_not_spoken_to(grid: Grid) -> None:
    other = make_certificate().certificate_pem.decode()
    with pytest.raises(UnavailableError):
        await ask(replace(grid.endpoint, certificate_pem=other))


async def test_a_stream_gives_its_messages_and_then_its_error(grid: Grid) -> None:
    async with open_channel(grid.endpoint, lambda: None) as channel:
        stub = campaigns_pb2_grpc.CampaignsStub(channel)
        names = []
        with pytest.raises(StaleSequenceError, match="enough"):
            async for campaign in stub.Watch(campaigns_pb2.GetCampaignRequest()):
                names.append(campaign.name)
    assert names == ["one", "two"]


def test_every_code_has_a_status() -> None:
    assert set(STATUS_BY_CODE) == set(ErrorCode)
    assert TokenExpiredError.code in STATUS_BY_CODE


@given(st.integers(1, 10_000), st.integers())
def test_backoff_stays_within_its_limit(attempt: int, seed: int) -> None:
    assert 0 <= backoff_s(attempt, random.Random(seed)) <= min(BACKOFF_MAX_S, 2.0 ** min(attempt, 10))
