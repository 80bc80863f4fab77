"""What a grid should call for help about: alert rules for Prometheus, each with a runbook of its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

HEADER = """\
# Alert rules for Prometheus, written by dashboards/build.py from dashboards/rules.py; change them there.
# `python dashboards/build.py --docs-url URL` lets the runbook links lead to your copy of the documentation.
"""
WARNING, CRITICAL, INFO = "warning", "critical", "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule. `expr` keeps the labels that `summary` names; `holds` is how long it must be true."""

    name: str
    expr: str
    holds: str
    severity: str
    summary: str
    description: str

    @property
    def runbook(self) -> str:
        """The page of the docs about it.

        >>> Alert(name="MemgridQueueStuck", expr="", holds="", severity="", summary="", description="").runbook
        'queue-stuck'
        """
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.name.removeprefix("Memgrid")).lower()

    def to_rule(self, docs_url: str) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.holds,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{docs_url}/runbooks/{self.runbook}/",
            },
        }


COORDINATOR = (
    Alert(
        name="MemgridDown",
        expr='up{job=~"memgrid.*"} == 0',
        holds="2m",
        severity=CRITICAL,
        summary="The coordinator {{ $labels.instance }} of {{ $labels.job }} does not answer",
        description="Prometheus could not scrape it for two minutes. Volunteers keep what they have and call again.",
    ),
    Alert(
        name="MemgridInternalErrors",
        expr="or ".join(
            # The first error of a kind begins its series, which `increase` does not see.
            f"sum by (job, instance) (increase({series}[10m])) > 0\n"
            f"or (sum by (job, instance) ({series})\n"
            f"  unless sum by (job, instance) ({series} offset 10m)\n"
            "  and on (job, instance) up offset 10m)\n"
            for series in ('memgrid_rpc_seconds_count{code="internal"}', 'memgrid_http_seconds_count{status="500"}')
        ).strip(),
        holds="0m",
        severity=WARNING,
        summary="The coordinator {{ $labels.instance }} answered with internal errors",
        description="{{ $value | humanize }} calls in ten minutes ended in an error that nobody foresaw; "
        "its log has the traces.",
    ),
    Alert(
        name="MemgridSweepFailing",
        expr="sum by (job, instance, sweep) (increase(memgrid_sweep_failures_total[15m])) > 3",
        holds="0m",
        severity=WARNING,
        summary="The sweep {{ $labels.sweep }} of {{ $labels.instance }} keeps failing",
        description="It broke off {{ $value | humanize }} times in fifteen minutes; its next run is the retry.",
    ),
    Alert(
        name="MemgridSweepStalled",
        expr="sum by (job, instance, sweep) (increase(\n"
        '  memgrid_sweep_seconds_count{sweep=~"leases|judging|documents|gauges"}[15m]\n'
        ")) == 0",
        holds="5m",
        severity=CRITICAL,
        summary="The sweep {{ $labels.sweep }} of {{ $labels.instance }} no longer runs",
        description="It finished no run in fifteen minutes: leases, checks, documents or gauges stand still.",
    ),
    Alert(
        name="MemgridEngineFailing",
        expr="sum by (job, instance, function) (increase(memgrid_engine_failures_total[15m])) > 3",
        holds="0m",
        severity=WARNING,
        summary="{{ $labels.function }} keeps failing on the engine of {{ $labels.instance }}",
        description="It broke {{ $value | humanize }} times in fifteen minutes: killed for memory, or a bug.",
    ),
    Alert(
        name="MemgridCrowdTurnedAway",
        expr="min_over_time(sum by (job, instance, lane) (rate(memgrid_turned_away_total[5m]))[15m:1m]) > 0",
        holds="0m",
        severity=WARNING,
        summary="{{ $labels.instance }} turns calls away ({{ $labels.lane }})",
        description="{{ $value | humanize }} a second at least, for a quarter of an hour; after an outage that "
        "passes sooner.",
    ),
    Alert(
        name="MemgridStoreSlow",
        expr="histogram_quantile(\n"
        "  0.99, sum by (job, instance, le) (rate(memgrid_store_batch_seconds_bucket[10m]))\n"
        ") > 0.5",
        holds="10m",
        severity=WARNING,
        summary="The store of {{ $labels.instance }} is slow",
        description="One transaction in a hundred takes longer than {{ $value | humanizeDuration }}; "
        "every answer waits for one.",
    ),
    Alert(
        name="MemgridDiskFilling",
        expr="min by (job, instance) (predict_linear(memgrid_disk_free_bytes[6h], 24 * 3600)) < 0\n"
        "and min by (job, instance) (memgrid_disk_free_bytes) < 100 * 2 ^ 30",
        holds="30m",
        severity=WARNING,
        summary="The disk of {{ $labels.instance }} will be full within a day",
        description="At the pace of the last six hours. Below 256 MiB uploads are refused.",
    ),
    Alert(
        name="MemgridDiskFull",
        expr="min by (job, instance) (memgrid_disk_free_bytes) < 2 ^ 30",
        holds="2m",
        severity=CRITICAL,
        summary="The disk of {{ $labels.instance }} is full",
        description="{{ $value | humanize1024 }}B are left. Below 256 MiB uploads are refused.",
    ),
    Alert(
        name="MemgridDamageFound",
        expr="sum by (job, instance) (increase(memgrid_blobs_damaged_total[6h])) > 0\n"
        "or max by (job, instance) (memgrid_rows_damaged) > 0",
        holds="0m",
        severity=CRITICAL,
        summary="The disk of {{ $labels.instance }} has lost something",
        description="The scrub found {{ $value | humanize }} blobs or rows that are not what they were.",
    ),
    Alert(
        name="MemgridCertificateExpires",
        expr="min by (job, instance) (memgrid_certificate_expires_timestamp_seconds) - time() < 14 * 86400",
        holds="1h",
        severity=WARNING,
        summary="The certificate of {{ $labels.instance }} runs out",
        description="In {{ $value | humanizeDuration }}. After that nobody can connect.",
    ),
    Alert(
        name="MemgridFilesRunningOut",
        expr='max by (job, instance) (process_open_fds{job=~"memgrid.*"} / process_max_fds) > 0.8',
        holds="10m",
        severity=WARNING,
        summary="{{ $labels.instance }} is running out of file descriptors",
        description="{{ $value | humanizePercentage }} are in use; every connection takes one.",
    ),
)
WORK = (
    Alert(
        name="MemgridNoHosts",
        expr="max by (job) (memgrid_queue_units) > 0 and max by (job) (memgrid_hosts_alive) == 0",
        holds="10m",
        severity=WARNING,
        summary="{{ $labels.job }} has work and nobody to do it",
        description="{{ $value | humanize }} units wait, and no host was heard of for ten minutes.",
    ),
    Alert(
        name="MemgridHostsLost",
        expr="max by (job) (memgrid_hosts_alive) < 0.5 * max by (job) (memgrid_hosts_alive offset 1h)\n"
        "and max by (job) (memgrid_hosts_alive offset 1h) >= 10",
        holds="10m",
        severity=WARNING,
        summary="{{ $labels.job }} has lost half of its hosts within an hour",
        description="{{ $value | humanize }} are alive. Often it is the way to the coordinator that is cut.",
    ),
    Alert(
        name="MemgridQueueStuck",
        expr="max by (job) (memgrid_queue_age_seconds) > 3600\n"
        "and max by (job) (memgrid_hosts_alive) > 0\n"
        "and sum by (job) (increase(memgrid_leases_granted_total[15m])) == 0",
        holds="15m",
        severity=WARNING,
        summary="Hosts of {{ $labels.job }} are alive, units wait, and nothing is handed out",
        description="The oldest has been waiting for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        name="MemgridChecksLate",
        expr='min_over_time(max by (job) (memgrid_uploads{state="received"})[30m:1m]) > 0\n'
        "and sum by (job) (increase(memgrid_units_accepted_total[30m])) == 0",
        holds="10m",
        severity=WARNING,
        summary="Uploads of {{ $labels.job }} wait for their check, and nothing is accepted",
        description="At least {{ $value | humanize }} uploads have been waiting for half an hour.",
    ),
    Alert(
        name="MemgridAuditsLate",
        expr="min_over_time(max by (job) (memgrid_audits_due)[30m:1m]) > 100",
        holds="10m",
        severity=WARNING,
        summary="Audits of {{ $labels.job }} are late",
        description="At least {{ $value | humanize }} have been due for half an hour: results wait for them.",
    ),
    Alert(
        name="MemgridClassSuspended",
        expr="max by (job) (memgrid_classes_suspended) > 0",
        holds="0m",
        severity=WARNING,
        summary="Hosts of a numerics class go unpunished at {{ $labels.job }}",
        description="So many of them fail audits that it must be a bug: {{ $value | humanize }} classes.",
    ),
    Alert(
        name="MemgridCubeRetracted",
        expr="sum by (job) (increase(memgrid_cubes_retracted_total[1h])) > 0",
        holds="0m",
        severity=WARNING,
        summary="{{ $labels.job }} took back published cubes",
        description="A result in them was found to be wrong: {{ $value | humanize }} in an hour.",
    ),
    Alert(
        name="MemgridManyRejections",
        expr='sum by (job) (increase(memgrid_verdicts_total{verdict="reject"}[1h]))\n'
        '/ sum by (job) (increase(memgrid_verdicts_total{verdict=~"agree|reject"}[1h])) > 0.2\n'
        'and sum by (job) (increase(memgrid_verdicts_total{verdict=~"agree|reject"}[1h])) > 20',
        holds="10m",
        severity=WARNING,
        summary="Many reports of {{ $labels.job }} are rejected",
        description="{{ $value | humanizePercentage }} of those judged in an hour: cheats, or a release that "
        "computes otherwise.",
    ),
    Alert(
        name="MemgridLeasesRunOut",
        expr='sum by (job) (increase(memgrid_releases_total{reason="lease_expired"}[1h]))\n'
        "/ sum by (job) (increase(memgrid_leases_granted_total[1h])) > 0.25\n"
        "and sum by (job) (increase(memgrid_leases_granted_total[1h])) > 20",
        holds="15m",
        severity=WARNING,
        summary="Many leases of {{ $labels.job }} run out",
        description="{{ $value | humanizePercentage }} of those handed out in an hour came back as nothing.",
    ),
)
CAMPAIGNS = (
    Alert(
        name="MemgridCampaignStalled",
        expr='max by (job, campaign, campaign_id) (memgrid_campaign_state{state="running"}) == 1\n'
        "and max by (job, campaign, campaign_id) (changes(memgrid_campaign_progress_ratio[6h])) == 0\n"
        "and max by (job, campaign, campaign_id) (memgrid_campaign_progress_ratio offset 6h) >= 0",
        holds="30m",
        severity=WARNING,
        summary="The campaign {{ $labels.campaign }} has not moved for six hours",
        description="It runs, and nothing of it was accepted: `memgrid explain {{ $labels.campaign_id }}` "
        "says what happened.",
    ),
    Alert(
        name="MemgridCampaignWasteful",
        expr='max by (job, campaign, campaign_id) (memgrid_campaign_flops{of="spent"})\n'
        '/ (max by (job, campaign, campaign_id) (memgrid_campaign_flops{of="produced"}) > 0) > 4',
        holds="1h",
        severity=INFO,
        summary="The campaign {{ $labels.campaign }} costs much more than it makes",
        description="{{ $value | humanize }} FLOPs were spent for each one of a result; a quorum of two should take "
        "little over 2.",
    ),
    Alert(
        name="MemgridDocumentsFailed",
        expr='max by (job, campaign, campaign_id) (memgrid_campaign_documents{state="failed"}) > 0',
        holds="0m",
        severity=INFO,
        summary="Documents of the campaign {{ $labels.campaign }} became no cube",
        description="{{ $value | humanize }} of them; `memgrid campaign status {{ $labels.campaign_id }}` says why.",
    ),
)
GROUPS = {"memgrid-coordinator": COORDINATOR, "memgrid-work": WORK, "memgrid-campaigns": CAMPAIGNS}


def to_yaml(docs_url: str) -> str:
    """The rules as a file for Prometheus."""
    groups = [{"name": name, "rules": [rule.to_rule(docs_url) for rule in rules]} for name, rules in GROUPS.items()]
    return HEADER + yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
