"""Dashboard: is the grid working, how fast, and what is in its way."""

from __future__ import annotations

from typing import Any

from boards import board
from machinery import content, machinery, process, times
from panels import BYTES_PER_S, COUNT, FLOPS_PER_S, PER_S, RATIO, SECONDS, lines, number, version
from promql import Query, gauge, rate, share

RED, ORANGE, GREEN = "red", "orange", "green"
_UNENDED = 'memgrid_units{state=~"waiting|open|checking|provisional"}'


def build() -> Any:
    """The dashboard, to be built."""
    return board(
        "grid",
        "memgrid / Grid",
        "Throughput, queue, verdicts and the machinery of a grid's coordinators.",
        ("At a glance", _glance()),
        ("Throughput", _throughput()),
        ("Queue", _queue()),
        ("Verdicts", _verdicts()),
        ("Time", times()),
        ("Machinery", machinery()),
        ("Content", content()),
        ("Process", process()),
    )


def _glance() -> list[Any]:
    return [
        number(
            "Hosts alive",
            "Hosts heard of in the last two minutes.",
            COUNT,
            Query(gauge("memgrid_hosts_alive")),
            limits={0: RED, 1: GREEN},
        ),
        number(
            "Units accepted an hour",
            "Units that got their result, over the last ten minutes, as so many an hour.",
            COUNT,
            Query(f"{rate('memgrid_units_accepted_total', over='10m')} * 3600"),
        ),
        number(
            "Queue",
            "Open units that want another host now.",
            COUNT,
            Query(gauge("memgrid_queue_units")),
        ),
        number(
            "Longest wait",
            "How long the oldest unit in the queue has been waiting for a host. Runbook: queue-stuck.",
            SECONDS,
            Query(gauge("memgrid_queue_age_seconds")),
            limits={0: GREEN, 3600: ORANGE, 6 * 3600: RED},
        ),
        number(
            "Alerts firing",
            "Alerts of memgrid that Prometheus says are firing; each has a page in the docs.",
            COUNT,
            Query('count(ALERTS{alertname=~"Memgrid.*",alertstate="firing"}) or vector(0)'),
            limits={0: GREEN, 1: RED},
        ),
        version(
            "Version",
            "What the coordinators run; two names while an upgrade is under way.",
            Query("count by (version) (memgrid_build_info)"),
            label="version",
        ),
    ]


def _throughput() -> list[Any]:
    return [
        lines(
            "Units accepted",
            "Units that got their result, a second, by kind.",
            PER_S,
            Query(rate("memgrid_units_accepted_total", "kind"), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "Tokens accepted",
            "Tokens of accepted units, a second, by kind.",
            PER_S,
            Query(rate("memgrid_accepted_tokens_total", "kind"), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "FLOP/s: useful, credited",
            "Useful counts each accepted unit once; credited counts every replica that agreed. "
            "Their distance is the price of checking.",
            FLOPS_PER_S,
            Query(rate("memgrid_accepted_flops_total"), "useful"),
            Query(rate("memgrid_credited_flops_total"), "credited"),
        ),
        lines(
            "Leases handed out",
            "Copies of units given to hosts, a second, by kind.",
            PER_S,
            Query(rate("memgrid_leases_granted_total", "kind"), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "Units given up",
            "Units that failed too often or that no campaign wants any more, a second, by kind.",
            PER_S,
            Query(rate("memgrid_units_given_up_total", "kind"), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "Data plane",
            "Blob bytes a second, by direction and by what the repository holds.",
            BYTES_PER_S,
            Query(
                rate("memgrid_transferred_bytes_total", "direction", "repository_kind"),
                "{{direction}} {{repository_kind}}",
            ),
        ),
    ]


def _queue() -> list[Any]:
    return [
        lines(
            "Units not ended",
            "Units by state: waiting for their parent, open to hosts, checking an upload, provisional until audits "
            "confirm them.",
            COUNT,
            Query(f"sum by (state) ({gauge(_UNENDED, 'kind', 'state')})", "{{state}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Queue by kind",
            "Open units by kind, held and unheld.",
            COUNT,
            Query(gauge('memgrid_units{state="open"}', "kind"), "{{kind}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Leases",
            "Leases that can still count: held by a host, reported and uncompared, agreed and awaiting the upload.",
            COUNT,
            Query(gauge("memgrid_leases", "state"), "{{state}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Depth and uploads",
            "Units that want another host; uploads that were ordered and have not come, or came and are not checked.",
            COUNT,
            Query(gauge("memgrid_queue_units"), "queue"),
            Query(gauge("memgrid_uploads", "state"), "uploads {{state}}"),
            width=6,
        ),
    ]


def _verdicts() -> list[Any]:
    return [
        lines(
            "Verdicts",
            "Judged leases a second.",
            PER_S,
            Query(rate("memgrid_verdicts_total", "verdict"), "{{verdict}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Rejections by reason",
            "Reports that were judged wrong, a second, by what gave them away. Runbook: many-rejections.",
            PER_S,
            Query(rate('memgrid_verdicts_total{verdict="reject"}', "reason"), "{{reason}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Turned down at the door",
            "Reports and uploads that were not even compared, a second, where and why.",
            PER_S,
            Query(rate("memgrid_refusals_total", "where", "reason"), "{{where}}: {{reason}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Leases given back or run out",
            "A second, by reason. Expired ones cost a unit the time until their deadline. Runbook: leases-run-out.",
            PER_S,
            Query(rate("memgrid_releases_total", "reason"), "{{reason}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Share rejected",
            "Of the judged reports, those that were rejected.",
            RATIO,
            Query(
                share(
                    rate('memgrid_verdicts_total{verdict="reject"}', over="30m"),
                    rate('memgrid_verdicts_total{verdict=~"agree|reject"}', over="30m"),
                ),
                "rejected",
            ),
            limits={0: GREEN, 0.1: ORANGE, 0.3: RED},
        ),
        lines(
            "Replays",
            "Parts of results that were computed again, a second, by kind and zone.",
            PER_S,
            Query(rate("memgrid_audit_seconds_count", "kind", "answer"), "{{kind}}: {{answer}}"),
            stacked=True,
        ),
        lines(
            "Audits that are due",
            "Parts of results that should be computed again by now; numerics classes of which so many audits fail "
            "that it must be a bug. Runbooks: audits-late, class-suspended.",
            COUNT,
            Query(gauge("memgrid_audits_due"), "due"),
            Query(gauge("memgrid_classes_suspended"), "classes suspended"),
        ),
        lines(
            "Taken back",
            "Results that were recalled and cubes that were retracted, a second. Runbook: cube-retracted.",
            PER_S,
            Query(rate("memgrid_units_recalled_total"), "results recalled"),
            Query(rate("memgrid_cubes_retracted_total"), "cubes retracted"),
        ),
        lines(
            "What replays cost",
            "FLOPs spent on replays, against those of the units they checked.",
            RATIO,
            Query(
                share(
                    rate("memgrid_audit_flops_total", "kind", over="30m"),
                    rate("memgrid_audited_flops_total", "kind", over="30m"),
                ),
                "{{kind}}",
            ),
        ),
    ]
