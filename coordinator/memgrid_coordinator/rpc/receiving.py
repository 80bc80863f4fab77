"""Read a call's message once its caller is known, in bounded memory, and look at its form before parsing it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from memgrid.errors import InvalidError, UnavailableError
from memgrid.wire import SIGNED_BODY_BYTES_MAX, check_field_count


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageLimits:
    """What strangers may send in one call, and how many of them at once."""

    receive_max_s: float = 120.0
    """For which a message may be under way: a slow line takes a minute for the largest."""
    at_once_max: int = 64
    """Messages under way of callers who brought a token; as many again of those who brought none."""
    at_once_per_address_max: int = 16
    open_bytes_max: int = SIGNED_BODY_BYTES_MAX + 4096
    """Of a call that is open to all: no more than a signed body."""
    open_fields_max: int = 64
    fields_max: int = 1 << 16
    """More than any honest message has. A field of two bytes can take seventy when it is parsed."""


DEFAULT_MESSAGES = MessageLimits()


class Receiver:
    """Takes messages in, no more at once than its limits say: gRPC itself would keep as many as there are calls."""

    def __init__(self, limits: MessageLimits) -> None:
        self._limits = limits
        self._open, self._known = (_Places(limits) for _ in range(2))

    async def receive(
        self, context: grpc.aio.ServicerContext[Any, Any], parse: Callable[[bytes], Any], *, is_open: bool
    ) -> Any:
        """The message of a call; raises InvalidError for what is none, UnavailableError when it does not come."""
        limits = self._limits
        places = self._open if is_open else self._known
        try:
            async with asyncio.timeout(limits.receive_max_s), places.of(context.peer()):
                content = await context.read()
        except TimeoutError:
            raise UnavailableError(f"no message came within {limits.receive_max_s:g} s") from None
        if not isinstance(content, bytes):
            raise InvalidError("expected a message, found the end of the call")
        if is_open and len(content) > limits.open_bytes_max:
            raise InvalidError(f"expected a message of at most {limits.open_bytes_max} bytes, found {len(content)}")
        check_field_count(content, limits.open_fields_max if is_open else limits.fields_max)
        try:
            return parse(content)
        except DecodeError:
            raise InvalidError("expected a message of this call's kind, found other bytes") from None


class _Places:
    """So many at once in all, and fewer from one address: who trickles holds up nobody but his neighbours."""

    def __init__(self, limits: MessageLimits) -> None:
        self._all = asyncio.Semaphore(limits.at_once_max)
        self._share = limits.at_once_per_address_max
        self._of_address: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, peer: str) -> AsyncIterator[None]:
        """A place for a peer as gRPC writes it, `ipv4:203.0.113.9:5000`; waits for one."""
        address = peer.rpartition(":")[0]
        places, users = self._of_address.get(address, (asyncio.Semaphore(self._share), 0))
        self._of_address[address] = (places, users + 1)
        try:
            async with places, self._all:
                yield
        finally:
            places, users = self._of_address[address]
            if users > 1:
                self._of_address[address] = (places, users - 1)
            else:
                del self._of_address[address]
