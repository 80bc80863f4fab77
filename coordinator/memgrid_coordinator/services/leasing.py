"""Sync: take what a host brings, give what it may have, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.errors import BadSignatureError, NotAllowedError, SessionReplacedError, StaleSequenceError
from memgrid.log import get_logger
from memgrid.signing import REPORTS_TYPE, SignedBody
from memgrid.units import (
    Cancellation,
    HostId,
    LeaseId,
    LeaseOffer,
    Reason,
    ReasonCode,
    Release,
    SyncAnswer,
    SyncAsk,
    UploadOrder,
    VerdictNotice,
)
from memgrid.wire import reports_from_body
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.crowd import LaneName
from memgrid_coordinator.policy.kinds import spec_in
from memgrid_coordinator.policy.life import VERDICTS_ON_THE_UNIT, Changed, UnitEvent
from memgrid_coordinator.records import Caller, Event, Host, Lease, Role
from memgrid_coordinator.services.bell import Bell, wait_for
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.door import Door
from memgrid_coordinator.services.granting import Granting
from memgrid_coordinator.services.intake import Taken, take_reports
from memgrid_coordinator.services.judging import Judging
from memgrid_coordinator.services.offers import (
    cancellation_of,
    offer_of,
    verdict_of,
)
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.settling import Settlement, settle
from memgrid_coordinator.services.travelling import Travelling, offered_to
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import checkpoints, events, hosts, leases, units, uploads
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
_SHARE_OF_THE_IDLE = 0.5
"""Of the room in line, for hosts that hold nothing: those who work are heard before those who want work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exchange:
    """One Sync as it was written, and what to tell others now that it is."""

    answer: SyncAnswer
    settlement: Settlement
    taken: Taken
    released: tuple[Lease, ...]
    """With the reason they were given back for."""
    granted: tuple[str, ...]
    """The kinds of the units newly leased."""


