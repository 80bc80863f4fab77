"""What an account asks about its credit and its team, and the answer, on the wire."""

from __future__ import annotations

import math

from memgrid.errors import InvalidError
from memgrid.teams import CODE_LENGTH_MAX, Standing, TeamAsk
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.wire.basics import TEXT_MAX, integer, parse, text
from memgrid.wire.enrolment import nonce_from_message


def team_to_body(ask: TeamAsk) -> bytes:
    message = pb.TeamRequest(nonce=ask.nonce, code=ask.code)
    if ask.team is not None:
        message.team = ask.team
    return message.SerializeToString(deterministic=True)


def team_from_body(body: bytes) -> TeamAsk:
    message = parse(pb.TeamRequest(), body)
    if len(message.code) > CODE_LENGTH_MAX:
        raise InvalidError(f"code: expected at most {CODE_LENGTH_MAX} characters")
    team = text("team", message.team) if message.HasField("team") else None
    return TeamAsk(nonce=nonce_from_message(message.nonce), team=team, code=message.code)


def standing_to_message(standing: Standing) -> pb.Standing:
    return pb.Standing(
        flops=standing.flops,
        escrow_flops=standing.escrow_flops,
        results=standing.results,
        rank=standing.rank,
        ranked=standing.ranked,
        team=standing.team,
        team_members=standing.team_members,
        team_flops=standing.team_flops,
        join_code=standing.join_code,
    )


def standing_from_message(message: pb.Standing) -> Standing:
    for name, value in (("flops", message.flops), ("escrow_flops", message.escrow_flops)):
        if not math.isfinite(value):
            raise InvalidError(f"standing.{name}: expected a number, found {value}")
    return Standing(
        flops=message.flops,
        escrow_flops=message.escrow_flops,
        results=integer("standing.results", message.results),
        rank=message.rank,
        ranked=message.ranked,
        team=message.team[:TEXT_MAX],
        team_members=message.team_members,
        team_flops=message.team_flops,
        join_code=message.join_code[:CODE_LENGTH_MAX],
    )
