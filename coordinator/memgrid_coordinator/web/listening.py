"""Listen for connections, and take no more of them than were said: in all, and from one address."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

_BACKLOG = 512
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What strangers may take of the HTTP plane."""

    connections_max: int = 4096
    per_address_max: int = 256
    handshake_max_s: float = 10.0
    idle_max_s: float = 75.0
    """From a connection's opening, or its last answer, to the next whole request head."""
    silence_max_s: float = 30.0
    """For which a reader may take nothing of what was sent."""


class Connections:
    """Counts what is open from the moment it is accepted: a connection that never says a word is one, too."""

    def __init__(self, limits: ConnectionLimits, refused: Callable[[str], None]) -> None:
        self._limits = limits
        self._refused = refused
        self._open: Counter[str] = Counter()
        self.count = 0

    def admit(self, address: str) -> bool:
        """Count one more from this peer, unless that were too many."""
        if self.count >= self._limits.connections_max:
            self._refused("all")
            return False
        if self._open[address] >= self._limits.per_address_max:
            self._refused("address")
            return False
        self.count += 1
        self._open[address] += 1
        return True

    def forget(self, address: str) -> None:
        """One of this peer's has ended."""
        self.count -= 1
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class _Connection(socket.socket):
    """Says when it is closed, by whomever: a failed handshake never reaches the application."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        told, self.on_close = self.on_close, None
        if told is not None:
            told()
        super().close()


class _Listener(socket.socket):
    """Hands out only connections that there is room for; the others are reset before a byte was read."""

    connections: Connections
    silence_max_s: float

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, peer = super().accept()
        address = peer_key(peer[0])
        if not self.connections.admit(address):
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            accepted.close()
            raise ConnectionAbortedError("there are too many connections")  # asyncio goes on to the next
        connection = _Connection(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        connection.on_close = lambda: self.connections.forget(address)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The kernel ends a connection whose reader takes nothing: whoever waits to write to it is told.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1e3 * self.silence_max_s))
        return connection, peer


class LimitedSite(web.BaseSite):
    """Like aiohttp's TCPSite, on one address, within limits."""

    def __init__(
        self,
        runner: web.BaseRunner,
        place: tuple[socket.AddressFamily, Any],
        connections: Connections,
        limits: ConnectionLimits,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=_BACKLOG)
        self._family, self._address = place
        self._connections = connections
        self._limits = limits

    @property
    def name(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    async def start(self) -> None:
        """Raises OSError when the address is taken."""
        listener = self._listener()
        try:
            await super().start()
            serve = self._runner.server
            assert serve is not None
            self._server = await asyncio.get_running_loop().create_server(
                serve,
                sock=listener,
                ssl=self._ssl_context,
                backlog=self._backlog,
                ssl_handshake_timeout=self._limits.handshake_max_s if self._ssl_context else None,
            )
        except BaseException:
            listener.close()
            raise

    def _listener(self) -> socket.socket:
        listener = _Listener(self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.connections, listener.silence_max_s = self._connections, self._limits.silence_max_s
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(self._address)
        except OSError:
            listener.close()
            raise
        return listener


async def places_of(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """Where to listen for a name or an address: a name may have several. Raises OSError when it is nobody's."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def peer_key(host: str) -> str:
    """What counts as one peer: an IPv4 address, or the /64 that one IPv6 customer has for itself.

    >>> peer_key("203.0.113.9"), peer_key("::ffff:203.0.113.9"), peer_key("2001:db8:1:2:3::4")
    ('203.0.113.9', '203.0.113.9', '2001:db8:1:2::')
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False).network_address)
