"""The schema: one class a table, and why each index is there."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)
from sqlmodel import Field, SQLModel

from memgrid_coordinator.store.types import UtcDateTime


def _time(*, nullable: bool = True, index: bool = False) -> Column[datetime]:
    return Column(UtcDateTime, nullable=nullable, index=index)


class AccountRow(SQLModel, table=True):
    """A volunteer: one public key."""

    __tablename__ = "accounts"

    account_id: str = Field(primary_key=True)
    public_key: bytes = Field(sa_column=Column(LargeBinary, unique=True, nullable=False))
    created_at: datetime = Field(sa_column=_time(nullable=False))
    banned_at: datetime | None = Field(default=None, sa_column=_time())
    banned_reason: str = ""
    team_id: str | None = Field(default=None, index=True)
    """The team that its credit counts for from now on."""
    team_day: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    team_moves: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    """How often it changed its team on that day (counted from the year 1, UTC)."""


class TeamRow(SQLModel, table=True):
    """A name that volunteers gather under, and the digest of the code that lets others in."""

    __tablename__ = "teams"

    team_id: str = Field(primary_key=True)
    name: str
    likeness: str = Field(unique=True)
    """What of the name tells it from others: names that look alike share it."""
    code_digest: str
    founded_by: str = Field(index=True)
    founded_at: datetime = Field(sa_column=_time(nullable=False))


class TokenRow(SQLModel, table=True):
    """A token that an owner gave away, kept as its digest; what was revoked stays, so that its acts have a name."""

    __tablename__ = "tokens"

    token_id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    role: str
    digest: str = Field(unique=True)
    created_at: datetime = Field(sa_column=_time(nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=_time())
    revoked_at: datetime | None = Field(default=None, sa_column=_time())


class ActRow(SQLModel, table=True):
    """What owners and operators did: written once, never changed."""

    __tablename__ = "audit_log"

    entry_id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_column=_time(nullable=False, index=True))
    who: str
    role: str
    action: str
    subject: str
    detail: str = ""


class InviteRow(SQLModel, table=True):
    """An invite code, kept as its digest; worth so many enrolments."""

    __tablename__ = "invites"

    code_digest: str = Field(primary_key=True)
    uses_left: int
    created_at: datetime = Field(sa_column=_time(nullable=False))


class HostRow(SQLModel, table=True):
    """A machine of a volunteer, its present session and what was observed of it."""

    __tablename__ = "hosts"
    __table_args__ = (UniqueConstraint("account_id", "label"),)

    host_id: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="accounts.account_id")
    label: str
    facts: str
    session_id: str | None = None
    sequence: int = 0
    flops_per_s: float
    network: str = Field(default="", sa_column=Column(String, nullable=False, server_default=""))
    """Where it last called from, as a prefix; empty on a private network."""
    recent_faults: int = 0
    suspended_until: datetime | None = Field(default=None, sa_column=_time())
    created_at: datetime = Field(sa_column=_time(nullable=False))
    seen_at: datetime = Field(sa_column=_time(nullable=False, index=True))


class ModelRow(SQLModel, table=True):
    """A model that campaigns named: its identity, and the pool manifest its files come from."""

    __tablename__ = "models"

    digest: str = Field(primary_key=True)
    repository: str
    identity: str
    files: str


class CalibrationRow(SQLModel, table=True):
    """The tolerances of a model as its grid measured them, and the evidence, both by digest; the last one counts."""

    __tablename__ = "calibrations"

    calibration_id: int | None = Field(default=None, primary_key=True)
    model: str = Field(index=True)
    digest: str
    evidence: str
    made_at: datetime = Field(sa_column=_time(nullable=False))


class CampaignRow(SQLModel, table=True):
    __tablename__ = "campaigns"

    campaign_id: str = Field(primary_key=True)
    request_id: str = Field(unique=True)
    name: str
    state: str = Field(index=True)
    recipe: str = "activation"
    model: str
    spec: str
    """The campaign file as canonical JSON."""
    priority: int
    created_at: datetime = Field(sa_column=_time(nullable=False, index=True))
    ended_at: datetime | None = Field(default=None, sa_column=_time())


class DocumentRow(SQLModel, table=True):
    __tablename__ = "documents"
    __table_args__ = (UniqueConstraint("campaign_id", "name"), Index("documents_by_state", "state"))

    document_id: int | None = Field(default=None, primary_key=True)
    campaign_id: str = Field(foreign_key="campaigns.campaign_id")
    name: str
    state: str
    source_uri: str
    source_digest: str
    licence: str
    tokens: int
    cube: str = ""
    cube_digest: str | None = None
    reason_code: str | None = None
    reason_text: str = ""
    progress: str = ""
    """JSON of how far it is; empty where its units say everything."""
    retries: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    """How often an operator had it tried again."""


class DocumentBlobRow(SQLModel, table=True):
    """Content that the grid itself made for a document, by a name given once."""

    __tablename__ = "document_blobs"

    document_id: int = Field(primary_key=True, foreign_key="documents.document_id")
    name: str = Field(primary_key=True)
    digest: str
    detail: str = "{}"


class UnitRow(SQLModel, table=True):
    """A unit, shared by every campaign that wants it."""

    __tablename__ = "units"
    __table_args__ = (
        # The dispatcher's question: open units that want another host, most urgent first.
        Index(
            "units_to_lease",
            text("priority DESC"),
            "unit_id",
            sqlite_where=text("state = 'open' AND vacancies > 0 AND NOT on_hold"),
            postgresql_where=text("state = 'open' AND vacancies > 0 AND NOT on_hold"),
        ),
        # Units whose reports nobody compares yet: what the recovery sweep looks for.
        Index(
            "units_undecided",
            "unit_id",
            sqlite_where=text("state = 'open' AND vacancies = 0"),
            postgresql_where=text("state = 'open' AND vacancies = 0"),
        ),
        # How many wait for a host, and since when.
        Index(
            "units_waiting_since",
            "opened_at",
            sqlite_where=text("state = 'open' AND vacancies > 0 AND NOT on_hold"),
            postgresql_where=text("state = 'open' AND vacancies > 0 AND NOT on_hold"),
        ),
        # For counting by state. Were the state its first column, SQLite would prefer it to the two above and sort
        # all that is open at every Sync.
        Index("units_by_kind", "kind", "state"),
        Index("units_by_parent", "parent_id"),
    )

    unit_id: int | None = Field(default=None, primary_key=True)
    key: str = Field(unique=True)
    kind: str
    state: str
    spec: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    model: str
    tokens_digest: str = ""
    """Written up to 0.1, when every unit was of tokens; now the spec says it."""
    token_count: int
    flops: int = Field(sa_column=Column(BigInteger, nullable=False))
    priority: int
    min_replicas: int
    max_replicas: int
    parent_id: int | None = Field(default=None, foreign_key="units.unit_id")
    vacancies: int
    """How many more hosts should hold it now."""
    fence: int = 0
    failures: int = 0
    output_digest: str | None = None
    output_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    accepted_lease_id: str | None = None
    opened_at: datetime | None = Field(default=None, sa_column=_time())
    settled_at: datetime | None = Field(default=None, sa_column=_time())
    reason_code: str | None = None
    reason_text: str = ""
    on_hold: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))
    """Wanted by paused campaigns only: nobody gets it."""
    epsilon: float | None = None
    """The share of wrong results that its campaigns bear, the least of theirs; null leaves it to the grid."""
    f_bar: float | None = None
    """The share of bad work that its campaigns assume, the largest of theirs."""


class DocumentUnitRow(SQLModel, table=True):
    """Which units a document is made of, in order."""

    __tablename__ = "document_units"

    document_id: int = Field(primary_key=True, foreign_key="documents.document_id")
    position: int = Field(primary_key=True)
    unit_id: int = Field(foreign_key="units.unit_id", index=True)


class LeaseRow(SQLModel, table=True):
    """A lease and, once it came, its report."""

    __tablename__ = "leases"
    __table_args__ = (
        # Who has part in a unit; and what sums over many leases need, for their rows are large.
        Index("leases_summed", "unit_id", "account_id", "state", "compute_s"),
        Index(
            "leases_reported",
            "unit_id",
            sqlite_where=text("state = 'reported'"),
            postgresql_where=text("state = 'reported'"),
        ),
        Index(
            "leases_held",
            "host_id",
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
        Index(
            "leases_due",
            "deadline_at",
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
        # Why reports were rejected: few, among very many leases with large sketches.
        Index(
            "leases_rejected",
            "reason_code",
            sqlite_where=text("state = 'rejected'"),
            postgresql_where=text("state = 'rejected'"),
        ),
    )

    lease_id: str = Field(primary_key=True)
    unit_id: int = Field(foreign_key="units.unit_id")
    host_id: str = Field(foreign_key="hosts.host_id")
    account_id: str
    fence: int
    state: str
    granted_at: datetime = Field(sa_column=_time(nullable=False))
    deadline_at: datetime = Field(sa_column=_time(nullable=False))
    reported_at: datetime | None = Field(default=None, sa_column=_time())
    outputs: str = "[]"
    sketch: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))
    facts: str = ""
    compute_s: float = Field(default=0.0, sa_column=Column(Float, nullable=False, server_default="0"))
    """What the host says it took, as in `facts`, to be summed."""
    statement_id: int | None = None
    is_drawn: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))
    """Drawn for an audit when it was reported: it does not count before the audit."""
    disputed: str | None = None
    """Where another report differs, as JSON: pieces, and a layer."""
    network: str = Field(default="", sa_column=Column(String, nullable=False, server_default=""))
    """Of its host when it was granted: hosts of one network don't confirm each other."""
    reason_code: str | None = None
    reason_text: str = ""


