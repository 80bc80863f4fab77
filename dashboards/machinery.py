"""Rows of the grid's dashboard: how long things take, and how the coordinator itself is."""

from __future__ import annotations

from typing import Any

from panels import BYTES, BYTES_PER_S, COUNT, RATIO, SECONDS, cloud, lines, number
from promql import Query, gauge, quantile, rate, share

RED, ORANGE, GREEN = "red", "orange", "green"


def times() -> list[Any]:
    stages = "memgrid_unit_stage_seconds"
    return [
        cloud(
            "Open to accepted",
            "How long units took from being open to hosts until their result was accepted.",
            stages,
            where='{stage="open_to_accepted"}',
        ),
        lines(
            "Stages of a unit",
            "Half of the units and 95 of 100 take no longer in each stage: with a host, being checked, all in all.",
            SECONDS,
            Query(quantile(0.5, stages, "stage"), "{{stage}}, half"),
            Query(quantile(0.95, stages, "stage"), "{{stage}}, 95 %"),
            width=6,
        ),
        lines(
            "Replays and the engine",
            "95 of 100 take no longer; waiting for a process of the engine is included.",
            SECONDS,
            Query(quantile(0.95, "memgrid_audit_seconds", "kind"), "replay of {{kind}}"),
            Query(quantile(0.95, "memgrid_engine_seconds", "function"), "{{function}}"),
            width=6,
        ),
    ]


def machinery() -> list[Any]:
    return [*store(), *control_plane(), *data_plane(), *inside()]


def store() -> list[Any]:
    return [
        lines(
            "Store: transactions",
            "How long the writer's transactions take, commit included. Runbook: store-slow.",
            SECONDS,
            Query(quantile(0.5, "memgrid_store_batch_seconds"), "half"),
            Query(quantile(0.99, "memgrid_store_batch_seconds"), "99 %"),
            limits={0: GREEN, 0.5: ORANGE, 2: RED},
            width=6,
        ),
        lines(
            "Store: steps",
            "Steps a second, and how many share a transaction: batches grow when the disk is slow or the load high.",
            COUNT,
            Query(rate("memgrid_store_batch_steps_sum"), "steps a second"),
            Query(
                share(rate("memgrid_store_batch_steps_sum"), rate("memgrid_store_batch_steps_count")),
                "steps a transaction",
            ),
            width=6,
        ),
    ]


