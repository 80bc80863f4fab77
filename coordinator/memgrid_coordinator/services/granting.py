"""Which units a host is given: what is open, now and then one whose answer is known, a copy of what is late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from random import Random

from sqlalchemy import Connection

from memgrid.kinds.refusal import RefusedError
from memgrid.units import NO_WISHES, BlobRef, LeaseOffer, Reason, Wishes
from memgrid_coordinator.policy import dispatch, tails, trust
from memgrid_coordinator.policy.deadlines import DeadlineRule, deadline, estimate_s
from memgrid_coordinator.policy.diversity import may_confirm
from memgrid_coordinator.policy.life import Changed, Impossible, UnitEvent
from memgrid_coordinator.policy.tails import TailRule
from memgrid_coordinator.records import Event, Host, Lease, Unit
from memgrid_coordinator.services.offers import PastLostError, inputs_of, new_lease, offer_of
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.travelling import offered_to
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import events, leases, origins, trust_records, units
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.wishes import which_are_wished

Given = tuple[list[LeaseOffer], Reason | None]
"""New leases, and why there are not more."""


class Granting:
    """Takes units out of the store for a host, within one transaction of whoever asks."""

    def __init__(
        self, *, settings: Settings, blobs: BlobStore, rule: JudgingRule, new_id: Callable[[], str], rng: Random
    ) -> None:
        self._settings = settings
        self._blobs = blobs
        self._rule = rule
        self._new_id = new_id
        self._rng = rng
        self._deadlines = DeadlineRule(
            slack=settings.lease_slack, shortest=settings.lease_shortest, longest=settings.lease_longest
        )
        self._tails = TailRule()

    def grant(
        self,
        connection: Connection,
        host: Host,
        want: int,
        held: Sequence[Lease],
        impossible: dict[int, UnitEvent],
        now: datetime,
        *,
        draining: bool,
        wishes: Wishes = NO_WISHES,
    ) -> Given:
        """Units whose inputs are gone are noted in `impossible`, with what that means for them."""
        allowed, reason = self._allowance(connection, host, want, held, now, draining=draining)
        if not allowed:
            return [], reason
        found = self._open(connection, host, allowed, now, wishes)
        inputs = {unit.unit_id: self.inputs(connection, unit, impossible) for unit in found}
        chosen = [unit for unit in found if unit.unit_id not in impossible]
        if len(chosen) < allowed and reason is None:
            reason = self._idle_reason(connection, host, bool(chosen), now, wishes)
        besides = self._besides(connection, host, is_idle=not chosen, now=now) if len(chosen) < allowed else []
        may_have = which_are_wished(connection, [unit.unit_id for unit in besides], wishes, host.flops_per_s)
        besides = [unit for unit in besides if unit.unit_id in may_have]
        for unit in besides:
            unusable: dict[int, UnitEvent] = {}
            inputs[unit.unit_id] = self.inputs(connection, unit, unusable)
            besides = [] if unusable else besides
        taken = [*chosen, *besides]
        if not taken:
            return [], reason
        units.take_vacancies(connection, [unit.unit_id for unit in chosen])
        units.advance_fences(connection, [unit.unit_id for unit in besides])
        granted = self._leases(connection, host, taken, held, now)
        leases.grant(connection, granted)
        events.append(connection, [_granted(lease, now) for lease in granted])
        begun = offered_to(connection, host, [unit.unit_id for unit in taken], now)
        pairs = zip(granted, taken, strict=True)
        offers = [offer_of(lease, unit, host, inputs[unit.unit_id], begun.get(unit.unit_id)) for lease, unit in pairs]
        return offers, reason

    def inputs(self, connection: Connection, unit: Unit, impossible: dict[int, UnitEvent]) -> tuple[BlobRef, ...]:
        """The files a unit reads; none where it can't be computed, which is noted."""
        try:
            return inputs_of(connection, unit, self._blobs)
        except RefusedError as refusal:
            impossible[unit.unit_id] = Impossible(reason=refusal.reason)
        except PastLostError:
            impossible[unit.unit_id] = Changed()  # not now; whoever asks later may have it
        return ()

    def _allowance(
        self, connection: Connection, host: Host, want: int, held: Sequence[Lease], now: datetime, *, draining: bool
    ) -> tuple[int, Reason | None]:
        """How many the host may have: of a new account all hosts together little, more with every audit passed."""
        most = self._settings.leases_held_max
        allowed, reason = dispatch.allowance(
            host, want=max(0, want), held=len(held), held_max=most, draining=draining, now=now
        )
        if not allowed:
            return 0, reason
        good = trust_records.good_of(connection, host.account_id)
        trusted_with = trust.held_max(good, self._rule.trust, most)
        if trusted_with >= most:
            return allowed, reason
        held_by_all = leases.count_held(connection, host.account_id)
        return dispatch.within_quota(allowed, reason, held=held_by_all, held_max=trusted_with, passed=good)

    def _idle_reason(
        self, connection: Connection, host: Host, has_some: bool, now: datetime, wishes: Wishes
    ) -> Reason:
        has_others = wishes.are_picky and not has_some and units.lease_candidates(connection, host, 1, now)
        return dispatch.idle_reason(open_units=has_some or units.has_vacancies(connection), are_wished=not has_others)

    def _open(self, connection: Connection, host: Host, most: int, now: datetime, wishes: Wishes) -> list[Unit]:
        """Open units, less those on which somebody works who may well be the same person."""
        looked_at = most * dispatch.LOOKED_AT_FOR_ONE if wishes.cached_models else most
        found = units.lease_candidates(connection, host, looked_at, now, wishes)
        found = dispatch.preferred(found, wishes.cached_models, most)
        if not host.network or not found:
            return found  # on a private network everybody is somebody else
        own = origins.of_account(connection, host.account_id, host.network)
        others = origins.of_units(connection, [unit.unit_id for unit in found])
        return [unit for unit in found if all(may_confirm(own, other) for other in others.get(unit.unit_id, ()))]

    def _besides(self, connection: Connection, host: Host, *, is_idle: bool, now: datetime) -> list[Unit]:
        """What a host is given beside open work: seldom a unit that was done; and when idle, one that is late."""
        found = []
        if self._rng.random() < self._settings.canary_share:
            found = units.canary_for(connection, host, self._rng.random(), now)
        if is_idle and not found:
            found = self._late(connection, host, now)
        return found

    def _late(self, connection: Connection, host: Host, now: datetime) -> list[Unit]:
        running = leases.running(connection, host, now, slack=self._settings.lease_slack)
        key = tails.worth_copying(
            [one.running for one in running],
            flops_per_s=host.flops_per_s,
            units=units.count_about(connection),
            rule=self._tails,
        )
        copied = [one.unit_id for one in running if one.running.unit_key == key]
        return list(units.by_id(connection, copied).values())

    def _leases(
        self, connection: Connection, host: Host, taken: Sequence[Unit], held: Sequence[Lease], now: datetime
    ) -> list[Lease]:
        ahead = units.by_id(connection, {lease.unit_id for lease in held})
        ahead_s = sum(estimate_s(unit.flops, host.flops_per_s) for unit in ahead.values())
        granted = []
        for unit in taken:
            own_s = estimate_s(unit.flops, host.flops_per_s)
            granted.append(new_lease(unit, host, self._new_id(), now, deadline(now, ahead_s, own_s, self._deadlines)))
            ahead_s += own_s
        return granted


def _granted(lease: Lease, now: datetime) -> Event:
    return Event(at=now, name="lease_granted", unit_id=lease.unit_id, lease_id=lease.lease_id, host_id=lease.host_id)
