"""Nobody confirms their own result, nor that of somebody who may well be themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from memgrid.units import AccountId
from memgrid_coordinator.policy.diversity import BURST, Origin, may_confirm, network_of

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

# Made of numbers: hypothesis's own addresses take over a second to begin with on a busy machine.
four = st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
six = st.integers(0, 2**128 - 1).map(lambda number: str(IPv6Address(number)))
addresses = st.one_of(four, six)
origins = st.builds(
    Origin,
    account_id=st.sampled_from("abcd").map(AccountId),
    network=st.one_of(addresses.map(network_of), st.sampled_from(["", "8.8.8.0/24", "8.8.9.0/24", "2600:1::/48"])),
    enrolled_at=st.integers(0, 7200).map(lambda seconds: BEGIN + timedelta(seconds=seconds)),
)


def origin(account: str, network: str, after: timedelta = timedelta()) -> Origin:
    return Origin(account_id=AccountId(account), network=network, enrolled_at=BEGIN + after)


@given(origins, origins)
def test_confirming_is_mutual(one: Origin, other: Origin) -> None:
    assert may_confirm(one, other) == may_confirm(other, one)


@given(origins, addresses)
def test_nobody_confirms_their_own(one: Origin, address: str) -> None:
    elsewhere = Origin(
        account_id=one.account_id, network=network_of(address), enrolled_at=one.enrolled_at + 2 * BURST
    )
    assert not may_confirm(one, one)
    assert not may_confirm(one, elsewhere)


@given(origins, origins)
def test_one_network_never_confirms_itself(one: Origin, other: Origin) -> None:
    if one.network and one.network == other.network:
        assert not may_confirm(one, other)


@given(origins)
def test_a_private_address_speaks_neither_for_nor_against(one: Origin) -> None:
    assert may_confirm(one, origin("somebody else", ""))


def test_neighbours_that_came_together_are_one_person_until_a_burst_is_over() -> None:
    first = origin("a", "8.8.8.0/24")
    assert not may_confirm(first, origin("b", "8.8.9.0/24", BURST - timedelta(seconds=1)))
    assert may_confirm(first, origin("b", "8.8.9.0/24", BURST))
    assert may_confirm(first, origin("b", "8.9.9.0/24"))
    assert not may_confirm(origin("a", "2600:1:2::/48"), origin("b", "2600:1:3::/48"))
    assert may_confirm(origin("a", "2600:1:2::/48"), origin("b", "8.8.8.0/24"))


@given(st.binary(max_size=40).map(lambda some: some.decode("latin-1")))
def test_whatever_an_address_says_it_is_a_network_or_nothing(text: str) -> None:
    assert network_of(text) == "" or "/" in network_of(text)


@given(four)
def test_a_mapped_address_is_the_one_it_maps(address: str) -> None:
    assert network_of(f"::ffff:{address}") == network_of(address)
