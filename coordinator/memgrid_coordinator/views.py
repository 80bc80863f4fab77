"""What the web pages show: frozen values, read in one snapshot, without a host's name or address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from memgrid.cube.info import CubeInfo
from memgrid.units import Reason, UnitKey
from memgrid_coordinator.lifecycle import CampaignState, DocumentState, UnitState
from memgrid_coordinator.records import CampaignId, PoolCube


class Span(StrEnum):
    """How far back a plot looks."""

    HOUR = "1h"
    DAY = "1d"
    WEEK = "7d"
    MONTH = "30d"

    @property
    def length(self) -> timedelta:
        return _LENGTHS[self]

    @property
    def width(self) -> timedelta:
        """Of one column of a plot.

        >>> Span.DAY.width, Span.DAY.length // Span.DAY.width
        (datetime.timedelta(seconds=1800), 48)
        """
        return _WIDTHS[self]


_LENGTHS = {
    Span.HOUR: timedelta(hours=1),
    Span.DAY: timedelta(days=1),
    Span.WEEK: timedelta(days=7),
    Span.MONTH: timedelta(days=30),
}
_WIDTHS = {
    Span.HOUR: timedelta(minutes=1),
    Span.DAY: timedelta(minutes=30),
    Span.WEEK: timedelta(hours=3),
    Span.MONTH: timedelta(hours=12),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One column of the plot of work: what was credited from `at` on."""

    at: datetime
    results: int
    flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Who computes: `alive` were heard of lately, and are `flops_per_s` fast together, as observed."""

    volunteers: int
    known: int
    alive: int
    flops_per_s: float
    devices: tuple[tuple[str, int], ...]
    """Of the machines alive: names of devices and how many there are, most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Where compute went. `made_flops` counts every accepted unit once, `given_flops` its replicas too."""

    results: int
    units: int
    made_flops: float
    given_flops: float
    reused_flops: float
    """Not computed, because another campaign had: units that several documents are made of."""
    pulled_flops: float
    """Not computed by whoever pulled a cube: what it took to make, for each pull."""

    @property
    def redundancy(self) -> float | None:
        """How often a unit was computed, on average."""
        return self.given_flops / self.made_flops if self.made_flops else None

    @property
    def saved_flops(self) -> float:
        return self.reused_flops + self.pulled_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTotals:
    """What the pool holds; `growth` is how many cubes there were at the end of each column of the span."""

    cubes: int
    payload_bytes: int
    tokens: int
    pulls: int
    growth: tuple[tuple[datetime, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GridView:
    """The grid at a glance."""

    at: datetime
    span: Span
    machines: Machines
    compute: Compute
    pool: PoolTotals
    units_by_state: Mapping[str, int]
    reports_by_state: Mapping[str, int]
    rejections: tuple[tuple[str, int], ...]
    """Reason codes and how often, most first."""
    history: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignLine:
    """A campaign as lists show it."""

    campaign_id: CampaignId
    name: str
    state: CampaignState
    recipe: str
    model: str
    created_at: datetime
    ended_at: datetime | None
    documents_by_state: Mapping[DocumentState, int]
    units_by_state: Mapping[str, int]
    tokens: int
    tokens_accepted: int
    produced_flops: float
    eta_s: float | None

    @property
    def documents(self) -> int:
        return sum(self.documents_by_state.values())

    @property
    def cubes(self) -> int:
        return self.documents_by_state.get(DocumentState.PUBLISHED, 0)

    @property
    def share_done(self) -> float:
        """Between 0 and 1; a completed campaign is done, whatever it left out."""
        if self.state is CampaignState.COMPLETED:
            return 1.0
        return self.tokens_accepted / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignsView:
    """One page of the list, newest first."""

    at: datetime
    campaigns: tuple[CampaignLine, ...]
    total: int
    by_state: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLine:
    """A document on its way to a cube; where its text came from is told by the cube, once there is one."""

    name: str
    state: DocumentState
    tokens: int
    units: int
    units_accepted: int
    cube: str
    reason: Reason | None
    stage: str | None
    """What a distillation waits for; None for documents whose units say everything."""
    steps: int
    steps_total: int
    losses: tuple[tuple[int, float], ...]
    gap_closed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignView:
    """A campaign as its own page shows it, with one page of its documents."""

    at: datetime
    line: CampaignLine
    reports_by_state: Mapping[str, int]
    rejections: tuple[tuple[str, int], ...]
    spent_flops: float
    device_hours: float
    volunteers: int
    """Accounts that were credited for a unit of it."""
    progress: tuple[tuple[datetime, int], ...]
    """Tokens accepted by the end of each column, from its beginning to its end, or now."""
    documents: tuple[DocumentLine, ...]
    documents_total: int

    @property
    def redundancy(self) -> float | None:
        return self.spent_flops / self.line.produced_flops if self.line.produced_flops else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCube:
    """A cube as lists show it."""

    cube: PoolCube
    pulls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CubesView:
    """One page of what a search found; `bases` and `kinds` are what there is to choose from."""

    cubes: tuple[ListedCube, ...]
    total: int
    bases: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeView:
    """A cube as its own page shows it."""

    cube: PoolCube
    info: CubeInfo
    policy: str
    """How its units were checked."""
    units: int
    pulls: int
    volunteers: int
    versions: tuple[str, ...]
    parents: tuple[tuple[str, str], ...]
    """Digest and operation of each cube it was derived from."""
    losses: tuple[tuple[int, float], ...]
    campaign: tuple[CampaignId, str] | None
    files: tuple[tuple[str, int], ...]
    """Names and sizes in bytes of everything in its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSums:
    """Everybody on a leaderboard, together."""

    total: int
    flops: float
    results: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCube:
    """A document that needs a unit, and what became of it."""

    reference: str
    """`namespace/name:version` of its cube; empty while there is none."""
    state: DocumentState
    campaign_id: CampaignId
    campaign_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitView:
    """A unit as those see it who have computed it."""

    key: UnitKey
    kind: str
    state: UnitState
    cubes: tuple[UnitCube, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsView:
    """Those of the units one has asked about that the grid knows."""

    units: tuple[UnitView, ...]
