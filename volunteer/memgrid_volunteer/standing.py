"""Ask the grid how an account stands, and change its team: by signature, so that a host at work keeps its session."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from memgrid.channel import open_channel, told_wait_s
from memgrid.endpoint import discover
from memgrid.errors import BusyError
from memgrid.signing import TEAM_TYPE, SigningKey
from memgrid.teams import Standing, TeamAsk
from memgrid.v1 import volunteers_pb2_grpc as pb_grpc
from memgrid.wire import signed_to_message, standing_from_message, team_to_body
from memgrid_volunteer.session import CALL_LIMIT_S, get_challenge

_TRIES = 5


async def ask_standing(
    url: str, *, key: SigningKey, team: str | None = None, code: str = "", home: Path | None = None
) -> Standing:
    """How the account of a key stands; first a change of its team when `team` is given (empty: to leave it).

    Waits its turn in a crowd, a few times. Raises MemgridError.
    """
    endpoint = await asyncio.to_thread(discover, url, home=home)
    channel, rng, ticket = open_channel(endpoint, lambda: None), random.Random(), ""
    try:
        stub = pb_grpc.VolunteersStub(channel)
        for left in reversed(range(_TRIES)):
            try:
                challenge = await get_challenge(stub, ticket)
                body = team_to_body(TeamAsk(nonce=challenge.nonce, team=team, code=code))
                signed = signed_to_message(key.sign(TEAM_TYPE, body))
                return standing_from_message(await stub.AskStanding(signed, timeout=CALL_LIMIT_S))
            except BusyError as busy:
                if not left:
                    raise
                ticket = busy.ticket
                await asyncio.sleep(told_wait_s(busy, rng))
        raise AssertionError("the last try returns or raises")
    finally:
        await channel.close()
