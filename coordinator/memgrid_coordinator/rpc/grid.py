"""The Grid service: unpack, call one service method, pack."""

from __future__ import annotations

from typing import Any

from memgrid.leaderboard import board_ask, leaderboard_to_message
from memgrid.v1 import grid_pb2 as pb
from memgrid.v1 import grid_pb2_grpc as pb_grpc
from memgrid.wire import reason_to_message, timestamp_to_message
from memgrid_coordinator.policy import roles
from memgrid_coordinator.records import Role
from memgrid_coordinator.rpc.interceptor import caller
from memgrid_coordinator.services.explaining import Explaining, Line
from memgrid_coordinator.services.overview import Overview


class GridServicer(pb_grpc.GridServicer):
    def __init__(self, explaining: Explaining, overview: Overview) -> None:
        self._explaining = explaining
        self._overview = overview

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.Story:  # noqa: N802
        roles.check(caller(), Role.READER, "explaining")
        story = await self._explaining.explain(request.id)
        return pb.Story(
            kind=story.kind, id=story.id, summary=story.summary, events=[_event(line) for line in story.lines]
        )

    async def GetLeaderboard(self, request: pb.LeaderboardRequest, context: Any) -> pb.Leaderboard:  # noqa: N802
        ask = board_ask(by=request.by, period=request.period, cursor=request.cursor, lines_max=request.lines_max)
        return leaderboard_to_message(await self._overview.leaderboard(ask))


def _event(line: Line) -> pb.Event:
    reason = line.event.reason
    return pb.Event(
        at=timestamp_to_message(line.event.at),
        name=line.event.name,
        text=line.text,
        reason=None if reason is None else reason_to_message(reason),
    )
