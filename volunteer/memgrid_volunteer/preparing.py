"""From offered to ready: inputs are fetched while the devices run other units."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

from memgrid.clock import Clock
from memgrid.errors import InvalidError, MemgridError, TooLargeError, UnavailableError
from memgrid.log import get_logger
from memgrid.units import LeaseOffer, Reason, ReasonCode
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.desk import Stage
from memgrid_volunteer.health import WELL, after_failure
from memgrid_volunteer.inputs import prepare
from memgrid_volunteer.member import Member
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.ready import Ready
from memgrid_volunteer.transfers import Transfers

GiveBack = Callable[[Member, LeaseOffer, Reason], None]

log = get_logger(__name__)


class Preparing:
    """One unit of a grid after another; `give_back` is told of those that can't be had."""

    def __init__(
        self,
        *,
        member: Member,
        ready: Ready,
        cache: BlobCache,
        transfers: Transfers,
        work: Path,
        clock: Clock,
        rng: random.Random,
        backoff: Backoff,
        give_back: GiveBack,
    ) -> None:
        self._member = member
        self._ready = ready
        self._cache = cache
        self._transfers = transfers
        self._work = work
        self._clock = clock
        self._rng = rng
        self._backoff = backoff
        self._give_back = give_back
        self._health = WELL
        self.data_away: str | None = None
        """Why inputs can't be had just now."""

    @property
    def rest_reason(self) -> Reason | None:
        """Why no unit is worth fetching here, when several in a row could not be."""
        return self._health.reason if self._health.is_resting(self._clock.monotonic_s()) else None

    async def prepare_offers(self) -> None:
        """Loop: from offered to ready."""
        failures = 0
        while True:
            held = self._member.desk.find(await self._member.offered.get())
            if held is None:
                self.data_away = None  # nobody is left to find out that it is back
                continue
            offer = held.offer
            try:
                prepared = await prepare(
                    offer,
                    held.model,
                    transfers=self._transfers,
                    cache=self._cache,
                    work=self._work,
                    tag=self._member.tag,
                )
            except UnavailableError as error:
                failures += 1
                await self._wait_for_data(offer, error, failures)
            except (MemgridError, OSError) as error:
                self._can_not_prepare(offer, error)
            else:
                failures, self.data_away, self._health = 0, None, WELL
                if not self._member.desk.holds(offer.lease_id):
                    prepared.keep()  # it went back meanwhile
                    continue
                held.stage = Stage.READY
                await self._ready.put(self._member, prepared)

    async def _wait_for_data(self, offer: LeaseOffer, error: UnavailableError, failures: int) -> None:
        """The grid's store does not answer: no fault of the unit, and its lease is kept as long as it lasts."""
        if self._clock.now() >= offer.deadline_at:
            self.data_away = None
            self._give_back(self._member, offer, _why_not_prepared(error))
            return
        self.data_away = str(error)[:500]
        await asyncio.sleep(self._backoff(failures, self._rng))
        self._member.offered.put_nowait(offer.lease_id)

    def _can_not_prepare(self, offer: LeaseOffer, error: MemgridError | OSError) -> None:
        reason = _why_not_prepared(error)
        if isinstance(error, OSError | TooLargeError):
            # The next unit would fare no better here.
            self._health = after_failure(self._health, reason, self._clock.monotonic_s())
        self._give_back(self._member, offer, reason)


def _why_not_prepared(error: MemgridError | OSError) -> Reason:
    log.warning("unit can't be prepared", error=str(error))
    # A lease that contradicts itself is the unit's fault; everything else may go well elsewhere.
    code = ReasonCode.UNIT_FAILED if isinstance(error, InvalidError) else ReasonCode.INPUT_UNAVAILABLE
    text = f"this host's disk: {error.strerror}" if isinstance(error, OSError) else str(error)[:500]
    return Reason(code=code, text=text)