class Leasing:
    """What volunteers' hosts talk to."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        catalogue: Catalogue,
        bell: Bell,
        door: Door,
        judging: Judging,
        granting: Granting,
        rule: JudgingRule,
        travelling: Travelling,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._catalogue = catalogue
        self._bell = bell
        self._door = door
        self._judging = judging
        self._granting = granting
        self._rule = rule
        self._travelling = travelling
        self._draining = False

    def drain(self) -> None:
        """Hand out nothing new, and let nobody wait for it."""
        self._draining = True
        self._bell.ring_everybody()

    async def sync(self, caller: Caller, ask: SyncAsk, signed: SignedBody | None) -> SyncAnswer:
        """One exchange; held open while there is nothing to say, as long as the host asked for at most."""
        if caller.role is not Role.VOLUNTEER:
            raise NotAllowedError("only a volunteer's host may sync")
        ask = _with_reports(caller, ask, signed)
        wait_s = min(ask.wait, self._settings.long_poll_max).total_seconds()
        exchange = await (
            self._long_poll(caller, ask, signed, wait_s) if wait_s > 0 else self._exchange(caller, ask, signed)
        )
        if exchange.answer.idle_reason is not None:
            self._metrics.idle_answers.labels(exchange.answer.idle_reason.code.value).inc()
        return exchange.answer

    async def _long_poll(self, caller: Caller, ask: SyncAsk, signed: SignedBody | None, wait_s: float) -> _Exchange:
        """Exchange again whenever the host was rung for, until there is something to say.

        It listens from before the first exchange on, so that no ring is missed; without one nothing has changed, and
        a wait that ends in silence ends with the answer it had.
        """
        assert caller.host_id is not None
        until_s = self._clock.monotonic_s() + wait_s
        again = replace(ask, reports=(), sketches={}, released=())
        with self._bell.listening(caller.host_id) as heard:
            exchange = await self._exchange(caller, ask, signed)
            while exchange.answer.is_empty and not self._draining:
                left_s = until_s - self._clock.monotonic_s()
                if left_s <= 0 or not await wait_for(heard, left_s):
                    break
                exchange = await self._exchange(caller, again, None)
        if exchange.granted and exchange.answer.idle_reason is None:
            self._bell.pass_on()
        return exchange

    async def leave(self, caller: Caller) -> None:
        """Give back every lease of the host and end its session."""
        now = self._clock.now()

        def step(connection: Connection) -> Settlement:
            assert caller.host_id is not None and caller.session_id is not None
            reason = Reason(code=ReasonCode.LEAVING, text="its host left the grid")
            held = leases.held_by(connection, caller.host_id)
            given_back = [Release(lease_id=lease.lease_id, fence=lease.fence, reason=reason) for lease in held]
            released = self._release(connection, caller.host_id, given_back, now)
            changed = [lease.unit_id for lease in released]
            hosts.end_session(connection, caller.host_id, caller.session_id)
            return settle(connection, dict.fromkeys(changed, Changed()), known={}, rule=self._rule, now=now)

        async with self._door.place(LaneName.INSIDE):
            self._judging.announce(await self._store.write(step))

    async def _exchange(self, caller: Caller, ask: SyncAsk, signed: SignedBody | None) -> _Exchange:
        """A long poll holds a place only here: between its exchanges it costs nothing but its own memory."""
        brings = signed is not None or ask.held or ask.released
        async with self._door.place(LaneName.INSIDE, share=1.0 if brings else _SHARE_OF_THE_IDLE):
            now = self._clock.now()
            exchange = await self._store.write(lambda connection: self._step(connection, caller, ask, signed, now))
        self._judging.announce(exchange.settlement)
        self._observe(caller, exchange)
        return exchange

    def _step(
        self, connection: Connection, caller: Caller, ask: SyncAsk, signed: SignedBody | None, now: datetime
    ) -> _Exchange:
        host = self._host(connection, caller, ask.sequence, now)
        taken = Taken()
        if signed is not None:
            if signed.public_key != host.public_key:
                raise BadSignatureError(f"the reports are not signed with the key of host {host.host_id}")
            taken = take_reports(
                connection, host, signed, ask.reports, ask.sketches, self._catalogue, self._rule, now
            )
        released = self._release(connection, host.host_id, ask.released, now)
        changed = [*taken.changed, *(lease.unit_id for lease in released)]
        happened: dict[int, UnitEvent] = taken.follows | dict.fromkeys(changed, Changed())
        settlement = settle(connection, happened, known={}, rule=self._rule, now=now)
        # Asked before anybody is given the units that this host gives back.
        checkpoints_wanted = self._travelling.order(connection, host, ask.released, now)
        held = {lease.lease_id: lease for lease in leases.held_by(connection, host.host_id)}
        named = {lease.lease_id for lease in ask.held}
        lost = [lease for lease_id, lease in held.items() if lease_id not in named]
        impossible: dict[int, UnitEvent] = {}
        resent = self._resend(connection, host, lost, impossible, now)
        wanted = ask.want - len(lost)
        granted, idle = self._granting.grant(
            connection,
            host,
            wanted,
            list(held.values()),
            impossible,
            now,
            draining=self._draining,
            wishes=ask.wishes,
        )
        settlement.merge(settle(connection, impossible, known={}, rule=self._rule, now=now))
        offers = (*resent, *granted)
        answer = SyncAnswer(
            leases=offers,
            models=tuple(self._catalogue.files(connection, model) for model in sorted({o.model for o in offers})),
            acks=taken.acks,
            verdicts=self._verdicts(connection, host.host_id, ask.awaiting),
            uploads=(*self._orders(connection, host.host_id), *checkpoints_wanted),
            cancelled=self._cancellations(connection, host.host_id, [i for i in named if i not in held]),
            idle_reason=idle,
            call_again_in=self._call_again_in(host, idle, now),
        )
        return _Exchange(
            answer=answer,
            settlement=settlement,
            taken=taken,
            released=tuple(released),
            granted=tuple(spec_in(offer.spec).kind for offer in granted),
        )

    def _host(self, connection: Connection, caller: Caller, sequence: int, now: datetime) -> Host:
        assert caller.host_id is not None and caller.session_id is not None
        host = hosts.get_host(connection, caller.host_id)
        if host is None or host.session_id != caller.session_id:
            raise SessionReplacedError(f"host {caller.host_id} has logged in elsewhere since; log in again")
        if not hosts.advance(connection, host.host_id, caller.session_id, sequence, now):
            raise StaleSequenceError(f"sync {sequence} is older than {host.sequence}, the last one seen")
        return host

    def _release(
        self, connection: Connection, host_id: HostId, given_back: Sequence[Release], now: datetime
    ) -> list[Lease]:
        """Take leases back; returns those that were held. What is not the host's, or not held, is passed over."""
        held = leases.by_id(connection, [release.lease_id for release in given_back]) if given_back else {}
        released = []
        for release in given_back:
            lease = held.get(release.lease_id)
            if lease is None or lease.host_id != host_id or lease.fence != release.fence:
                continue
            if leases.move(connection, [lease.lease_id], "release", release.reason):
                released.append(replace(lease, reason=release.reason))
                if release.reason.code in _SPEAKS_AGAINST_THE_UNIT:
                    units.count_failures(connection, [lease.unit_id])
                    checkpoints.forget(connection, lease.unit_id, lease.account_id)
                events.append(connection, [_event("lease_released", lease, now, release.reason)])
        return released

    def _resend(
        self,
        connection: Connection,
        host: Host,
        lost: Sequence[Lease],
        impossible: dict[int, UnitEvent],
        now: datetime,
    ) -> list[LeaseOffer]:
        """Leases that the host does not know of: the answer that carried them never arrived."""
        found = units.by_id(connection, {lease.unit_id for lease in lost})
        begun = offered_to(connection, host, list(found), now)
        pairs = [(lease, found[lease.unit_id]) for lease in lost]
        offers = [
            offer_of(lease, unit, host, inputs, begun.get(unit.unit_id))
            for lease, unit in pairs
            for inputs in [self._granting.inputs(connection, unit, impossible)]
        ]
        return [offer for offer, (_, unit) in zip(offers, pairs, strict=True) if unit.unit_id not in impossible]

    def _verdicts(
        self, connection: Connection, host_id: HostId, awaiting: Sequence[LeaseId]
    ) -> tuple[VerdictNotice, ...]:
        if not awaiting:
            return ()
        settled = {one.lease_id: one for one in leases.settled(connection, host_id, awaiting)}
        notices = [verdict_of(lease_id, settled.get(lease_id)) for lease_id in awaiting]
        return tuple(notice for notice in notices if notice is not None)

    def _orders(self, connection: Connection, host_id: HostId) -> tuple[UploadOrder, ...]:
        return tuple(uploads.ordered_from(connection, host_id))

    def _cancellations(
        self, connection: Connection, host_id: HostId, gone: Sequence[LeaseId]
    ) -> tuple[Cancellation, ...]:
        """Why leases that a host believes to hold are not its any more."""
        found = leases.by_id(connection, gone) if gone else {}
        return tuple(cancellation_of(lease_id, found.get(lease_id), host_id) for lease_id in gone)

    def _call_again_in(self, host: Host, idle: Reason | None, now: datetime) -> timedelta:
        if idle is None:
            return timedelta(0)
        if idle.code is ReasonCode.HOST_SUSPENDED and host.suspended_until is not None:
            return min(host.suspended_until - now, 12 * self._settings.call_again_idle)
        return self._settings.call_again_idle

    def _observe(self, caller: Caller, exchange: _Exchange) -> None:
        """Count what is on disk now."""
        for kind in exchange.granted:
            self._metrics.leases_granted.labels(kind).inc()
        for seconds in exchange.taken.lease_s:
            self._metrics.unit_stage_s.labels("lease").observe(seconds)
        for ack in exchange.taken.acks:
            answer = "accepted" if ack.reason is None else ack.reason.code.value
            self._metrics.reports.labels(answer).inc()
            if ack.reason is not None:
                self._metrics.refusals.labels("report", ack.reason.code.value).inc()
                log.warning(
                    "report turned down",
                    host_id=caller.host_id,
                    lease_id=ack.lease_id,
                    reason=ack.reason.code.value,
                    text=ack.reason.text,
                )
        for lease in exchange.released:
            if lease.reason is not None:
                self._metrics.releases.labels(lease.reason.code.value).inc()
        for offer in exchange.answer.leases:
            if offer.checkpoint is not None:
                self._metrics.checkpoints.labels("given").inc()


_SPEAKS_AGAINST_THE_UNIT = VERDICTS_ON_THE_UNIT | {
    ReasonCode.UNIT_FAILED,
    ReasonCode.OUT_OF_MEMORY,
    ReasonCode.INPUT_UNAVAILABLE,
}


def _with_reports(caller: Caller, ask: SyncAsk, signed: SignedBody | None) -> SyncAsk:
    """The ask with its reports, once their signature held and they belong to this very call."""
    if signed is None:
        return ask
    signed.verify(REPORTS_TYPE)
    batch = reports_from_body(signed.body)
    if (batch.host_id, batch.session_id, batch.sequence) != (caller.host_id, caller.session_id, ask.sequence):
        raise BadSignatureError("the reports were signed for another host, another log-in or another sync")
    return replace(ask, reports=batch.reports)


def _event(name: str, lease: Lease, now: datetime, reason: Reason | None = None) -> Event:
    return Event(
        at=now,
        name=name,
        unit_id=lease.unit_id,
        lease_id=lease.lease_id,
        host_id=lease.host_id,
        reason=reason,
    )
