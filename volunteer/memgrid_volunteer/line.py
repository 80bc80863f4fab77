"""The line to one grid: found, fetched for, told, delivered to, and said goodbye to."""

from __future__ import annotations

import asyncio
import contextlib
import random

from memgrid.endpoint import GridEndpoint, discover
from memgrid.errors import InvalidError, UnavailableError
from memgrid_volunteer.correspondence import Correspondence
from memgrid_volunteer.deliveries import Deliveries
from memgrid_volunteer.loops import together
from memgrid_volunteer.member import Member
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.preparing import Preparing
from memgrid_volunteer.transfers import Transfers
from memgrid_volunteer.travelling import Travelling


class Line:
    """What has to be done for one grid and waits for no other."""

    def __init__(
        self,
        *,
        member: Member,
        transfers: Transfers,
        preparing: Preparing,
        deliveries: Deliveries,
        travelling: Travelling,
        correspondence: Correspondence,
        rng: random.Random,
        backoff: Backoff,
        is_one_of_many: bool,
    ) -> None:
        self.member = member
        self.preparing = preparing
        self.deliveries = deliveries
        self.correspondence = correspondence
        self._transfers = transfers
        self._travelling = travelling
        self._rng = rng
        self._backoff = backoff
        self._is_one_of_many = is_one_of_many
        self._connection = contextlib.AsyncExitStack()

    async def run(self) -> None:
        """Raises what only the owner can mend: a grid that knows us not, has another key, or another of us."""
        await self._connection.enter_async_context(self._transfers.connected(await self._find()))
        await together(
            self.preparing.prepare_offers(),
            self.deliveries.deliver(),
            self._travelling.run(),
            self.correspondence.correspond(),
        )

    async def say_goodbye(self, limit_s: float) -> None:
        """Once nothing runs: tell what is finished and what is given back, and hang up."""
        try:
            await self.correspondence.say_goodbye(limit_s)
        finally:
            await self._connection.aclose()

    async def _find(self) -> GridEndpoint:
        """The grid, when it answers: a volunteer outlasts its coordinator's absence from the first moment on."""
        failures, member = 0, self.member
        while True:
            try:
                endpoint = await asyncio.to_thread(discover, member.membership.url)
            except (UnavailableError, InvalidError) as error:
                # What stands before a grid that is away may answer in its place; others need not wait for that.
                if isinstance(error, InvalidError) and not self._is_one_of_many:
                    raise
                failures += 1
                member.away = str(error)
                if failures == 1:
                    member.diary.note(f"{error}; trying again until it does")
                await asyncio.sleep(self._backoff(failures, self._rng))
            else:
                member.away = None
                return endpoint