class StatementRow(SQLModel, table=True):
    """A batch of reports exactly as its host signed it: the evidence."""

    __tablename__ = "statements"

    statement_id: int | None = Field(default=None, primary_key=True)
    host_id: str = Field(foreign_key="hosts.host_id")
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    signature: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    received_at: datetime = Field(sa_column=_time(nullable=False))


class UploadRow(SQLModel, table=True):
    """A file ordered from the host whose replica was chosen; an order is all files of its lease."""

    __tablename__ = "uploads"
    __table_args__ = (Index("uploads_due", "state", "due_at"),)

    lease_id: str = Field(primary_key=True, foreign_key="leases.lease_id")
    name: str = Field(primary_key=True)
    host_id: str = Field(foreign_key="hosts.host_id", index=True)
    unit_id: int = Field(foreign_key="units.unit_id")
    digest: str
    size_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    state: str
    due_at: datetime = Field(sa_column=_time(nullable=False))


class CheckpointRow(SQLModel, table=True):
    """What a host did of a unit before it gave its lease back: ordered, or here, for other hosts of its account."""

    __tablename__ = "checkpoints"

    lease_id: str = Field(primary_key=True, foreign_key="leases.lease_id")
    unit_id: int = Field(foreign_key="units.unit_id", index=True)
    host_id: str = Field(foreign_key="hosts.host_id")
    account_id: str = Field(index=True)
    fence: int
    digest: str
    size_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    progress: float
    received_at: datetime | None = Field(default=None, sa_column=_time())
    ends_at: datetime = Field(sa_column=_time(nullable=False))
    """Until then it may come; once it is here, until then it is kept."""


