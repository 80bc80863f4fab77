"""Every series the coordinator serves, named once, with its unit and labels. No ids in labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGES_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400)


class Metrics:
    """One registry a process; a test makes its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.unit_stage_s = Histogram(
            "memgrid_unit_stage_seconds",
            "How long units stay in each stage: lease, checking, open_to_accepted.",
            ["stage"],
            buckets=_STAGES_S,
            registry=self.registry,
        )
        self.units = Gauge("memgrid_units", "Units by state.", ["state"], registry=self.registry)
        self.leases = Gauge("memgrid_leases", "Leases by state.", ["state"], registry=self.registry)
        self.leases_granted = Counter(
            "memgrid_leases_granted_total", "Leases handed out.", ["kind"], registry=self.registry
        )
        self.reports = Counter(
            "memgrid_reports_total", "Reports that came, by what the door said.", ["answer"], registry=self.registry
        )
        self.verdicts = Counter(
            "memgrid_verdicts_total", "Judged leases.", ["verdict", "reason"], registry=self.registry
        )
        self.refusals = Counter(
            "memgrid_refusals_total",
            "What was turned down, where and why.",
            ["where", "reason"],
            registry=self.registry,
        )
        self.releases = Counter(
            "memgrid_releases_total", "Leases given back or run out.", ["reason"], registry=self.registry
        )
        self.audit_s = Histogram(
            "memgrid_audit_seconds",
            "Replays of uploaded answers, by kind of unit and what came of it.",
            ["kind", "answer"],
            buckets=_STAGES_S,
            registry=self.registry,
        )
        self.audit_flops = Counter(
            "memgrid_audit_flops_total", "FLOPs spent on replays.", ["kind"], registry=self.registry
        )
        self.audited_flops = Counter(
            "memgrid_audited_flops_total", "FLOPs of the units that were replayed.", ["kind"], registry=self.registry
        )
        self.queue_age_s = Gauge(
            "memgrid_queue_age_seconds",
            "How long the oldest open unit with a vacancy has been waiting.",
            registry=self.registry,
        )
        self.hosts_alive = Gauge(
            "memgrid_hosts_alive", "Hosts heard of in the last two minutes.", registry=self.registry
        )
        self.credited_flops = Counter(
            "memgrid_credited_flops_total", "FLOPs written to the ledger.", registry=self.registry
        )
        self.cubes_published = Counter(
            "memgrid_cubes_published_total", "Cubes put into the pool.", ["kind"], registry=self.registry
        )
        self.campaigns = Gauge("memgrid_campaigns", "Campaigns by state.", ["state"], registry=self.registry)
        self.transferred_bytes = Counter(
            "memgrid_transferred_bytes_total",
            "Blob bytes on the data plane.",
            ["direction", "repository_kind"],
            registry=self.registry,
        )
        self.disk_free_bytes = Gauge(
            "memgrid_disk_free_bytes", "Room left where the content store lies.", registry=self.registry
        )
        self.store_batch_steps = Histogram(
            "memgrid_store_batch_steps",
            "Steps in one transaction of the writer.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self.store_batch_s = Histogram(
            "memgrid_store_batch_seconds",
            "How long a transaction took, commit included.",
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self.rpc_s = Histogram(
            "memgrid_rpc_seconds",
            "gRPC calls, waiting of long polls included.",
            ["method", "code"],
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self.http_s = Histogram(
            "memgrid_http_seconds",
            "HTTP requests.",
            ["route", "method", "status"],
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self.engine_s = Histogram(
            "memgrid_engine_seconds",
            "Planning, checking and assembly.",
            ["function"],
            buckets=_STAGES_S,
            registry=self.registry,
        )
        self.sweep_s = Histogram(
            "memgrid_sweep_seconds", "One run of a sweep.", ["sweep"], buckets=_LATENCIES_S, registry=self.registry
        )

    def observe_batch(self, *, steps: int, seconds: float) -> None:
        """What the store's writer calls after every transaction."""
        self.store_batch_steps.observe(steps)
        self.store_batch_s.observe(seconds)

    def observe_engine(self, function: str, seconds: float) -> None:
        """What the engine calls after every function it ran."""
        self.engine_s.labels(function).observe(seconds)
