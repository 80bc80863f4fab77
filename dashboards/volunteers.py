"""Dashboard: who is there, what they bring, and why some of it comes to nothing."""

from __future__ import annotations

from typing import Any

from boards import board
from panels import COUNT, FLOPS, FLOPS_PER_S, PER_S, RATIO, SECONDS, bars, lines, number
from promql import Query, gauge, quantile, rate, share

_DOOR = 'memgrid_rpc_seconds_count{method=~"Enrol|LogIn|Leave",code="ok"}'
_TODAY = 'memgrid_hosts_seen{within="day"}'


def build() -> Any:
    """The dashboard, to be built."""
    return board(
        "volunteers",
        "memgrid / Volunteers",
        "The hosts of a grid: how many, how fast, what they earn, and why they are idle or turned down.",
        ("At a glance", _glance()),
        ("Fleet", _fleet()),
        ("Coming and going", _churn()),
        ("What they earn", _credit()),
        ("What stands in the way", _obstacles()),
    )


def _glance() -> list[Any]:
    return [
        number("Hosts alive", "Hosts heard of in the last two minutes.", COUNT, Query(gauge("memgrid_hosts_alive"))),
        number("Volunteers", "Accounts with a host alive.", COUNT, Query(gauge("memgrid_accounts_alive"))),
        number(
            "Busy",
            "Of the hosts alive, those that hold a lease.",
            RATIO,
            Query(share(gauge("memgrid_hosts_busy"), gauge("memgrid_hosts_alive"))),
        ),
        number(
            "Together",
            "What the hosts alive were seen to compute a second, all added up.",
            FLOPS_PER_S,
            Query(f"sum({gauge('memgrid_fleet_flops_per_second', 'class')})"),
        ),
        number(
            "Resting",
            "Hosts alive that get no work for a while, after rejected reports in a row.",
            COUNT,
            Query(gauge("memgrid_hosts_suspended")),
            limits={0: "green", 1: "orange"},
        ),
        number(
            "Credit in 24 hours",
            "FLOPs written to the ledger, every replica that agreed.",
            FLOPS,
            Query("sum(increase(memgrid_credited_flops_total[24h]))"),
        ),
    ]


def _fleet() -> list[Any]:
    return [
        bars(
            "Devices by class",
            "Devices of the hosts alive, by what decides their rounding. Classes beyond the commonest sixteen, and "
            "what no volunteer of ours would say, are `other`.",
            COUNT,
            Query(gauge("memgrid_devices", "class"), "{{class}}"),
        ),
        lines(
            "Devices over time",
            "The same, over time.",
            COUNT,
            Query(gauge("memgrid_devices", "class"), "{{class}}"),
            stacked=True,
        ),
        lines(
            "FLOP/s by class",
            "What hosts were seen to compute a second, by the class of their first device.",
            FLOPS_PER_S,
            Query(gauge("memgrid_fleet_flops_per_second", "class"), "{{class}}"),
            stacked=True,
        ),
    ]


def _churn() -> list[Any]:
    seen = gauge("memgrid_hosts_seen", "within")
    return [
        lines(
            "Alive and busy",
            "Hosts heard of in the last two minutes, those with a lease in hand, and their volunteers.",
            COUNT,
            Query(gauge("memgrid_hosts_alive"), "alive"),
            Query(gauge("memgrid_hosts_busy"), "busy"),
            Query(gauge("memgrid_accounts_alive"), "volunteers"),
        ),
        lines(
            "Seen lately",
            "Hosts heard of within an hour, a day, a week, and ever.",
            COUNT,
            Query(seen, "{{within}}"),
        ),
        lines(
            "Came and left",
            "Hosts that enrolled, logged in and left, in an hour. Others go without a word: see leases that run out.",
            COUNT,
            Query(f"sum by (method) (increase({_DOOR}[1h]))", "{{method}}"),
        ),
        number(
            "Lost since yesterday",
            "Of the hosts heard of within a day, those that are not alive now.",
            RATIO,
            Query(f"1 - {share(gauge('memgrid_hosts_alive'), gauge(_TODAY))}"),
            width=8,
        ),
        lines(
            "Syncs",
            "Exchanges with hosts, a second, by how they ended.",
            "reqps",
            Query(rate('memgrid_rpc_seconds_count{method="Sync"}', "code"), "{{code}}"),
            stacked=True,
        ),
        lines(
            "Length of a Sync",
            "Held open while there is nothing to say: long ones are idle hosts, not slow answers.",
            SECONDS,
            Query(quantile(0.5, "memgrid_rpc_seconds", where='{method="Sync"}'), "half"),
            Query(quantile(0.99, "memgrid_rpc_seconds", where='{method="Sync"}'), "99 %"),
        ),
    ]


def _credit() -> list[Any]:
    return [
        lines(
            "Credit",
            "FLOPs a second written to the ledger.",
            FLOPS_PER_S,
            Query(rate("memgrid_credited_flops_total"), "credit"),
            width=12,
        ),
        lines(
            "Leases by kind",
            "What hosts are given to do, a second.",
            PER_S,
            Query(rate("memgrid_leases_granted_total", "kind"), "{{kind}}"),
            stacked=True,
            width=12,
        ),
    ]


def _obstacles() -> list[Any]:
    return [
        lines(
            "Why hosts got less than they wanted",
            "Answers a second that left a host with less work than it asked for, by reason. no_work is a grid "
            "without campaigns, all_seen one with too few accounts for its quorum.",
            PER_S,
            Query(rate("memgrid_idle_answers_total", "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Reports, by what the door said",
            "Reports a second; all but `accepted` were turned down or had come before.",
            PER_S,
            Query(rate("memgrid_reports_total", "answer"), "{{answer}}"),
            stacked=True,
        ),
        lines(
            "Turned down",
            "Reports and uploads a second, where and why.",
            PER_S,
            Query(rate("memgrid_refusals_total", "where", "reason"), "{{where}}: {{reason}}"),
            stacked=True,
        ),
        lines(
            "Rejected",
            "Judged reports a second that others or a replay contradicted, by reason.",
            PER_S,
            Query(rate('memgrid_verdicts_total{verdict="reject"}', "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Given back or run out",
            "Leases a second, by reason.",
            PER_S,
            Query(rate("memgrid_releases_total", "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Half-done units",
            "A second: left by a host whose owner needed it, and given to another of the same account to go on with.",
            PER_S,
            Query(rate("memgrid_checkpoints_total", "what"), "{{what}}"),
        ),
        lines(
            "Share of leases that run out",
            "Hosts that went without a word, or took on more than they could. Runbook: leases-run-out.",
            RATIO,
            Query(
                share(
                    rate('memgrid_releases_total{reason="lease_expired"}', over="1h"),
                    rate("memgrid_leases_granted_total", over="1h"),
                ),
                "run out",
            ),
            limits={0: "green", 0.1: "orange", 0.25: "red"},
        ),
    ]