class AuditRow(SQLModel, table=True):
    """A part of a result that is or was to be computed again, and what it showed: never changed once done."""

    __tablename__ = "audits"
    __table_args__ = (
        # What is due, the oldest first; and what of a host waits for audits of later results.
        Index(
            "audits_due", "due_at", sqlite_where=text("state = 'wanted'"), postgresql_where=text("state = 'wanted'")
        ),
        Index(
            "audits_open", "host_id", sqlite_where=text("state = 'wanted'"), postgresql_where=text("state = 'wanted'")
        ),
        Index("audits_of_class", "numerics_class", "done_at"),
    )

    audit_id: int | None = Field(default=None, primary_key=True)
    lease_id: str = Field(foreign_key="leases.lease_id", index=True)
    unit_id: int = Field(foreign_key="units.unit_id")
    host_id: str = Field(foreign_key="hosts.host_id")
    kind: str
    numerics_class: str
    purpose: str
    state: str
    reported_at: datetime = Field(sa_column=_time(nullable=False))
    due_at: datetime = Field(sa_column=_time(nullable=False))
    passed_since: int = 0
    """Audits of the same host, kind and class that passed and were of later reports."""
    done_at: datetime | None = Field(default=None, sa_column=_time())
    zone: str = ""
    found: str = "[]"
    """JSON of every replay: which draw, statistics, limits, where, how long it took."""


