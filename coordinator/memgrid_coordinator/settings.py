"""Every knob of the coordinator, read once at start, from the environment (MEMGRID_…) or the command line."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from memgrid_coordinator.policy.travelling import TravelRule
from memgrid_coordinator.policy.trust import TrustRule


class Settings(BaseSettings):
    """What a grid owner may change. Sizes in bytes, times as ISO 8601 durations or seconds."""

    model_config = SettingsConfigDict(env_prefix="MEMGRID_", extra="forbid", frozen=True)

    data: Path
    name: str = "memgrid"
    host: str = "127.0.0.1"
    http_port: int = 7070
    grpc_port: int = 7071
    public_name: str | None = None
    """The name volunteers use, if it is not `host`; goes into the self-made certificate and the printed URL."""
    certificate: Path | None = None
    """A real certificate chain (PEM); with `certificate_key`. Without, one is made at the first start."""
    certificate_key: Path | None = None
    blobs_url: str | None = None
    """Where content is kept: a folder, or `s3://bucket/prefix?endpoint=…`; without, `blobs` in the data folder."""
    blob_cache_bytes: int = 20 << 30
    """Before a bucket: how much of it this machine keeps for what is in use."""
    gc_every: timedelta = timedelta(hours=1)
    gc_grace: timedelta = timedelta(hours=24)
    """How long content stays that nothing names: more than anybody takes from a push to its manifest or campaign."""
    gc_keep_failed: timedelta = timedelta(days=7)
    """How long what a failed document made stays, so that it can be taken up again."""
    scrub_bytes_per_s: int = 8 << 20
    """How fast all content is read again, to find what the disk has lost; 0 never does."""
    database: str | None = None
    """A SQLAlchemy URL; without, SQLite in the data folder."""
    keys_folder: Path | None = None
    """The grid's keys; without, `keys` in the data folder. Coordinators that share a database share them."""
    ray: str | None = None
    """Run planning, checks and assembly on Ray: `auto` or an address."""
    invite_only: bool = False

    challenge_ttl: timedelta = timedelta(minutes=1)
    token_ttl: timedelta = timedelta(minutes=15)
    long_poll_max: timedelta = timedelta(seconds=25)
    call_again_idle: timedelta = timedelta(seconds=5)
    lease_shortest: timedelta = timedelta(seconds=60)
    lease_longest: timedelta = timedelta(hours=6)
    lease_slack: float = 5.0
    leases_held_max: int = 64
    upload_shortest: timedelta = timedelta(seconds=60)
    upload_slowest_bytes_per_s: int = 50_000
    sweep_every: timedelta = timedelta(seconds=1)
    """How soon expired leases and finished documents are noticed."""
    recover_every: timedelta = timedelta(seconds=10)
    """How soon is taken up again what a crash or a lost upload left behind."""
    drain_max: timedelta = timedelta(seconds=30)
    grpc_connections_max: int = 16_384
    """Connections to the control plane, one a volunteer; more are closed before they have said anything."""
    grpc_idle_max: timedelta = timedelta(minutes=5)
    """How long a connection may be open without a call; clients open another by themselves."""
    http_connections_max: int = 4096
    """Connections to the data plane, the pool and the pages."""
    http_connections_per_address_max: int = 256
    """Of these from one address, or one IPv6 /64; behind a proxy, which is one address, as many as in all."""
    http_idle_max: timedelta = timedelta(seconds=75)
    """How long a connection may take to bring a whole request head, from its opening or its last answer."""
    http_silence_max: timedelta = timedelta(seconds=30)
    """How long who sends a body, or reads an answer, may stay without moving a byte."""
    http_bytes_per_s_min: int = 4096
    """How slowly bodies may come, and content be read, before the connection is closed."""
    handshake_max: timedelta = timedelta(seconds=10)
    """How long TLS may take, on both planes."""
    syncs_at_once_max: int = 128
    """Syncs worked on at a time; long polls that only wait do not count."""
    log_ins_at_once_max: int = 32
    """Log-ins and enrolments worked on at a time, beside the Syncs."""
    calls_waiting_max: int = 1024
    """Of each of these two, how many may wait in line; who comes beyond is told when to come back."""
    call_wait_max: timedelta = timedelta(seconds=5)
    """How long the last in line may have to wait, at the rate at which calls are worked on."""
    blob_bytes_max: int = 64 << 30
    disk_reserve_bytes: int = 256 << 20
    """Never filled by uploads: the database needs room to say no."""
    checkpoint_bytes_max: int = 1 << 30
    """The largest half-done unit that is kept for other hosts of the account that left it; 0 keeps none."""
    checkpoints_bytes_max: int = 16 << 30
    """All half-done units together; one account may fill a quarter of it."""
    checkpoint_keep: timedelta = timedelta(hours=24)
    """How long a half-done unit waits for another host of its account."""
    source_bytes_max: int = 1 << 30
    document_tokens_max: int = 1 << 20
    message_bytes_max: int = 4 << 20
    reports_per_sync_max: int = 64
    trust_epsilon: float = Field(default=TrustRule().epsilon, gt=0, lt=1)
    """The share of wrong results that may be accepted in the worst case, where a campaign asks for no less."""
    trust_f_bar: float = Field(default=TrustRule().bad_share, gt=0, lt=1)
    """The share of all work that is assumed to be done by cheats, where a campaign assumes no more."""
    trust_held_at_first: int = Field(default=TrustRule().held_at_first, ge=1)
    """Leases that the hosts of a new account may hold together; doubled by every ten audits passed."""
    arbiter: bool = True
    """Whether the grid decides between two reports that differ, by computing a piece of both; else a third host."""
    canary_share: float = Field(default=0.002, ge=0, le=1)
    """How many of the units that a host is given have been done before: their answer is known, so they test it."""
    provisional_max: timedelta = timedelta(hours=1)
    """How long a result waits for later audits of its host before it gets one of its own."""

    @property
    def trust(self) -> TrustRule:
        """What strangers are judged by."""
        return TrustRule(
            epsilon=self.trust_epsilon,
            bad_share=self.trust_f_bar,
            held_at_first=self.trust_held_at_first,
            provisional_max=self.provisional_max,
        )

    @property
    def travel(self) -> TravelRule:
        """What is kept of half-done units."""
        return TravelRule(
            each_bytes_max=self.checkpoint_bytes_max,
            all_bytes_max=self.checkpoints_bytes_max,
            keep=self.checkpoint_keep,
        )

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data / 'memgrid.db'}"

    @property
    def keys(self) -> Path:
        return self.keys_folder or self.data / "keys"

    @property
    def blobs(self) -> Path:
        return self.data / "blobs"

    @property
    def checkpoints(self) -> Path:
        return self.data / "checkpoints"

    @property
    def scratch(self) -> Path:
        return self.data / "scratch"
