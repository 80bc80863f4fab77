"""The frozen values the coordinator speaks in, between the wire and the tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

from memgrid.digest import Digest
from memgrid.kinds.audit import Zone
from memgrid.kinds.part import Part
from memgrid.units import (
    AccountId,
    ComputeDtype,
    HostId,
    LeaseId,
    Output,
    Reason,
    SessionId,
    UnitKey,
    WorkFacts,
)
from memgrid_coordinator.lifecycle import CampaignState, DocumentState, LeaseState, UnitState
from memgrid_coordinator.progress import NO_PROGRESS, Progress

CampaignId = NewType("CampaignId", str)


class Role(StrEnum):
    """What a caller may do; an owner may all that an operator may, and an operator all that a reader may."""

    ANONYMOUS = "anonymous"
    VOLUNTEER = "volunteer"
    READER = "reader"
    OPERATOR = "operator"
    OWNER = "owner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who stands behind a call, once their token was checked."""

    role: Role
    host_id: HostId | None = None
    account_id: AccountId | None = None
    session_id: SessionId | None = None
    name: str = ""
    """What the token is called, for the audit log."""


ANONYMOUS = Caller(role=Role.ANONYMOUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A token that an owner gave to a person or a program; its secret is kept nowhere."""

    token_id: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def is_valid_at(self, now: datetime) -> bool:
        """Whether who brings it is let in."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def state_at(self, now: datetime) -> str:
        """In a word."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if self.is_valid_at(now) else "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One line of the audit log: who did what to what."""

    at: datetime
    who: str
    role: Role
    action: str
    subject: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One machine of a volunteer, as the coordinator knows it."""

    host_id: HostId
    account_id: AccountId
    public_key: bytes
    label: str
    session_id: SessionId | None
    sequence: int
    flops_per_s: float
    """Observed, from what its reports took; a guess by device kind before the first."""
    recent_faults: int
    """Rejected reports since the last agreed one."""
    suspended_until: datetime | None
    network: str = ""
    """Where it last logged in from, as a prefix; empty on a private network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One work unit as stored. `unit_id` is the table's own short name for `key`."""

    unit_id: int
    key: UnitKey
    kind: str
    state: UnitState
    spec: bytes
    model: Digest
    token_count: int
    flops: int
    priority: int
    min_replicas: int
    max_replicas: int
    parent_id: int | None
    fence: int
    """The fence of the newest lease; the next lease gets one more."""
    failures: int
    """Leases that expired or failed."""
    output_digest: Digest | None
    """Of the main output, the first."""
    output_bytes: int
    accepted_lease_id: LeaseId | None
    opened_at: datetime | None
    settled_at: datetime | None = None
    reason: Reason | None = None
    """Why it failed or was withdrawn."""
    epsilon: float | None = None
    """The share of wrong results its campaigns bear; None leaves it to the grid."""
    f_bar: float | None = None
    """The share of bad work its campaigns assume; None leaves it to the grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One copy of a unit held by one host; after its report, the report too."""

    lease_id: LeaseId
    unit_id: int
    unit_key: UnitKey
    host_id: HostId
    account_id: AccountId
    fence: int
    state: LeaseState
    granted_at: datetime
    deadline_at: datetime
    reported_at: datetime | None
    outputs: tuple[Output, ...]
    sketch: bytes
    facts: WorkFacts | None
    reason: Reason | None
    is_drawn: bool = False
    """Drawn for an audit when it was reported."""
    disputed: Part | None = None
    """Where it differs from another account's report: its audit looks there."""
    network: str = ""
    """Of its host when it was granted; empty on a private network."""

    @property
    def numerics_class(self) -> str:
        """How its result was rounded, as audits are counted."""
        assert self.facts is not None, f"lease {self.lease_id} has not been reported"
        return f"{self.facts.numerics_class} in {self.facts.compute_dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a host did of a unit before it gave its lease back."""

    lease_id: LeaseId
    unit_id: int
    host_id: HostId
    account_id: AccountId
    fence: int
    digest: Digest
    size_bytes: int
    progress: float
    received_at: datetime | None
    """None while it is ordered."""
    ends_at: datetime


class AuditPurpose(StrEnum):
    """Why a part of a result is computed again."""

    DRAWN = "drawn"
    """It was drawn when it was reported, or its kind is always audited."""
    DISPUTED = "disputed"
    """Another account's report differs there; both are looked at."""
    WAITED = "waited"
    """It is provisional, and no later audits of its host have made it final."""
    LOOK_BACK = "look back"
    """It is final, and its host was found to be at fault since."""


class AuditState(StrEnum):
    WANTED = "wanted"
    SPARED = "spared"
    """Not needed any more: later audits passed, or the result is gone."""
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedAudit:
    """A part of a result that is to be computed again from `due_at` on."""

    lease: Lease
    kind: str
    purpose: AuditPurpose
    due_at: datetime
    audit_id: int = 0
    """Given by the table."""


class Look(StrEnum):
    """One replay of an audit."""

    FIRST = "first"
    ELSEWHERE = "elsewhere"
    """At another part of the same result."""
    AGAIN = "again"
    """At the same part, computed in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What one replay showed; an audit may need several."""

    draw: int
    """Which of the result's draws decided what was replayed."""
    look: Look
    zone: Zone
    statistics: dict[str, float]
    limits: dict[str, float]
    in_words: str
    """The worst of it, and where."""
    seconds: float
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneAudit:
    """An audit and what came of it."""

    audit_id: int
    lease_id: LeaseId
    host_id: HostId
    purpose: AuditPurpose
    done_at: datetime
    zone: Zone
    replays: tuple[Replay, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of a campaign, which becomes one cube."""

    document_id: int
    campaign_id: CampaignId
    name: str
    state: DocumentState
    source_uri: str
    source_digest: Digest
    licence: str
    tokens: int
    units: int
    units_accepted: int
    cube: str
    cube_digest: Digest | None
    reason: Reason | None
    progress: Progress = NO_PROGRESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A campaign and how far it is."""

    campaign_id: CampaignId
    name: str
    state: CampaignState
    model: str
    created_at: datetime
    ended_at: datetime | None
    units_by_state: dict[str, int]
    reports_by_verdict: dict[str, int]
    rejections_by_reason: dict[str, int]
    tokens: int
    tokens_accepted: int
    produced_flops: int
    spent_flops: int
    documents: tuple[Document, ...]
    eta_s: float | None
    recipe: str = "activation"
    device_hours: float = 0.0
    """That hosts said they computed for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUnit:
    """A unit a plan asks for; stored only when no campaign asked for it before."""

    key: UnitKey
    kind: str
    spec: bytes
    model: Digest
    token_count: int
    """Tokens that computing it takes, about: what progress is counted in."""
    flops: int
    parent: UnitKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """How urgently a campaign wants its units, and how well they have to be checked."""

    priority: int = 0
    min_replicas: int
    max_replicas: int
    epsilon: float | None = None
    f_bar: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Content that the grid itself made for a document on its way: a start state, a merged round, scores.

    A name is given once; `detail` is JSON about how it was made.
    """

    name: str
    digest: Digest
    detail: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDocument:
    """A document a plan asks for, and its units in order."""

    name: str
    source_uri: str
    source_digest: Digest
    licence: str
    tokens: int
    units: tuple[NewUnit, ...]
    made: tuple[Made, ...] = ()
    progress: Progress = NO_PROGRESS


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """What one kind of unit will cost. `flops` counts each unit once, `flops_left` replicas of what is not present.

    `serial_flops` are those that can't be shared out: one stretch of training begins where the former ended.
    """

    kind: str
    units: int
    units_present: int
    flops: int
    flops_left: int
    serial_flops: int
    bytes: int
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignEstimate:
    """What a campaign will cost on the hosts now alive; `speeds` are their FLOP/s."""

    recipe: str
    documents: int
    tokens: int
    stages: tuple[StageEstimate, ...]
    speeds: tuple[float, ...]
    documents_present: int = 0
    """Of which the pool has a cube of their name and version."""

    def expected_s(self, stage: StageEstimate) -> float | None:
        """Seconds a stage should take: shared out over all hosts, but no faster than one goes through its chain."""
        if not self.speeds:
            return None
        usual = self.speeds[len(self.speeds) // 2]
        return max(stage.flops_left / sum(self.speeds), stage.serial_flops / usual if stage.flops_left else 0.0)

    @property
    def total_s(self) -> float | None:
        """Seconds for all of them, one after another."""
        return sum(self.expected_s(stage) or 0.0 for stage in self.stages) if self.speeds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the log that `explain` reads: what happened, to what, and why."""

    at: datetime
    name: str
    unit_id: int | None = None
    lease_id: str | None = None
    host_id: str | None = None
    campaign_id: str | None = None
    cube_digest: str | None = None
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaClaim:
    """What the quorum needs to know of one report; `output_digest` stands for all outputs together."""

    lease_id: LeaseId
    account_id: AccountId
    output_digest: Digest
    sketch: bytes
    compute_dtype: ComputeDtype
    outputs: tuple[Output, ...] = ()
    numerics_class: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolManifest:
    """A manifest as it was pushed into a repository of the pool."""

    repository: str
    digest: Digest
    media_type: str
    artifact_type: str
    subject: Digest | None
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeFacts:
    """What search knows of a cube; `digest` is the cube's identity, the digest of its memcube.json."""

    digest: Digest
    kind: str
    base: str
    title: str
    source_names: tuple[str, ...]
    terms: tuple[str, ...] = ()
    """Words that tell what it is about."""
    tokens: int
    payload_bytes: int
    licence: str
    produced_flops: int
    gap_closed: float | None = None
    """Of a trained cube: its quality between the model without the text and the one that read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCube:
    """A published cube, as a search finds it; `tag` is its version."""

    repository: str
    tag: str
    digest: Digest
    manifest_digest: Digest
    kind: str
    base: str
    title: str
    tokens: int
    payload_bytes: int
    licence: str
    produced_flops: int
    gap_closed: float | None = None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedSource:
    """A file an operator brought, already in the pool."""

    uri: str
    digest: Digest
    format: str
    licence: str
    text_column: str
    id_column: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What became of asking for failed documents again; `left` would only fail again."""

    campaign: Campaign
    documents: tuple[str, ...]
    left: tuple[Document, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A campaign as it was created, and what others had computed for it before."""

    campaign: Campaign
    units_reused: int
