"""The control plane, opened for one command."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio

from memgrid.channel import open_channel
from memgrid.endpoint import GridEndpoint, discover
from memgrid.v1.campaigns_pb2_grpc import CampaignsStub
from memgrid.v1.grid_pb2_grpc import GridStub

if TYPE_CHECKING:  # names that exist in the stub files only
    from memgrid.v1.campaigns_pb2_grpc import CampaignsAsyncStub
    from memgrid.v1.grid_pb2_grpc import GridAsyncStub


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """The services an operator speaks to."""

    endpoint: GridEndpoint
    campaigns: CampaignsAsyncStub
    grid: GridAsyncStub


@asynccontextmanager
async def control_plane(endpoint: GridEndpoint, token: str | None) -> AsyncIterator[ControlPlane]:
    """Calls on it raise MemgridError."""
    channel: grpc.aio.Channel = open_channel(endpoint, lambda: token)
    try:
        yield ControlPlane(endpoint=endpoint, campaigns=CampaignsStub(channel), grid=GridStub(channel))
    finally:
        await channel.close()


def find_grid(grid: str) -> GridEndpoint:
    """The grid at a URL, its certificate checked."""
    return discover(grid)
