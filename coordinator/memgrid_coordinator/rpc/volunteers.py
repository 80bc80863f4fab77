"""The Volunteers service: unpack, call one service method, pack."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from memgrid import wire
from memgrid.channel import TICKET_KEY
from memgrid.v1 import common_pb2 as common
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.v1 import volunteers_pb2_grpc as pb_grpc
from memgrid_coordinator.policy.diversity import network_of
from memgrid_coordinator.rpc.interceptor import caller
from memgrid_coordinator.services.enrolment import EnrolmentService
from memgrid_coordinator.services.leasing import Leasing
from memgrid_coordinator.services.teams import Teams


class VolunteersServicer(pb_grpc.VolunteersServicer):
    def __init__(self, enrolment: EnrolmentService, leasing: Leasing, teams: Teams) -> None:
        self._enrolment = enrolment
        self._leasing = leasing
        self._teams = teams

    async def GetChallenge(self, request: pb.GetChallengeRequest, context: Any) -> pb.Challenge:  # noqa: N802
        return wire.challenge_to_message(self._enrolment.get_challenge(_ticket(context.invocation_metadata())))

    async def Enrol(self, request: common.Signed, context: Any) -> pb.Enrolment:  # noqa: N802
        signed = wire.signed_from_message(request)
        return wire.enrolment_to_message(await self._enrolment.enrol(signed))

    async def LogIn(self, request: common.Signed, context: Any) -> pb.Session:  # noqa: N802
        signed = wire.signed_from_message(request)
        return wire.session_to_message(await self._enrolment.log_in(signed, network_of(_address(context.peer()))))

    async def Sync(self, request: pb.SyncRequest, context: Any) -> pb.SyncResponse:  # noqa: N802
        ask, signed = wire.sync_ask_from_message(request)
        return wire.sync_answer_to_message(await self._leasing.sync(caller(), ask, signed))

    async def AskStanding(self, request: common.Signed, context: Any) -> pb.Standing:  # noqa: N802
        return wire.standing_to_message(await self._teams.ask(wire.signed_from_message(request)))

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveResponse:  # noqa: N802
        await self._leasing.leave(caller())
        return pb.LeaveResponse()


def _address(peer: str) -> str:
    """The address in what gRPC calls a peer; empty where it names none.

    >>> _address("ipv4:93.184.216.34:50413"), _address("ipv6:%5B2606:2800::1%5D:50413"), _address("unix:/run/grid")
    ('93.184.216.34', '2606:2800::1', '')
    """
    family, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else ""


def _ticket(metadata: Any) -> str:
    """The appointment that a call keeps, if it was given one."""
    return next((value for key, value in metadata or () if key == TICKET_KEY and isinstance(value, str)), "")
