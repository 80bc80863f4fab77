"""Dashboard: how far campaigns are, what they cost, and how much of it was for nothing."""

from __future__ import annotations

from typing import Any

from boards import board, chooser
from panels import COUNT, FLOPS, RATIO, SECONDS, Column, bars, lines, number, rows
from promql import Query, gauge, share

ONE = ("campaign", "campaign_id")
_CHOSEN = 'campaign=~"$campaign"'


def build() -> Any:
    """The dashboard, to be built."""
    names = 'label_values(memgrid_campaign_progress_ratio{job="$job"}, campaign)'
    return board(
        "campaigns",
        "memgrid / Campaigns",
        "The newest twenty campaigns that run, are paused or ended within the hour: progress, cost, waste.",
        ("At a glance", _glance()),
        ("Campaigns", _table()),
        ("Progress", _progress()),
        ("Cost", _cost()),
        more=(chooser("campaign", "Campaign", "One campaign, several, or all that are shown.", names),),
    )


def _one(series: str, *by: str, where: str = "") -> str:
    """A gauge of the chosen campaigns."""
    return gauge(f"memgrid_campaign_{series}{{{','.join(filter(None, (_CHOSEN, where)))}}}", *ONE, *by)


def _of(series: str, what: str) -> str:
    return _one(series, where=f'of="{what}"')


def _redundancy() -> str:
    return share(_of("flops", "spent"), _of("flops", "produced"))


def _waste() -> str:
    return share(_of("flops", "rejected"), _of("flops", "spent"))


def _glance() -> list[Any]:
    def state(name: str) -> Query:
        return Query(gauge(f'memgrid_campaigns{{state="{name}"}}'))

    return [
        number("Running", "Campaigns that hand out units.", COUNT, state("running")),
        number("Paused", "Campaigns that an operator holds.", COUNT, state("paused")),
        number("Completed", "Campaigns all of whose documents became cubes.", COUNT, state("completed")),
        number(
            "Failed",
            "Campaigns with a document that became no cube. Runbook: documents-failed.",
            COUNT,
            state("failed"),
            limits={0: "green", 1: "orange"},
        ),
        number(
            "Redundancy",
            "FLOPs spent on the chosen campaigns for each FLOP of a result: 2 is a quorum of two and no waste.",
            "x",
            Query(share(f"sum({_of('flops', 'spent')})", f"sum({_of('flops', 'produced')})")),
            limits={0: "green", 3: "orange", 4: "red"},
        ),
        number(
            "Waste",
            "Share of what hosts spent on the chosen campaigns that was rejected.",
            RATIO,
            Query(share(f"sum({_of('flops', 'rejected')})", f"sum({_of('flops', 'spent')})")),
            limits={0: "green", 0.1: "orange", 0.3: "red"},
        ),
    ]


def _table() -> list[Any]:
    return [
        rows(
            "Campaigns",
            "One line a campaign, as it is now; its name leads to its page.",
            (
                Column("Progress", _one("progress_ratio"), RATIO),
                Column("Time left", _one("eta_seconds"), SECONDS),
                Column("Units accepted", _one("units", where='state="accepted"')),
                Column("Units", f"sum by (campaign, campaign_id) ({_one('units', 'state')})"),
                Column("Documents", f"sum by (campaign, campaign_id) ({_one('documents', 'state')})"),
                Column("Spent", _of("flops", "spent"), FLOPS),
                Column("Redundancy", _redundancy(), "x", ((3, "orange"), (4, "red"))),
                Column("Waste", _waste(), RATIO, ((0.1, "orange"), (0.3, "red"))),
                Column("Device time", _one("device_seconds"), SECONDS),
            ),
            by=ONE,
            hidden=("campaign_id",),
            link="${page}/campaigns/${__data.fields.campaign_id}",
        )
    ]


def _progress() -> list[Any]:
    return [
        bars(
            "Progress",
            "Share of all that a campaign needs that is done, replicas and what is still to come included.",
            RATIO,
            Query(_one("progress_ratio"), "{{campaign}}"),
            highest=1,
        ),
        lines(
            "Progress over time",
            "The same, over time. A flat line: runbook campaign-stalled.",
            RATIO,
            Query(_one("progress_ratio"), "{{campaign}}"),
        ),
        lines(
            "Time left",
            "At the pace of the hosts alive; nothing is said while there are none.",
            SECONDS,
            Query(_one("eta_seconds"), "{{campaign}}"),
        ),
        lines(
            "Units by state",
            "Units of the chosen campaigns; one that several campaigns want counts for each.",
            COUNT,
            Query(f"sum by (state) ({_one('units', 'state')})", "{{state}}"),
            stacked=True,
        ),
        lines(
            "Documents by state",
            "Documents of the chosen campaigns: running, published, failed, cancelled.",
            COUNT,
            Query(f"sum by (state) ({_one('documents', 'state')})", "{{state}}"),
            stacked=True,
        ),
        lines(
            "Tokens",
            "Tokens of accepted units, and of all.",
            COUNT,
            Query(_of("tokens", "accepted"), "{{campaign}}, accepted"),
            Query(_of("tokens", "all"), "{{campaign}}, all"),
        ),
    ]


def _cost() -> list[Any]:
    return [
        lines(
            "Spent and produced",
            "FLOPs that hosts reported, and those of the results.",
            FLOPS,
            Query(_of("flops", "spent"), "{{campaign}}, spent"),
            Query(_of("flops", "produced"), "{{campaign}}, produced"),
            width=6,
        ),
        lines(
            "Redundancy factor",
            "Spent for each FLOP produced. Runbook: campaign-wasteful.",
            "x",
            Query(_redundancy(), "{{campaign}}"),
            limits={0: "green", 3: "orange", 4: "red"},
            width=6,
        ),
        lines(
            "Waste",
            "Share of the spent FLOPs that was rejected.",
            RATIO,
            Query(_waste(), "{{campaign}}"),
            limits={0: "green", 0.1: "orange", 0.3: "red"},
            width=6,
        ),
        lines(
            "Leases by state",
            "Leases of the chosen campaigns' units, ended ones too.",
            COUNT,
            Query(f"sum by (state) ({_one('leases', 'state')})", "{{state}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Device time",
            "Seconds that hosts say they computed, added up.",
            SECONDS,
            Query(_one("device_seconds"), "{{campaign}}"),
            width=24,
        ),
    ]