class TrustRecordRow(SQLModel, table=True):
    """What audits have shown of a host, a row for each kind of unit and each way its devices round."""

    __tablename__ = "trust_records"

    host_id: str = Field(primary_key=True, foreign_key="hosts.host_id")
    kind: str = Field(primary_key=True)
    numerics_class: str = Field(primary_key=True)
    account_id: str = Field(index=True)
    results: int = 0
    passed: int = 0
    faults: int = 0
    recent: str = ""
    """The zones of the last audits, a letter each, the newest last."""
    agreed: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    updated_at: datetime = Field(sa_column=_time(nullable=False))


class ClassSuspensionRow(SQLModel, table=True):
    """A way of rounding of which so many audits fail that it must be a bug: its hosts are not punished meanwhile."""

    __tablename__ = "class_suspensions"

    kind: str = Field(primary_key=True)
    numerics_class: str = Field(primary_key=True)
    since: datetime = Field(sa_column=_time(nullable=False))
    audits: int
    failed: int
    hosts: int


class RetractionRow(SQLModel, table=True):
    """A cube that was published and taken back, and why: written once, never changed."""

    __tablename__ = "retractions"

    retraction_id: int | None = Field(default=None, primary_key=True)
    repository: str
    tag: str
    cube_digest: str = Field(index=True)
    manifest_digest: str = Field(index=True)
    reason_code: str
    reason_text: str
    at: datetime = Field(sa_column=_time(nullable=False))


class CreditRow(SQLModel, table=True):
    """The ledger: written once, never changed, which triggers of the database see to.

    A lease earns once at the most; when its result turns out wrong, a second line takes that back.
    """

    __tablename__ = "credits"
    __table_args__ = (UniqueConstraint("lease_id", "entry"),)

    credit_id: int | None = Field(default=None, primary_key=True)
    lease_id: str = Field(foreign_key="leases.lease_id")
    entry: str = Field(default="earned", sa_column=Column(String, nullable=False, server_default="earned"))
    account_id: str = Field(index=True)
    host_id: str
    unit_id: int
    flops: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Less than nought in a line that takes back: totals are sums."""
    granted_at: datetime = Field(sa_column=_time(nullable=False))
    team_id: str | None = None
    """The team its account was in then."""


class CreditDayRow(SQLModel, table=True):
    """The ledger summed up by the day a result was credited, written in the same transaction; day 0 is all time."""

    __tablename__ = "credit_days"

    day: int = Field(primary_key=True)
    """Days since the beginning of the year 1, UTC."""
    account_id: str = Field(primary_key=True)
    team_id: str = Field(primary_key=True)
    """Empty for who was in none."""
    results: int = Field(sa_column=Column(BigInteger, nullable=False))
    flops_high: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Of the sum of FLOPs, which 64 bits would not hold for long, the part above 32 bits of each; then the rest."""
    flops_low: int = Field(sa_column=Column(BigInteger, nullable=False))


