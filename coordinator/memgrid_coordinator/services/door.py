"""Lets a crowd in as fast as it can be served: a place to work at, a line to wait in, or a time to come back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from memgrid.clock import Clock
from memgrid.errors import BusyError
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.crowd import Lane, LaneName, LaneRule, appoint, knock, postpone, wait_s, worked
from memgrid_coordinator.settings import Settings

_TICKET_GOOD_S = 300.0
"""How long after its time an appointment still counts."""
_SOONEST_S = 0.05


def rules_of(settings: Settings) -> dict[LaneName, LaneRule]:
    """What each lane takes."""
    working_max = {LaneName.INSIDE: settings.syncs_at_once_max, LaneName.DOOR: settings.log_ins_at_once_max}
    return {
        name: LaneRule(
            working_max=working_max[name],
            waiting_max=settings.calls_waiting_max,
            wait_max_s=settings.call_wait_max.total_seconds(),
        )
        for name in LaneName
    }


class Door:
    """Counts who is worked for and who waits; whoever is turned away is told so before anything was done."""

    def __init__(self, rules: Mapping[LaneName, LaneRule], *, clock: Clock, metrics: Metrics) -> None:
        self._lanes = {name: Lane(rule=rules[name]) for name in LaneName}
        self._lines: dict[LaneName, deque[asyncio.Future[None]]] = {name: deque() for name in LaneName}
        self._clock = clock
        self._metrics = metrics
        self._secret = secrets.token_bytes(32)
        for name in LaneName:
            self._show(name)

    def knock(self, ticket: str) -> None:
        """Ask to log in or enrol. Raises BusyError with the time to come back, and the ticket to bring then."""
        now_s = self._clock.monotonic_s()
        answer = knock(self._lanes[LaneName.DOOR], now_s, self._appointment_s(ticket, now_s))
        self._lanes[LaneName.DOOR] = answer.lane
        if answer.appointment_s is not None:
            raise self._busy(LaneName.DOOR, now_s, answer.appointment_s)

    @asynccontextmanager
    async def place(self, name: LaneName, *, share: float = 1.0) -> AsyncIterator[None]:
        """Hold a place while the block works; wait in line for one, or be turned away with BusyError.

        `share` is how much of the room in line this call may find filled.
        Whoever is cancelled while waiting, because its client has gone or has no time left, is not worked for.
        """
        await self._take(name, share)
        started_s = self._clock.monotonic_s()
        try:
            yield
        finally:
            self._lanes[name] = worked(self._lanes[name], self._clock.monotonic_s() - started_s)
            self._hand_on(name)

    async def _take(self, name: LaneName, share: float) -> None:
        lane = self._lanes[name]
        if lane.may_start:
            self._lanes[name] = replace(lane, working=lane.working + 1)
            return
        if not lane.may_wait(share):
            raise self._full(name)
        turn = asyncio.get_running_loop().create_future()
        self._lanes[name] = replace(lane, waiting=lane.waiting + 1)
        self._lines[name].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave_line(name, turn)
            else:  # its turn had just come
                self._hand_on(name)
            raise

    def _leave_line(self, name: LaneName, turn: asyncio.Future[None]) -> None:
        self._lanes[name] = replace(self._lanes[name], waiting=self._lanes[name].waiting - 1)
        with suppress(ValueError):
            self._lines[name].remove(turn)

    def _hand_on(self, name: LaneName) -> None:
        """Give a place that has become free to who has waited longest."""
        lane, line = self._lanes[name], self._lines[name]
        while line:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                self._lanes[name] = replace(lane, waiting=lane.waiting - 1)
                return
        self._lanes[name] = replace(lane, working=lane.working - 1)

    def _full(self, name: LaneName) -> BusyError:
        now_s, lane = self._clock.monotonic_s(), self._lanes[name]
        # At the door it was let pass before: it does not go behind those who were not.
        self._lanes[name], at_s = (postpone if name is LaneName.DOOR else appoint)(lane, now_s)
        return self._busy(name, now_s, at_s)

    def _busy(self, name: LaneName, now_s: float, at_s: float) -> BusyError:
        self._metrics.turned_away.labels(name.value).inc()
        at_s = max(at_s, now_s + _SOONEST_S)
        away_s = wait_s(at_s, now_s)
        ticket = self._ticket(at_s) if name is LaneName.DOOR else ""
        return BusyError(f"the grid has its hands full; try again in {away_s:.0f} s", wait_s=away_s, ticket=ticket)

    def _show(self, name: LaneName) -> None:
        self._metrics.calls_working.labels(name.value).set_function(lambda: self._lanes[name].working)
        self._metrics.calls_waiting.labels(name.value).set_function(lambda: self._lanes[name].waiting)

    def _ticket(self, at_s: float) -> str:
        """An appointment that nobody can make up: for who brings it, nothing has to be remembered."""
        moment = f"{at_s:.3f}"
        return f"{moment}/{self._seal(moment)}"

    def _appointment_s(self, ticket: str, now_s: float) -> float | None:
        """The moment on a ticket, if it is ours and not long gone."""
        moment, _, seal = ticket.partition("/")
        if not ticket.isascii() or not hmac.compare_digest(seal, self._seal(moment)):
            return None
        at_s = float(moment)
        return at_s if now_s - at_s <= _TICKET_GOOD_S else None

    def _seal(self, moment: str) -> str:
        # A keyed hash that keeps the interpreter: OpenSSL's would hand it to the writer, at every refusal.
        return hashlib.blake2b(moment.encode(), key=self._secret, digest_size=16).hexdigest()
