"""What grid and host say to each other about units, and every reason why either can be turned down."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType

from memgrid.digest import Digest

UnitKey = NewType("UnitKey", str)
"""64 hex digits: the sha256 of a unit's canonical spec."""
LeaseId = NewType("LeaseId", str)
HostId = NewType("HostId", str)
AccountId = NewType("AccountId", str)
SessionId = NewType("SessionId", str)

SKETCH_BYTES_MAX = 512 * 1024
"""The largest sketch a report may bring."""


class ReasonCode(StrEnum):
    """Why a lease, a report, an upload or a host was turned down or held back."""

    # at the door: a report that is not even compared
    STALE_FENCE = "stale_fence"
    UNKNOWN_LEASE = "unknown_lease"
    NOT_YOUR_LEASE = "not_your_lease"
    LEASE_EXPIRED = "lease_expired"
    LEASE_ENDED = "lease_ended"
    ALREADY_REPORTED = "already_reported"
    CONFLICTING_REPORT = "conflicting_report"
    WRONG_UNIT = "wrong_unit"
    WRONG_OUTPUTS = "wrong_outputs"
    WRONG_SHAPE = "wrong_shape"
    BAD_SKETCH = "bad_sketch"
    NOT_FINITE = "not_finite"
    # in judgement
    AGREES = "agrees"
    DISAGREES = "disagrees"
    DISPUTED = "disputed"
    NO_AGREEMENT = "no_agreement"
    TOO_MANY_FAILURES = "too_many_failures"
    # of an upload
    UPLOAD_MISSING = "upload_missing"
    UPLOAD_TOO_LARGE = "upload_too_large"
    UPLOAD_TRUNCATED = "upload_truncated"
    DIGEST_MISMATCH = "digest_mismatch"
    SKETCH_MISMATCH = "sketch_mismatch"
    REPLAY_DIFFERS = "replay_differs"
    NOT_ORDERED = "not_ordered"
    # a lease given back
    OWNER_PAUSED = "owner_paused"
    UNIT_FAILED = "unit_failed"
    OUT_OF_MEMORY = "out_of_memory"
    DEVICE_FAILED = "device_failed"
    INPUT_UNAVAILABLE = "input_unavailable"
    DIVERGED = "diverged"
    VOCABULARY_MISMATCH = "vocabulary_mismatch"
    LEAVING = "leaving"
    # a lease withdrawn
    CAMPAIGN_CANCELLED = "campaign_cancelled"
    CAMPAIGN_PAUSED = "campaign_paused"
    STALE_ROUND = "stale_round"
    UNIT_SETTLED = "unit_settled"
    HOST_AT_FAULT = "host_at_fault"
    PARENT_RECALLED = "parent_recalled"
    BANNED = "banned"
    # a document that became no cube
    BELOW_QUALITY = "below_quality"
    HELD_OUT_LEAKED = "held_out_leaked"
    STATE_MISSING = "state_missing"
    ROUND_UNANSWERED = "round_unanswered"
    BUDGET_SPENT = "budget_spent"
    RETRACTED = "retracted"
    # no new lease
    NO_WORK = "no_work"
    QUOTA_REACHED = "quota_reached"
    HOST_SUSPENDED = "host_suspended"
    ALL_SEEN = "all_seen"
    DRAINING = "draining"
    NOT_WISHED = "not_wished"
    # why a volunteer asks for none, or waits with what it has
    DEVICE_RESTS = "device_rests"
    OUTBOX_FULL = "outbox_full"
    GRID_AWAY = "grid_away"
    FETCHING = "fetching"
    # why a machine's owner holds it back; for the owner's eyes: a grid is told owner_paused and no more
    DEVICE_DISABLED = "device_disabled"
    OUT_OF_HOURS = "out_of_hours"
    ON_BATTERY = "on_battery"
    MACHINE_IN_USE = "machine_in_use"
    SCREEN_FILLED = "screen_filled"
    PROGRAM_RUNS = "program_runs"
    DEVICE_WANTED = "device_wanted"
    MACHINE_BUSY = "machine_busy"
    TOO_HOT = "too_hot"
    TOO_MUCH_POWER = "too_much_power"
    DISK_FULL = "disk_full"
    NETWORK_SPARED = "network_spared"
    DUTY_LIMITED = "duty_limited"
    NOT_SEEN = "not_seen"
    NOT_TAKEN = "not_taken"
    # a code of a newer release, whose text still tells
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A reason as it is told: the code for machines, a sentence for people."""

    code: ReasonCode
    text: str = ""


class ComputeDtype(StrEnum):
    """What a unit is computed in; AUTO leaves it to the host: bfloat16 where its GPU has it, else float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class StoreDtype(StrEnum):
    """What a cache is written in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """Content by address, under the name it has in its folder."""

    name: str
    digest: Digest
    size_bytes: int
    path: str = ""
    """Where the data plane serves it; empty where only identity matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFacts:
    """What a host says about how it computed; claims, used for estimates and for the choice of tolerance."""

    tokens: int
    compute_s: float
    device_kind: str
    numerics_class: str
    compute_dtype: ComputeDtype
    torch_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file a unit made."""

    name: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportClaim:
    """A host's answer to a lease, as it signed it."""

    lease_id: LeaseId
    fence: int
    unit_key: UnitKey
    outputs: tuple[Output, ...]
    sketch_digest: Digest
    facts: WorkFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One GPU or CPU of a host."""

    kind: str
    name: str
    memory_bytes: int
    numerics_class: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What a host says it is."""

    os: str
    arch: str
    cpu_count: int
    memory_bytes: int
    devices: tuple[DeviceFacts, ...]
    client_version: str
    isolation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model as a volunteer fetches it: its identity and its files."""

    digest: Digest
    files: tuple[BlobRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRef:
    """What is done of a unit, by the digest of its packed files; `path` is where the data plane serves it."""

    digest: Digest
    size_bytes: int
    progress: float
    path: str = ""


CHECKPOINT_FILE = "checkpoint.safetensors"
"""What upload orders call a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOffer:
    """One copy of a unit, held by one host until a deadline; `fence` grows with every lease of the unit."""

    lease_id: LeaseId
    fence: int
    unit_key: UnitKey
    spec: bytes
    model: Digest
    inputs: tuple[BlobRef, ...]
    deadline_at: datetime
    estimate_s: float
    checkpoint: CheckpointRef | None = None
    """What another host of the same account did of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLease:
    lease_id: LeaseId
    fence: int
    progress: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A lease that is given back; told once more when there is a checkpoint to go with it."""

    lease_id: LeaseId
    fence: int
    reason: Reason
    checkpoint: CheckpointRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportAck:
    lease_id: LeaseId
    accepted: bool
    reason: Reason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictNotice:
    """How a lease ended, as its host is told: accepted, rejected or cancelled."""

    lease_id: LeaseId
    verdict: str
    reason: Reason
    credit_flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOrder:
    """An output wanted from the host whose replica was chosen, or a checkpoint that it offered; nothing else may be
    uploaded."""

    lease_id: LeaseId
    name: str
    digest: Digest
    size_bytes: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    lease_id: LeaseId
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Which units a host would rather have; an empty field wishes nothing. Campaigns by id or name."""

    kinds: frozenset[str] = frozenset()
    campaigns: frozenset[str] = frozenset()
    avoided_campaigns: frozenset[str] = frozenset()
    cached_models: frozenset[Digest] = frozenset()
    longest: timedelta | None = None

    @property
    def are_picky(self) -> bool:
        """Whether there are units that a host with these may not be given."""
        return bool(self.kinds or self.campaigns or self.avoided_campaigns or self.longest is not None)


NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncAsk:
    """What a host says in one Sync; the signed reports are parsed only after their signature held."""

    sequence: int
    held: tuple[HeldLease, ...]
    awaiting: tuple[LeaseId, ...]
    reports: tuple[ReportClaim, ...]
    sketches: dict[Digest, bytes]
    released: tuple[Release, ...]
    want: int
    wait: timedelta
    wishes: Wishes = NO_WISHES


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncAnswer:
    """What the coordinator answers to one Sync."""

    leases: tuple[LeaseOffer, ...] = ()
    models: tuple[ModelFiles, ...] = ()
    acks: tuple[ReportAck, ...] = ()
    verdicts: tuple[VerdictNotice, ...] = ()
    uploads: tuple[UploadOrder, ...] = ()
    cancelled: tuple[Cancellation, ...] = ()
    idle_reason: Reason | None = None
    call_again_in: timedelta = timedelta(0)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell, so that a long poll may go on."""
        return not (self.leases or self.acks or self.verdicts or self.uploads or self.cancelled)
