"""What follows when content is lost: nobody is given it, and whoever still wants it has it computed again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.log import get_logger
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.records import Event
from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.store import events, reachable, units
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a lost blob was part of."""

    digest: Digest
    recomputed: int
    """Units that are open again, because somebody wants them."""
    manifests: tuple[str, ...]
    """Published things that can't be had whole until somebody pushes the same content again."""


class Healing:
    """Takes results back whose content is gone."""

    def __init__(self, *, store: Store, clock: Clock, keep_failed: timedelta, bell: Bell | None = None) -> None:
        self._store = store
        self._clock = clock
        self._keep_failed = keep_failed
        self._bell = bell

    async def lost(self, digest: Digest) -> Loss:
        """Carry the loss of some content through; twice is harmless."""
        loss = await self._store.write(lambda connection: self._carry_through(connection, digest))
        log.error(
            "content lost",
            digest=digest,
            units_open_again=loss.recomputed,
            published_in=", ".join(loss.manifests) or "nothing",
        )
        if loss.recomputed and self._bell is not None:
            self._bell.ring_for_work()
        return loss

    def _carry_through(self, connection: Connection, digest: Digest) -> Loss:
        now = self._clock.now()
        failed_since = now - self._keep_failed
        made = reachable.units_with_result(connection, digest)
        reachable.without_results(connection, made)
        wanted = reachable.wanted_of(connection, made, failed_since)
        units.take_up_again(connection, wanted)
        opened = units.openable(connection, wanted)
        units.open_units(connection, opened, now)
        reason = Reason(code=ReasonCode.STATE_MISSING, text=f"its result {digest[:19]}… was damaged on disk")
        events.append(connection, [Event(at=now, name="unit_lost", unit_id=one, reason=reason) for one in made])
        named = reachable.manifests_naming(connection, digest)
        return Loss(
            digest=digest,
            recomputed=len(wanted),
            manifests=tuple(f"{repository}@{manifest[:19]}" for repository, manifest in named),
        )
