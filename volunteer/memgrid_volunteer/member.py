"""One of the grids that this machine computes for: what it has given, what it is owed, and how it stands."""

from __future__ import annotations

import asyncio

from memgrid.digest import Digest
from memgrid.errors import InvalidError, MemgridError
from memgrid.units import LeaseId, Reason
from memgrid_volunteer.desk import Desk
from memgrid_volunteer.grid_diary import GridDiary
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.owner.files import stamp_of
from memgrid_volunteer.places import MEMBERSHIP_FILE, Place


class Member:
    """Nothing in it is another grid's; devices, cache and budget are everybody's."""

    def __init__(self, place: Place, diary: GridDiary, *, tag: str = "") -> None:
        """`tag`: what the names of its leases begin with in folders that grids share; no lease has it in its name."""
        self.membership = place.membership()
        self.grid_id = self.membership.grid_id
        self.key = place.key()
        self.tag = tag
        self.diary = diary
        self.desk = Desk()
        self.outbox = Outbox(place.outbox)
        self.offered: asyncio.Queue[LeaseId] = asyncio.Queue()
        """Leases whose inputs are to be fetched."""
        self.news = asyncio.Event()
        """Set when its coordinator should hear of something."""
        self.away: str | None = None
        """Why the coordinator can't be reached."""
        self.reason: Reason | None = None
        """Why it gave nothing, from its last answer."""
        self.ended: MemgridError | None = None
        """What it turned this host away with, for as long as this process runs."""
        self.models: set[Digest] = set()
        """Those it has named itself."""
        self._place = place
        self._stamp = self._stamp_now()

    @property
    def share(self) -> int:
        """What the owner said last."""
        stamp = self._stamp_now()
        if stamp != self._stamp:
            try:
                self.membership = self._place.membership()
            except InvalidError:
                return self.membership.share  # it is being left, or damaged: the next start says so
            self._stamp = stamp
        return self.membership.share

    @property
    def has_work(self) -> bool:
        """As far as it is known: units are here, or it did not say that there are none."""
        return len(self.desk) > 0 or (self.reason is None and self.away is None and self.ended is None)

    def _stamp_now(self) -> object:
        return stamp_of(self._place.folder / MEMBERSHIP_FILE)
