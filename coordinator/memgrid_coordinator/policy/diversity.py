"""Who may confirm whose result: nobody their own, and nobody the result of somebody who may well be themselves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from memgrid.units import AccountId

BURST = timedelta(minutes=10)
"""Accounts of one neighbourhood that came within this time of each other may be one person's."""
_PREFIX_BITS = {4: 24, 6: 48}
"""What one person commonly holds."""
_NEIGHBOURHOOD_BITS = {4: 16, 6: 32}
"""What one provider commonly holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a result comes from."""

    account_id: AccountId
    network: str
    """As `network_of` says it: the prefix; empty for private and loopback addresses, which say nothing."""
    enrolled_at: datetime


def network_of(address: str) -> str:
    """The network prefix of an address, a /24 or for IPv6 a /48; empty where the address is not a public one.

    >>> network_of("93.184.216.34"), network_of("2606:2800:220:1:248:1893:25c8:1946")
    ('93.184.216.0/24', '2606:2800:220::/48')
    >>> network_of("192.168.1.7"), network_of("::1"), network_of("::ffff:93.184.216.34"), network_of("unix:")
    ('', '', '93.184.216.0/24', '')
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    seen = _unmapped(parsed)
    return str(ip_network((seen, _PREFIX_BITS[seen.version]), strict=False)) if seen.is_global else ""


def may_confirm(one: Origin, other: Origin) -> bool:
    """Whether a result of `one` says something about a result of `other`: they are probably different people.

    >>> from datetime import UTC
    >>> def origin(account, network, minute):
    ...     at = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
    ...     return Origin(account_id=AccountId(account), network=network, enrolled_at=at)
    >>> first = origin("a", "93.184.216.0/24", 0)
    >>> may_confirm(first, origin("b", "151.101.1.0/24", 0)), may_confirm(first, origin("b", "93.184.216.0/24", 30))
    (True, False)
    >>> may_confirm(first, origin("b", "93.184.7.0/24", 5)), may_confirm(first, origin("b", "93.184.7.0/24", 30))
    (False, True)
    """
    if one.account_id == other.account_id:
        return False
    if not one.network or not other.network:
        return True
    if one.network == other.network:
        return False
    is_burst = abs(one.enrolled_at - other.enrolled_at) < BURST
    return not (is_burst and _neighbourhood(one.network) == _neighbourhood(other.network))


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """IPv4 addresses come mapped into IPv6 where a server listens to both."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=4096)
def _neighbourhood(network: str) -> str:
    prefix = ip_network(network)
    return str(prefix.supernet(new_prefix=_NEIGHBOURHOOD_BITS[prefix.version]))
