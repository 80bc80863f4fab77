"""Every series the coordinator serves, named once, with its unit and labels; no label takes a stranger's words.

Counters and histograms are moved by what happens in this process. Gauges are read from what is stored
(`services/gauging.py`), so that coordinators that share a database say the same: add up the former, not the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from memgrid.cube.manifest import CubeKind
from memgrid.specs import EvaluateSpec, PrefillSpec, StudySpec, TrainSpec
from memgrid.units import ReasonCode
from memgrid_coordinator.heavy.slots import Load
from memgrid_coordinator.policy.crowd import LaneName

_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGES_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400)
_BATCH_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Labels = TypeVar("Labels", bound=tuple[str, ...])
UNIT_KINDS = tuple(spec.kind for spec in (PrefillSpec, StudySpec, TrainSpec, EvaluateSpec))


class Metrics:
    """One registry a process; a test makes its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._count_work()
        self._count_trouble()
        self._count_commons()
        self._time_machinery()
        self._hold_grid_gauges()
        self._hold_volunteer_gauges()
        self._hold_campaign_gauges()
        self._hold_commons_gauges()
        self._begin_at_zero()

    def _count_work(self) -> None:
        self.leases_granted = self._counter("leases_granted_total", "Leases handed out.", "kind")
        self.reports = self._counter("reports_total", "Reports that came, by what the door said.", "answer")
        self.verdicts = self._counter("verdicts_total", "Judged leases.", "verdict", "reason")
        self.units_accepted = self._counter("units_accepted_total", "Units that got their result.", "kind")
        self.units_given_up = self._counter("units_given_up_total", "Units that failed or were withdrawn.", "kind")
        self.accepted_tokens = self._counter("accepted_tokens_total", "Tokens of accepted units.", "kind")
        self.accepted_flops = self._counter("accepted_flops_total", "FLOPs of accepted units, each once.", "kind")
        self.credited_flops = self._counter("credited_flops_total", "FLOPs written to the ledger, every replica's.")
        self.unit_stage_s = self._histogram(
            "unit_stage_seconds",
            "How long units stay in each stage: lease, checking, open_to_accepted.",
            "stage",
            buckets=_STAGES_S,
        )
        self.units_recalled = self._counter(
            "units_recalled_total", "Results that were taken back: wrong, or of a host that was found at fault."
        )
        self.cubes_retracted = self._counter(
            "cubes_retracted_total", "Published cubes that were taken back, because a result in them was wrong."
        )
        self.audit_s = self._histogram(
            "audit_seconds",
            "Replays of results, by kind of unit and zone: pass, suspicious, fault; refused for a bad form.",
            "kind",
            "answer",
            buckets=_STAGES_S,
        )
        self.audit_flops = self._counter("audit_flops_total", "FLOPs spent on replays.", "kind")
        self.audited_flops = self._counter("audited_flops_total", "FLOPs of the units that were replayed.", "kind")

    def _count_trouble(self) -> None:
        self.refusals = self._counter("refusals_total", "What was turned down, where and why.", "where", "reason")
        self.releases = self._counter("releases_total", "Leases given back or run out.", "reason")
        self.checkpoints = self._counter(
            "checkpoints_total", "Half-done units that came from a host, and went to another of its account.", "what"
        )
        self.idle_answers = self._counter(
            "idle_answers_total", "Answers to hosts that got less work than they wanted, and why.", "reason"
        )
        self.turned_away = self._counter(
            "turned_away_total", "Calls that were told to come back later: inside (Sync), door (log-in).", "lane"
        )
        self.connections_refused = self._counter(
            "connections_refused_total",
            "Connections to the HTTP plane that were closed at once: too many in all, or from one address.",
            "limit",
        )
        self.sweep_failures = self._counter("sweep_failures_total", "Runs of a sweep that broke off.", "sweep")
        self.engine_failures = self._counter(
            "engine_failures_total", "Planning, checking and assembly that raised.", "function"
        )

    def _count_commons(self) -> None:
        self.cubes_published = self._counter("cubes_published_total", "Cubes put into the pool.", "kind")
        self.cube_pulls = self._counter("cube_pulls_total", "Cubes fetched, their largest file to its end.", "kind")
        self.pulled_flops = self._counter(
            "pulled_flops_total", "FLOPs that whoever pulled a cube did not have to spend.", "kind"
        )
        self.transferred_bytes = self._counter(
            "transferred_bytes_total", "Blob bytes on the data plane.", "direction", "repository_kind"
        )

    def _time_machinery(self) -> None:
        self.store_batch_steps = self._histogram(
            "store_batch_steps", "Steps in one transaction of the writer.", buckets=_BATCH_STEPS
        )
        self.store_batch_s = self._histogram("store_batch_seconds", "How long a transaction took, commit included.")
        self.http_connections = self._gauge("http_connections", "Connections open to the HTTP plane.")
        self.calls_working = self._gauge("calls_working", "Calls that are worked on: inside (Sync), door.", "lane")
        self.calls_waiting = self._gauge("calls_waiting", "Calls that wait in line for that.", "lane")
        self.rpc_s = self._histogram("rpc_seconds", "gRPC calls, waiting of long polls included.", "method", "code")
        self.http_s = self._histogram("http_seconds", "HTTP requests.", "route", "method", "status")
        self.engine_s = self._histogram(
            "engine_seconds", "Planning, checking and assembly.", "function", buckets=_STAGES_S
        )
        self.engine_running = self._gauge("engine_running", "Calls of the engine that run.", "lane")
        self.engine_waiting = self._gauge("engine_waiting", "Calls of the engine that wait for a slot.", "lane")
        self.engine_slots = self._gauge(
            "engine_slots", "Calls that may run at once: processes of this machine, or processors of Ray's.", "lane"
        )
        self.sweep_s = self._histogram("sweep_seconds", "One run of a sweep.", "sweep")

    def _hold_grid_gauges(self) -> None:
        self.build_info = self._gauge("build_info", "1, with the version that runs.", "version")
        self.certificate_expires_s = self._gauge(
            "certificate_expires_timestamp_seconds", "When the certificate of both planes runs out, since 1970."
        )
        self.disk_free_bytes = self._gauge("disk_free_bytes", "Room left where the content store lies.")
        self.blobs_kept = self._gauge("blobs_kept", "Blobs in the content store, when they were last counted.")
        self.blobs_kept_bytes = self._gauge("blobs_kept_bytes", "Their bytes.")
        self.blobs_collected_bytes = self._counter(
            "blobs_collected_bytes_total", "Bytes of content that nothing named any more and that was let go."
        )
        self.blobs_scrubbed_bytes = self._counter(
            "blobs_scrubbed_bytes_total", "Bytes of content that were read again to see whether they are still right."
        )
        self.blobs_damaged = self._counter(
            "blobs_damaged_total", "Blobs that were found damaged and put out of everybody's reach."
        )
        self.rows_damaged = self._gauge("rows_damaged", "Rows that the last scrub found to be not what they were.")
        self.units = self._gauge("units", "Units by kind and state.", "kind", "state")
        self.leases = self._gauge("leases", "Leases that can still count for a unit, by state.", "state")
        self.queue_units = self._gauge("queue_units", "Open units that want another host.")
        self.queue_age_s = self._gauge(
            "queue_age_seconds", "How long the oldest open unit with a vacancy has been waiting."
        )
        self.audits_due = self._gauge("audits_due", "Audits that should be done by now.")
        self.classes_suspended = self._gauge(
            "classes_suspended", "Numerics classes of which so many audits fail that it must be a bug."
        )
        self.uploads = self._gauge("uploads", "Ordered uploads that have not come or are not checked yet.", "state")
        self.gauges_read_s = self._gauge("gauges_read_seconds", "How long reading these gauges took.", "part")

    def _hold_volunteer_gauges(self) -> None:
        self.hosts_alive = self._gauge("hosts_alive", "Hosts heard of in the last two minutes.")
        self.hosts_seen = self._gauge("hosts_seen", "Hosts heard of within a time: hour, day, week, ever.", "within")
        self.hosts_busy = self._gauge("hosts_busy", "Hosts that hold a lease.")
        self.hosts_suspended = self._gauge("hosts_suspended", "Hosts alive that rest after rejected reports.")
        self.accounts_alive = self._gauge("accounts_alive", "Volunteers with a host alive.")
        self.devices = self._gauge("devices", "Devices of the hosts alive, by what decides their rounding.", "class")
        self.fleet_flops = self._gauge(
            "fleet_flops_per_second", "What the hosts alive were seen to compute a second, together.", "class"
        )

    def _hold_campaign_gauges(self) -> None:
        """Per campaign for the newest only, the rest as `others`: labels stay bounded."""
        self.campaigns = self._gauge("campaigns", "Campaigns by state.", "state")
        one = ("campaign", "campaign_id")
        self.campaign_state = self._gauge("campaign_state", "1 for the state that a campaign is in.", *one, "state")
        self.campaign_units = self._gauge("campaign_units", "Units of a campaign by state.", *one, "state")
        self.campaign_documents = self._gauge(
            "campaign_documents", "Documents of a campaign by state.", *one, "state"
        )
        self.campaign_leases = self._gauge("campaign_leases", "Leases of a campaign's units by state.", *one, "state")
        self.campaign_progress = self._gauge(
            "campaign_progress_ratio",
            "Share of all that a campaign needs that is done.",
            *one,
        )
        self.campaign_eta_s = self._gauge(
            "campaign_eta_seconds", "Time left at the pace of the hosts alive; absent with none.", *one
        )
        self.campaign_flops = self._gauge(
            "campaign_flops",
            "FLOPs of a campaign: produced (accepted units, each once), spent (every report), rejected.",
            *one,
            "of",
        )
        self.campaign_device_s = self._gauge(
            "campaign_device_seconds", "Seconds that hosts say they computed for a campaign.", *one
        )
        self.campaign_tokens = self._gauge(
            "campaign_tokens", "Tokens of a campaign's units: all, accepted.", *one, "of"
        )

    def _hold_commons_gauges(self) -> None:
        self.cubes = self._gauge("cubes", "Cubes in the pool, each content once.", "kind")
        self.cube_payload_bytes = self._gauge("cube_payload_bytes", "Bytes of the cubes' payloads.", "kind")
        self.cube_tokens = self._gauge("cube_tokens", "Tokens of text that cubes stand for.", "kind")
        self.cube_produced_flops = self._gauge("cube_produced_flops", "FLOPs that the cubes took to make.", "kind")
        self.cube_gap_closed = self._gauge(
            "cube_gap_closed_ratio", "Mean quality of trained cubes: 0 knows no text, 1 has read it.", "kind"
        )
        self.shared_units = self._gauge("shared_units", "Accepted units that more than one document was made of.")
        self.shared_flops = self._gauge(
            "shared_flops", "FLOPs that documents did not cost because a unit of theirs was there."
        )

    def _begin_at_zero(self) -> None:
        """Let what is most asked for be there before it happens: the first of a series would not count in a rate."""
        for kind in UNIT_KINDS:
            self.leases_granted.labels(kind)
            self.accepted_tokens.labels(kind)
            self.accepted_flops.labels(kind)
            self.units_accepted.labels(kind)
            self.units_given_up.labels(kind)
            self.audit_flops.labels(kind)
            self.audited_flops.labels(kind)
        for cube_kind in CubeKind:
            self.cubes_published.labels(cube_kind.value)
            self.cube_pulls.labels(cube_kind.value)
            self.pulled_flops.labels(cube_kind.value)
        for limit in ("all", "address"):
            self.connections_refused.labels(limit)
        for lane in LaneName:
            self.turned_away.labels(lane.value)
        self.reports.labels("accepted")
        self.verdicts.labels("agree", ReasonCode.AGREES.value)
        self.verdicts.labels("reject", ReasonCode.DISAGREES.value)
        self.releases.labels(ReasonCode.LEASE_EXPIRED.value)
        for what in ("kept", "given"):
            self.checkpoints.labels(what)

    def observe_batch(self, *, steps: int, seconds: float) -> None:
        """What the store's writer calls after every transaction."""
        self.store_batch_steps.observe(steps)
        self.store_batch_s.observe(seconds)

    def count_accepted(self, kind: str, *, tokens: int, flops: int) -> None:
        """A unit has its result."""
        self.units_accepted.labels(kind).inc()
        self.accepted_tokens.labels(kind).inc(tokens)
        self.accepted_flops.labels(kind).inc(flops)

    def observe_engine(self, function: str, seconds: float, failed: bool = False) -> None:
        """What the engine calls after every function it ran."""
        self.engine_s.labels(function).observe(seconds)
        if failed:
            self.engine_failures.labels(function).inc()

    def watch_engine(self, lane: str, load: Callable[[], Load]) -> None:
        """Show from now on what an engine has in hand, at the time of the asking."""
        self.engine_running.labels(lane).set_function(lambda: load().running)
        self.engine_waiting.labels(lane).set_function(lambda: load().waiting)
        self.engine_slots.labels(lane).set_function(lambda: load().slots)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"memgrid_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"memgrid_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str, buckets: tuple[float, ...] = _LATENCIES_S) -> Histogram:
        return Histogram(f"memgrid_{name}", about, labels, registry=self.registry, buckets=buckets)


def fill(gauge: Gauge, values: Mapping[Labels, float]) -> None:
    """Let a gauge say this and nothing else; to be called where scrapes are answered, so that none sees it half done.

    >>> gauge = Gauge("doors", "Doors by colour.", ["colour"], registry=CollectorRegistry())
    >>> fill(gauge, {("red",): 2})
    >>> fill(gauge, {("blue",): 1})
    >>> [sample.labels for family in gauge.collect() for sample in family.samples]
    [{'colour': 'blue'}]
    """
    gauge.clear()
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
