"""Units that are ready to run, until a device takes one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from memgrid.digest import Digest
from memgrid_volunteer.bench import Bench
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.member import Member
from memgrid_volunteer.sharing import Sharing

PASSED_OVER_MAX = 4
"""So often others go before a unit because their model is warm; then it is its turn."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    member: Member
    prepared: Prepared
    passed_over: int = 0

    @property
    def is_held(self) -> bool:
        return self.member.desk.holds(self.prepared.offer.lease_id)


class Ready:
    """A queue that a device leaves alone while it may not compute, and that spares it loading another model.

    Whose unit comes next is said by shares; which of that grid's, by the model that is loaded.
    """

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._waiting: list[_Waiting] = []
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    async def put(self, member: Member, prepared: Prepared, *, first: bool = False) -> None:
        """`first`: it has been taken before, and could not be run."""
        async with self._changed:
            self._waiting.insert(0 if first else len(self._waiting), _Waiting(member=member, prepared=prepared))
            self._changed.notify_all()

    async def take(self, bench: Bench) -> tuple[Member, Prepared] | None:
        """The next unit for a device, once it may compute; None when it has left."""
        async with self._changed:
            while not (bench.has_left or (self._waiting and bench.may_compute)):
                await self._changed.wait()
            if bench.has_left:
                return None
            waiting = self._of_next_grid(bench.warm_model)
            index = choice([(one.prepared.offer.model, one.passed_over) for one in waiting], bench.warm_model)
            for one in waiting[:index]:
                one.passed_over += 1
            chosen = waiting[index]
            self._waiting = [one for one in self._waiting if one is not chosen]
            return chosen.member, chosen.prepared

    def let_go(self) -> None:
        """Put aside what is done of units that are not held any more: no device has to come for that."""
        gone = [one for one in self._waiting if not one.is_held]
        self._waiting = [one for one in self._waiting if one.is_held]
        for one in gone:
            one.prepared.keep()

    async def look_again(self) -> None:
        """Devices may compute now that did not before."""
        async with self._changed:
            self._changed.notify_all()

    def _of_next_grid(self, warm: Digest | None) -> list[_Waiting]:
        ready = {one.member.grid_id for one in self._waiting}
        at_hand = {one.member.grid_id for one in self._waiting if one.prepared.offer.model == warm}
        grid = self._sharing.turn(ready, at_hand)
        return [one for one in self._waiting if one.member.grid_id == grid]


def choice(waiting: Sequence[tuple[Digest, int]], warm: Digest | None) -> int:
    """Which of the waiting units is next, each with its model and how often it was passed over.

    >>> a, b = Digest("sha256:aa"), Digest("sha256:bb")
    >>> choice([(a, 0), (b, 0)], b), choice([(a, PASSED_OVER_MAX), (b, 0)], b), choice([(a, 0)], b)
    (1, 0, 0)
    """
    if waiting[0][1] < PASSED_OVER_MAX:
        for index, (model, _) in enumerate(waiting):
            if model == warm:
                return index
    return 0