def control_plane() -> list[Any]:
    return [
        lines(
            "gRPC calls",
            "Calls a second by method.",
            "reqps",
            Query(rate("memgrid_rpc_seconds_count", "method"), "{{method}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "gRPC latency, 99 %",
            "Without Sync and WatchCampaign, which are held open on purpose.",
            SECONDS,
            Query(quantile(0.99, "memgrid_rpc_seconds", "method", where='{method!~"Sync|Watch.*"}'), "{{method}}"),
            width=6,
        ),
        lines(
            "gRPC errors",
            "Calls a second that ended with a code other than ok. `internal` is a bug: the log has its trace.",
            "reqps",
            Query(rate('memgrid_rpc_seconds_count{code!="ok"}', "method", "code"), "{{method}}: {{code}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Turned away",
            "Calls a second that were told to come back later, because too many came at once: inside (Syncs), "
            "door (log-ins). Runbook: crowd-turned-away.",
            "reqps",
            Query(rate("memgrid_turned_away_total", "lane"), "{{lane}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Calls in hand",
            "Syncs and log-ins that are worked on, and those that wait in line for it; long polls are neither.",
            COUNT,
            Query("sum by (lane) (memgrid_calls_working)", "{{lane}}: worked on"),
            Query("sum by (lane) (memgrid_calls_waiting)", "{{lane}}: waiting"),
            width=6,
        ),
    ]


def data_plane() -> list[Any]:
    return [
        lines(
            "HTTP connections",
            "Open ones, and those a second that were closed at once because there were too many, in all or from one "
            "address.",
            COUNT,
            Query("sum(memgrid_http_connections)", "open"),
            Query(rate("memgrid_connections_refused_total", "limit"), "refused a second: {{limit}}"),
            width=6,
        ),
        lines(
            "HTTP by status",
            "Requests a second.",
            "reqps",
            Query(rate("memgrid_http_seconds_count", "status"), "{{status}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "HTTP latency, 99 %",
            "By route; blobs take as long as their bytes.",
            SECONDS,
            Query(quantile(0.99, "memgrid_http_seconds", "route"), "{{route}}"),
            width=6,
        ),
    ]


def inside() -> list[Any]:
    return [
        lines(
            "Failures inside",
            "Runs of a sweep that broke off and calls of the engine that raised, in ten minutes. "
            "Runbooks: sweep-failing, engine-failing.",
            COUNT,
            Query("sum by (sweep) (increase(memgrid_sweep_failures_total[10m]))", "sweep {{sweep}}"),
            Query("sum by (function) (increase(memgrid_engine_failures_total[10m]))", "engine {{function}}"),
            width=6,
        ),
        lines(
            "The engine",
            "Calls that run and that wait, against how many may run at once: processes of the machine, or processors "
            "of a Ray cluster. Replays have a lane of their own, except on Ray.",
            COUNT,
            Query("sum by (lane) (memgrid_engine_running)", "{{lane}}: running"),
            Query("sum by (lane) (memgrid_engine_waiting)", "{{lane}}: waiting"),
            Query("sum by (lane) (memgrid_engine_slots)", "{{lane}}: at once"),
            width=6,
        ),
        lines(
            "Sweeps",
            "How long a run takes, on average.",
            SECONDS,
            Query(
                share(rate("memgrid_sweep_seconds_sum", "sweep"), rate("memgrid_sweep_seconds_count", "sweep")),
                "{{sweep}}",
            ),
            width=6,
        ),
        lines(
            "Reading the gauges",
            "How long the queries behind this page took; above half a second they are made more rarely.",
            SECONDS,
            Query("memgrid_gauges_read_seconds", "{{part}} on {{instance}}"),
            width=6,
        ),
        number(
            "Certificate runs out in",
            "Of the certificate that both planes show. Runbook: certificate-expires.",
            SECONDS,
            Query("min(memgrid_certificate_expires_timestamp_seconds) - time()"),
            limits={0: RED, 2 * 86400: ORANGE, 14 * 86400: GREEN},
            width=6,
        ),
    ]


def content() -> list[Any]:
    """What lies on the disk, and whether it is still what it was."""
    return [
        lines(
            "Disk free",
            "Room where the content store lies. Runbook: disk-filling.",
            BYTES,
            Query("memgrid_disk_free_bytes", "{{instance}}"),
            width=6,
        ),
        lines(
            "Content kept",
            "Bytes of all blobs, as they were counted when garbage was last looked for.",
            BYTES,
            Query(gauge("memgrid_blobs_kept_bytes"), "kept"),
            width=6,
        ),
        lines(
            "Collected and scrubbed",
            "Bytes a second that nothing named any more and that were let go, and those that were read again to see "
            "whether they are still right.",
            BYTES_PER_S,
            Query(rate("memgrid_blobs_collected_bytes_total"), "collected"),
            Query(rate("memgrid_blobs_scrubbed_bytes_total"), "scrubbed"),
            width=6,
        ),
        number(
            "Blobs",
            "In the content store, when they were last counted.",
            COUNT,
            Query(gauge("memgrid_blobs_kept")),
            width=3,
        ),
        number(
            "Damaged",
            "Blobs that the scrub found damaged in the last week, and rows of the last pass. Runbook: damage-found.",
            COUNT,
            Query(f"sum(increase(memgrid_blobs_damaged_total[7d])) + {gauge('memgrid_rows_damaged')}"),
            limits={0: GREEN, 1: RED},
            width=3,
        ),
    ]


def process() -> list[Any]:
    return [
        lines(
            "Processor",
            "Cores that a coordinator keeps busy; its engine's processes are not in it.",
            COUNT,
            Query("rate(process_cpu_seconds_total[$__rate_interval])", "{{instance}}"),
        ),
        lines(
            "Memory",
            "Resident memory of a coordinator.",
            BYTES,
            Query("process_resident_memory_bytes", "{{instance}}"),
        ),
        lines(
            "Open files",
            "Descriptors in use, connections among them, against the limit. Runbook: files-running-out.",
            RATIO,
            Query("process_open_fds / process_max_fds", "{{instance}}"),
            limits={0: GREEN, 0.8: RED},
        ),
        number(
            "Up since",
            "How long the coordinator that was started last has been running.",
            SECONDS,
            Query("time() - max(process_start_time_seconds)"),
        ),
    ]