class EventRow(SQLModel, table=True):
    """The log that `explain` reads: written once, never changed."""

    __tablename__ = "events"

    event_id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_column=_time(nullable=False))
    name: str
    unit_id: int | None = Field(default=None, index=True)
    lease_id: str | None = None
    host_id: str | None = Field(default=None, index=True)
    campaign_id: str | None = Field(default=None, index=True)
    cube_digest: str | None = Field(default=None, index=True)
    reason_code: str | None = None
    reason_text: str = ""
    detail: str = ""


class PoolManifestRow(SQLModel, table=True):
    """An OCI manifest, by digest, in one repository."""

    __tablename__ = "pool_manifests"

    repository: str = Field(primary_key=True)
    digest: str = Field(primary_key=True)
    media_type: str
    artifact_type: str
    subject: str | None = Field(default=None, index=True)
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = Field(sa_column=_time(nullable=False))


class PoolTagRow(SQLModel, table=True):
    __tablename__ = "pool_tags"

    repository: str = Field(primary_key=True)
    tag: str = Field(primary_key=True)
    digest: str
    updated_at: datetime = Field(sa_column=_time(nullable=False))


class PoolBlobRow(SQLModel, table=True):
    """Which blob may be read through which repository; the bytes are kept once, by digest."""

    __tablename__ = "pool_blobs"

    repository: str = Field(primary_key=True)
    digest: str = Field(primary_key=True, index=True)


class PoolCubeRow(SQLModel, table=True):
    """What search knows of a published cube."""

    __tablename__ = "pool_cubes"
    __table_args__ = (UniqueConstraint("repository", "tag"),)

    pool_cube_id: int | None = Field(default=None, primary_key=True)
    repository: str
    tag: str
    cube_digest: str = Field(index=True)
    manifest_digest: str
    kind: str
    base: str
    title: str
    search_text: str
    """What a search looks in, in lower case: repository, title, base and the names of the sources."""
    tokens: int
    payload_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    licence: str
    produced_flops: int = Field(sa_column=Column(BigInteger, nullable=False))
    gap_closed: float | None = None
    created_at: datetime = Field(sa_column=_time(nullable=False, index=True))


class CubePullRow(SQLModel, table=True):
    """How often the payload of a cube was sent to somebody, a row a day."""

    __tablename__ = "cube_pulls"

    cube_digest: str = Field(primary_key=True)
    day: int = Field(primary_key=True)
    """Days since the beginning of the year 1, UTC."""
    pulls: int = Field(sa_column=Column(BigInteger, nullable=False))


def _table(name: str) -> Table:
    return SQLModel.metadata.tables[name]


# The same tables as Core sees them: the hot path writes many rows a statement.
accounts = _table("accounts")
teams = _table("teams")
invites = _table("invites")
tokens = _table("tokens")
audit_log = _table("audit_log")
hosts = _table("hosts")
models = _table("models")
calibrations = _table("calibrations")
campaigns = _table("campaigns")
documents = _table("documents")
units = _table("units")
document_units = _table("document_units")
document_blobs = _table("document_blobs")
leases = _table("leases")
statements = _table("statements")
uploads = _table("uploads")
checkpoints = _table("checkpoints")
audits = _table("audits")
trust_records = _table("trust_records")
class_suspensions = _table("class_suspensions")
retractions = _table("retractions")
credits = _table("credits")
credit_days = _table("credit_days")
events = _table("events")
pool_manifests = _table("pool_manifests")
pool_tags = _table("pool_tags")
pool_blobs = _table("pool_blobs")
pool_cubes = _table("pool_cubes")
cube_pulls = _table("cube_pulls")
