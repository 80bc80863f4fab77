"""Shut volunteers out, and let them in again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.errors import AmbiguousIdError, InvalidError, UnknownIdError
from memgrid.units import AccountId, HostId, LeaseId, Reason, ReasonCode
from memgrid_coordinator.lifecycle import LeaseState, UnitState
from memgrid_coordinator.policy import roles
from memgrid_coordinator.policy.life import Changed, UnitEvent, UploadFailed
from memgrid_coordinator.records import Caller, Event, Role
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.settling import settle
from memgrid_coordinator.store import audit_log, bans, events, leases, uploads
from memgrid_coordinator.store.engine import Store

_REASON_MAX = 200
_SHORTEST_ID = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Banned:
    """What a ban touched."""

    account_id: AccountId
    hosts: tuple[HostId, ...]
    leases_ended: int


class Banning:
    """Works on the database alone: a running coordinator finds the sessions gone and the units open again."""

    def __init__(self, store: Store, clock: Clock, rule: JudgingRule) -> None:
        self._store = store
        self._clock = clock
        self._rule = rule

    async def ban(self, caller: Caller, who: str, why: str) -> Banned:
        """Shut an account out with all its hosts. What it holds is withdrawn, what it reported and nobody decided
        is rejected, what was ordered from it is ordered from another; what others confirmed stays, and its credit.

        `who` is a host or an account, or a unique beginning of the id. Raises UnknownIdError, AmbiguousIdError.
        """
        roles.check(caller, Role.OWNER, "banning")
        if not 0 < len(why) <= _REASON_MAX:
            raise InvalidError(f"--reason: expected 1 to {_REASON_MAX} characters")
        now = self._clock.now()
        return await self._store.write(lambda connection: self._ban(connection, caller, who, why, now))

    async def unban(self, caller: Caller, who: str) -> AccountId:
        """Let an account log in again."""
        roles.check(caller, Role.OWNER, "unbanning")
        now = self._clock.now()

        def step(connection: Connection) -> AccountId:
            account_id = _find(connection, who)
            if bans.unban(connection, account_id):
                audit_log.note(connection, caller, "unban", account_id, now)
                events.append(connection, _told("host_unbanned", bans.hosts_of(connection, account_id), now, ""))
            return account_id

        return await self._store.write(step)

    def _ban(self, connection: Connection, caller: Caller, who: str, why: str, now: datetime) -> Banned:
        account_id = _find(connection, who)
        if bans.ban(connection, account_id, why, now):
            audit_log.note(connection, caller, "ban", account_id, now, detail=why)
            events.append(connection, _told("host_banned", bans.hosts_of(connection, account_id), now, why))
        reason = Reason(code=ReasonCode.BANNED, text=f"its account was banned: {why}")
        ended = self._end_what_it_has(connection, account_id, reason, now)
        found = tuple(bans.hosts_of(connection, account_id))
        return Banned(account_id=account_id, hosts=found, leases_ended=ended)

    def _end_what_it_has(self, connection: Connection, account_id: AccountId, reason: Reason, now: datetime) -> int:
        happened: dict[int, UnitEvent] = {}
        rows = bans.under_way(connection, account_id)
        told = []
        for verb, state in (("cancel", LeaseState.LEASED), ("reject", LeaseState.REPORTED)):
            ended = [row for row in rows if row.state == state]
            if ended:
                leases.move(connection, [LeaseId(row.lease_id) for row in ended], verb, reason)
            told += [_lease_event(verb, row.lease_id, row.unit_id, row.host_id, reason, now) for row in ended]
        events.append(connection, told)
        happened |= {row.unit_id: Changed() for row in rows if row.unit_state == UnitState.OPEN}
        ordered = leases.by_id(connection, bans.ordered_from(connection, account_id))
        if ordered:
            refused = uploads.end(connection, list(ordered), "refuse")
            happened |= {
                ordered[lease_id].unit_id: UploadFailed(lease_id=lease_id, reason=reason) for lease_id in refused
            }
        # Comparisons that follow from it are found by the sweep that looks for undecided units.
        settle(connection, happened, known={}, rule=self._rule, now=now)
        return len(rows) + len(ordered)


def _find(connection: Connection, who: str) -> AccountId:
    if len(who) < _SHORTEST_ID:
        raise InvalidError(f"expected at least {_SHORTEST_ID} characters of a host or an account, found {who!r}")
    found = bans.beginning_with(connection, who)
    if not found:
        raise UnknownIdError(
            f"there is no host or account {who[:80]!r}; see `memgrid explain` for whose lease it was"
        )
    if len(found) > 1:
        raise AmbiguousIdError(f"several accounts or hosts begin with {who!r}; give more of the id")
    return found[0]


def _told(name: str, host_ids: Sequence[HostId], now: datetime, detail: str) -> list[Event]:
    return [Event(at=now, name=name, host_id=host_id, detail=detail) for host_id in host_ids]


def _lease_event(verb: str, lease_id: str, unit_id: int, host_id: str, reason: Reason, now: datetime) -> Event:
    name = {"cancel": "lease_cancelled", "reject": "report_rejected"}[verb]
    return Event(at=now, name=name, unit_id=unit_id, lease_id=lease_id, host_id=host_id, reason=reason)
