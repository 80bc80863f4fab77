"""One gRPC server with every service, TLS and health checking."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from memgrid.channel import SERVER_OPTIONS
from memgrid.errors import UnavailableError
from memgrid.v1 import campaigns_pb2_grpc, grid_pb2_grpc, volunteers_pb2_grpc
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.rpc.campaigns import CampaignsServicer
from memgrid_coordinator.rpc.grid import GridServicer
from memgrid_coordinator.rpc.interceptor import CallInterceptor
from memgrid_coordinator.rpc.receiving import DEFAULT_MESSAGES, MessageLimits
from memgrid_coordinator.rpc.volunteers import VolunteersServicer
from memgrid_coordinator.services.campaigns import Campaigns
from memgrid_coordinator.services.enrolment import EnrolmentService
from memgrid_coordinator.services.explaining import Explaining
from memgrid_coordinator.services.leasing import Leasing
from memgrid_coordinator.services.overview import Overview
from memgrid_coordinator.services.teams import Teams


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcServices:
    """What the gRPC side calls."""

    enrolment: EnrolmentService
    leasing: Leasing
    campaigns: Campaigns
    explaining: Explaining
    overview: Overview
    teams: Teams


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcLimits:
    """What strangers may take of the control plane."""

    connections_max: int
    handshake_max_s: float
    idle_max_s: float
    streams_max: int = 128
    """Calls under way on one connection; others wait at the client."""
    pending_max: int = 10_000
    """Calls that have come and were not looked at yet. gRPC drops some beyond that, and all beyond twice as many,
    without a word; its own 1000 are fewer than a crowd that could be told when to come back."""

    messages: MessageLimits = DEFAULT_MESSAGES

    def to_options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_allowed_incoming_connections", self.connections_max),
            ("grpc.server_handshake_timeout_ms", int(1e3 * self.handshake_max_s)),
            ("grpc.max_connection_idle_ms", int(1e3 * self.idle_max_s)),
            ("grpc.max_concurrent_streams", self.streams_max),
            ("grpc.server.max_pending_requests", self.pending_max),
            ("grpc.server.max_pending_requests_hard_limit", 2 * self.pending_max),
            # Nobody's messages get smaller by it, and a packed one costs its sender a thousandth of what it costs us.
            ("grpc.compression_enabled_algorithms_bitset", 1),
        ]


class RpcServer:
    """Serves the control plane on one port."""

    def __init__(self, services: RpcServices, metrics: Metrics, limits: RpcLimits) -> None:
        interceptor = CallInterceptor(services.enrolment.identify, metrics, limits.messages)
        self._server = grpc.aio.server(interceptors=[interceptor], options=[*SERVER_OPTIONS, *limits.to_options()])
        self._health = health.aio.HealthServicer()
        volunteers_pb2_grpc.add_VolunteersServicer_to_server(
            VolunteersServicer(services.enrolment, services.leasing, services.teams), self._server
        )
        campaigns_pb2_grpc.add_CampaignsServicer_to_server(CampaignsServicer(services.campaigns), self._server)
        grid_pb2_grpc.add_GridServicer_to_server(GridServicer(services.explaining, services.overview), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self, address: str, *, key_pem: bytes, chain_pem: bytes) -> int:
        """Begin to serve; returns the port, which is chosen freely when `address` ends in :0."""
        credentials = grpc.ssl_server_credentials([(key_pem, chain_pem)])
        try:
            port = self._server.add_secure_port(address, credentials)
        except RuntimeError:  # grpc has no other word for it
            raise UnavailableError(f"gRPC: {address} is taken or not ours; choose another with --grpc-port") from None
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return int(port)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let those in hand finish, then close."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
