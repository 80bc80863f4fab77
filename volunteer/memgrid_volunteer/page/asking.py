"""What the page asks the grid, now and then and only while somebody looks: rank and credit, and what units became."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

import httpx

from memgrid.clock import Clock
from memgrid.endpoint import async_http_client, discover
from memgrid.errors import InvalidError, MemgridError, UnavailableError
from memgrid.log import get_logger
from memgrid.teams import Standing
from memgrid.units import UnitKey
from memgrid_volunteer.done import Fate
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home, Place
from memgrid_volunteer.standing import ask_standing
from memgrid_volunteer.tiles import Asked

STANDING_EVERY_S = 120.0
CUBES_EVERY_S = 20.0
AFTER_FAILURE_S = 120.0
FATES_EVERY = timedelta(minutes=5)
"""A unit that is in no cube yet is asked about again after so long."""
FATES_MAX = 50
ASK_LIMIT_S = 15.0
ANSWER_BYTES_MAX = 2 << 20
_FATES_OF_UNIT_MAX = 20
_CUBE = re.compile(r"[a-z0-9][a-z0-9._/-]{0,254}(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?")
_CAMPAIGN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME_LENGTH_MAX = 100

AskGrid = Callable[[Place], Awaitable[Standing]]
"""How the account of a grid stands. Raises MemgridError."""

_What = tuple[str, str]
"""What is asked, and the address of the grid that is asked."""

log = get_logger(__name__)


async def ask_the_grid(place: Place) -> Standing:
    return await ask_standing(place.membership().url, key=place.key())


class GridAsking:
    """Answers are there at the next look: nobody waits for the grid."""

    def __init__(self, home: Home, history: History, clock: Clock, ask_grid: AskGrid) -> None:
        self._ask_grid = ask_grid
        self._home = home
        self._history = history
        self._clock = clock
        self._not_before_s: dict[_What, float] = {}
        self._tasks: dict[_What, asyncio.Task[None]] = {}
        self.asked: dict[str, Asked] = {}
        """By the grid's address; what was not asked yet is missing."""

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def look_at_standing(self) -> Mapping[str, Asked]:
        """The last answers; new ones are asked for when they are old."""
        self._begin("standing", self._ask_standing, STANDING_EVERY_S)
        return self.asked

    def look_for_cubes(self) -> None:
        """Ask what accepted units became, unless that was done just now."""
        self._begin("cubes", self._ask_fates, CUBES_EVERY_S)

    def _begin(self, name: str, ask: Callable[[Place], Awaitable[None]], every_s: float) -> None:
        now_s = self._clock.monotonic_s()
        for place in self._home.places():
            what = (name, place.grid_url)
            if now_s >= self._not_before_s.get(what, now_s):
                self._not_before_s[what] = now_s + every_s
                self._tasks[what] = asyncio.create_task(self._ask(what, ask, place))

    async def _ask(self, what: _What, ask: Callable[[Place], Awaitable[None]], place: Place) -> None:
        name, grid = what
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                await ask(place)
        except (MemgridError, TimeoutError, OSError, httpx.HTTPError, sqlite3.Error) as error:
            log.info("the grid did not say", what=name, error=str(error) or "no answer in time")
            self._not_before_s[what] = self._clock.monotonic_s() + AFTER_FAILURE_S
            if name == "standing":
                before = self.asked.get(grid, Asked())
                self.asked[grid] = Asked(standing=before.standing, reason="the grid does not answer")

    async def _ask_standing(self, place: Place) -> None:
        self.asked[place.grid_url] = Asked(standing=await self._ask_grid(place))

    async def _ask_fates(self, place: Place) -> None:
        grid, now = place.grid_url, self._clock.now()
        keys = self._history.without_fate(grid, now - FATES_EVERY, FATES_MAX)
        if keys:
            fates = fates_in(await self._get(place, f"/v1/units?keys={','.join(keys)}"))
            self._history.tell_fate({key: fates[key] for key in keys if key in fates}, keys, now, grid=grid)

    async def _get(self, place: Place, path: str) -> bytes:
        endpoint = await asyncio.to_thread(discover, place.membership().url)
        async with async_http_client(endpoint) as client, client.stream("GET", path) as answer:
            if answer.status_code != 200:
                raise UnavailableError(f"{endpoint.url}{path[:40]} answers {answer.status_code}")
            content = b""
            async for block in answer.aiter_bytes():
                content += block
                if len(content) > ANSWER_BYTES_MAX:
                    raise InvalidError(f"{endpoint.url}: the answer about units is too long")
            return content


def fates_in(content: bytes) -> Mapping[UnitKey, tuple[Fate, ...]]:
    """What a grid says of units. Raises InvalidError for what is no such answer.

    >>> fates_in(b'''{"units": [{"key": "ab", "cubes": [
    ...     {"reference": "", "campaign_id": "c1", "campaign_name": "x"}]}]}''')
    {'ab': (Fate(cube='', campaign_id='c1', campaign='x'),)}
    """
    try:
        units = json.loads(content)["units"]
        return {UnitKey(str(unit["key"])): _fates(unit["cubes"][:_FATES_OF_UNIT_MAX]) for unit in units}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidError(f"the grid's answer about units can't be read: {error}"[:200]) from None


def _fates(cubes: list[dict[str, Any]]) -> tuple[Fate, ...]:
    """A grid is a stranger, and these become addresses: what has another form is left out."""
    found = []
    for cube in cubes:
        reference, campaign_id = str(cube["reference"]), str(cube["campaign_id"])
        if _CAMPAIGN_ID.fullmatch(campaign_id) and (not reference or _CUBE.fullmatch(reference)):
            name = str(cube["campaign_name"])[:_NAME_LENGTH_MAX]
            found.append(Fate(cube=reference, campaign_id=campaign_id, campaign=name))
    return tuple(dict.fromkeys(found))
