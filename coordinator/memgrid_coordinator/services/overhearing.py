"""Notice what other coordinators did on the same database, so that calls held open here hear of it too."""

from __future__ import annotations

from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.store import events
from memgrid_coordinator.store.engine import Store

EVENTS_AT_ONCE = 1000
_WORK = frozenset({"unit_opened", "lease_expired", "lease_released", "campaign_submitted"})


class Overhearing:
    """Reads the event log from where it stopped. There is one writer at a time, so ids come in order."""

    def __init__(self, store: Store, bell: Bell) -> None:
        self._store = store
        self._bell = bell
        self._seen: int | None = None

    async def listen(self) -> int:
        """Ring for what happened since the last time; returns how many events that were."""
        if self._seen is None:
            self._seen = await self._store.read(events.newest)
            return 0
        seen = self._seen
        happened = await self._store.read(lambda connection: events.after(connection, seen, EVENTS_AT_ONCE))
        if not happened:
            return 0
        self._seen = happened[-1].event_id
        self._bell.ring_hosts({one.host_id for one in happened if one.host_id is not None})
        if any(one.name in _WORK for one in happened):
            self._bell.ring_for_work()
        return len(happened)
