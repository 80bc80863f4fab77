"""What the pages show, read in one snapshot each and kept for some seconds: readers cost the grid little."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.cube.info import CubeInfo
from memgrid.cube.manifest import CubeManifest
from memgrid.errors import UnknownCampaignError, UnknownCubeError
from memgrid.leaderboard import RANK_MAX, BoardAsk, Leaderboard, Ranked
from memgrid.units import UnitKey
from memgrid_coordinator.lifecycle import CampaignState, LeaseState
from memgrid_coordinator.metrics import UNIT_KINDS
from memgrid_coordinator.records import CampaignId, PoolCube
from memgrid_coordinator.services.gauging import ALIVE
from memgrid_coordinator.services.keeping import Keeping
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.store import (
    campaigns,
    gauges,
    hosts,
    leaderboard,
    overview,
    overview_campaigns,
    overview_cubes,
    overview_units,
    pulls,
)
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.views import (
    CampaignLine,
    CampaignsView,
    CampaignView,
    Compute,
    CubesView,
    CubeView,
    GridView,
    ListedCube,
    PoolTotals,
    Span,
    UnitsView,
)

KEEP_S = 5.0
CAMPAIGNS_PAGE = 20
DOCUMENTS_PAGE = 50
CUBES_PAGE = 24
_VERSIONS_MAX = 50
_WORDS_MAX = 16
_PROGRESS_COLUMNS = 60

Value = TypeVar("Value")


class Overview:
    """Read-only, for everybody: nothing here needs a role, so nothing here tells who or where somebody is."""

    def __init__(self, *, store: Store, clock: Clock, blobs: BlobStore, publishing: Publishing) -> None:
        self._store = store
        self._clock = clock
        self._blobs = blobs
        self._publishing = publishing
        self._kept = Keeping(clock, keep_s=KEEP_S)

    async def close(self) -> None:
        """Look nothing up any more."""
        await self._kept.close()

    def now(self) -> datetime:
        """The present, for pages that say how long ago something was."""
        return self._clock.now()

    async def grid(self, span: Span) -> GridView:
        """The grid at a glance, its plots going back so far."""
        return await self._kept.get(("grid", span), lambda: self._read(partial(_grid, span)))

    async def campaigns(self, *, state: CampaignState | None = None, page: int = 1) -> CampaignsView:
        """A page of campaigns, newest first; `page` counts from 1."""
        find = partial(_campaigns, state, page)
        return await self._kept.get(("campaigns", state, page), lambda: self._read(find))

    async def campaign(self, campaign_id: str, *, page: int = 1) -> CampaignView:
        """A campaign with a page of its documents; raises UnknownCampaignError."""
        find = partial(_campaign, campaign_id, page)
        return await self._kept.get(("campaign", campaign_id, page), lambda: self._read(find))

    async def leaderboard(self, ask: BoardAsk) -> Leaderboard:
        """Who gave most, accounts or teams: one page."""
        return await self._kept.get(("leaderboard", ask), lambda: self._read(partial(_leaderboard, ask)))

    async def cubes(self, text: str, *, base: str = "", kind: str = "", page: int = 1) -> CubesView:
        """A page of the cubes that have every word of `text`, newest first."""
        words = text.split()[:_WORDS_MAX]
        return await self._store.read(partial(_cubes, words, base, kind, page))

    async def cube(self, text: str) -> CubeView:
        """A cube by `namespace/name[:tag][@digest]`; raises InvalidError, UnknownCubeError."""
        manifest = await self._publishing.resolve(text)
        find = partial(overview_cubes.of_manifest, repository=manifest.repository, manifest_digest=manifest.digest)
        cube = await self._store.read(find)
        if cube is None:
            raise UnknownCubeError(f"{text} is in the pool, but it is no cube")
        # memcube.json, which is what the cube's digest is of.
        content = await asyncio.to_thread(self._blobs.read_bytes, cube.digest)
        return await self._store.read(partial(_cube, cube, CubeManifest.from_bytes(content)))

    async def units(self, keys: Sequence[UnitKey]) -> UnitsView:
        """How units stand and which cubes they went into; a key that means nothing here is left out."""
        return UnitsView(units=await self._store.read(partial(overview_units.of_keys, keys=keys)))

    async def _read(self, query: Callable[[Connection, datetime], Value]) -> Value:
        now = self._clock.now()
        return await self._store.read(lambda connection: query(connection, now))


def _span_start(now: datetime, span: Span) -> datetime:
    """Where the first column begins: columns stand at whole multiples of their width, the last one under way."""
    width = span.width
    last = now - (now - datetime.min.replace(tzinfo=now.tzinfo)) % width
    return last - (span.length // width - 1) * width


def _grid(span: Span, connection: Connection, now: datetime) -> GridView:
    start, width, columns = _span_start(now, span), span.width, span.length // span.width
    units, made_flops = overview.made(connection)
    results, given_flops = overview.credited(connection)
    held, payload_bytes, tokens = overview_cubes.totals(connection)
    pulled, grown = pulls.totals(connection), overview.growth(connection, start, width, columns)
    rejected = overview.rejections(connection)
    reports = {
        LeaseState.AGREED.value: results,
        LeaseState.REPORTED.value: gauges.live_leases(connection, UNIT_KINDS).get(LeaseState.REPORTED, 0),
        LeaseState.REJECTED.value: sum(count for _, count in rejected),
    }
    return GridView(
        at=now,
        span=span,
        machines=overview.machines(connection, now - ALIVE),
        compute=Compute(
            results=results,
            units=units,
            made_flops=made_flops,
            given_flops=given_flops,
            reused_flops=float(gauges.shared(connection).flops),
            pulled_flops=pulled.flops,
        ),
        pool=PoolTotals(
            cubes=held,
            payload_bytes=payload_bytes,
            tokens=tokens,
            pulls=pulled.pulls,
            growth=tuple((min(at, now), cubes) for at, cubes in grown),
        ),
        units_by_state=_units_by_state(connection),
        reports_by_state=reports,
        rejections=rejected,
        history=overview.history(connection, start, width, columns),
    )


def _units_by_state(connection: Connection) -> dict[str, int]:
    by_state: Counter[str] = Counter()
    for (_, state), units in gauges.units_by_kind_and_state(connection).items():
        by_state[state] += units
    return dict(by_state)


def _campaigns(state: CampaignState | None, page: int, connection: Connection, now: datetime) -> CampaignsView:
    by_state = campaigns.count_by_state(connection)
    wanted = overview_campaigns.newest(
        connection, state=state, skip=(page - 1) * CAMPAIGNS_PAGE, limit=CAMPAIGNS_PAGE
    )
    fleet = hosts.speeds_seen_since(connection, now - ALIVE)
    return CampaignsView(
        at=now,
        campaigns=overview_campaigns.lines(connection, wanted, fleet),
        total=sum(by_state.values()) if state is None else by_state.get(state, 0),
        by_state=by_state,
    )


def _campaign(campaign_id: str, page: int, connection: Connection, now: datetime) -> CampaignView:
    found = campaigns.beginning_with(connection, campaign_id)
    if found != [campaign_id]:
        raise UnknownCampaignError(f"there is no campaign {campaign_id[:80]!r}")
    wanted, fleet = found[0], hosts.speeds_seen_since(connection, now - ALIVE)
    line = overview_campaigns.lines(connection, [wanted], fleet)[0]
    done = overview_campaigns.work(connection, wanted)
    skip = (page - 1) * DOCUMENTS_PAGE
    return CampaignView(
        at=now,
        line=line,
        reports_by_state=done.reports_by_state,
        rejections=done.rejections,
        spent_flops=done.spent_flops,
        device_hours=campaigns.device_hours(connection, wanted),
        volunteers=done.volunteers,
        progress=_progress(connection, wanted, line, now),
        documents=overview_campaigns.page_of_documents(connection, wanted, skip=skip, limit=DOCUMENTS_PAGE),
        documents_total=line.documents,
    )


def _progress(
    connection: Connection, campaign_id: CampaignId, line: CampaignLine, now: datetime
) -> tuple[tuple[datetime, int], ...]:
    lasted = (line.ended_at or now) - line.created_at
    width = max(lasted / _PROGRESS_COLUMNS, timedelta(milliseconds=1))
    return overview_campaigns.progress(connection, campaign_id, line.created_at, width, _PROGRESS_COLUMNS)


def _leaderboard(ask: BoardAsk, connection: Connection, now: datetime) -> Leaderboard:
    first_day, skip, limit = ask.period.first_day(now), ask.skip, min(ask.lines_max, RANK_MAX - ask.skip)
    if ask.ranked is Ranked.TEAMS:
        sums = leaderboard.sums_of_teams(connection, first_day)
        lines = leaderboard.of_teams(connection, first_day=first_day, skip=skip, limit=limit)
    else:
        sums = leaderboard.sums_of_accounts(connection, first_day)
        alive_since = now - ALIVE
        lines = leaderboard.of_accounts(
            connection, first_day=first_day, alive_since=alive_since, skip=skip, limit=limit
        )
    end = skip + len(lines)
    return Leaderboard(
        at=now,
        ranked=ask.ranked,
        period=ask.period,
        lines=lines,
        total=sums.total,
        flops=sums.flops,
        results=sums.results,
        cursor=str(end) if lines and end < min(sums.total, RANK_MAX) else "",
    )


def _cubes(words: list[str], base: str, kind: str, page: int, connection: Connection) -> CubesView:
    skip = (page - 1) * CUBES_PAGE
    found, total = overview_cubes.found(connection, words=words, base=base, kind=kind, skip=skip, limit=CUBES_PAGE)
    pulled = pulls.of(connection, [cube.digest for cube in found])
    return CubesView(
        cubes=tuple(ListedCube(cube=cube, pulls=pulled.get(cube.digest, 0)) for cube in found),
        total=total,
        bases=overview_cubes.bases(connection),
        kinds=overview_cubes.kinds(connection),
    )


def _cube(cube: PoolCube, manifest: CubeManifest, connection: Connection) -> CubeView:
    origin = overview_cubes.origin(connection, cube.digest)
    return CubeView(
        cube=cube,
        info=CubeInfo.of(manifest),
        policy=manifest.validation.policy,
        units=manifest.cost.units,
        pulls=pulls.of(connection, [cube.digest]).get(cube.digest, 0),
        volunteers=0 if origin is None else origin.volunteers,
        versions=overview_cubes.versions(connection, cube.repository, _VERSIONS_MAX),
        parents=tuple((parent.cube, parent.operation) for parent in manifest.lineage),
        losses=() if origin is None else origin.losses,
        campaign=None if origin is None else (origin.campaign_id, origin.campaign_name),
        files=tuple((file.title or "", file.size_bytes) for file in manifest.listed()),
    )
