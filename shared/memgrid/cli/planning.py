"""A campaign's plan as people read it: what each stage costs, and how long it will take here."""

from __future__ import annotations

from rich.table import Table

from memgrid.campaign_plan import CampaignPlan
from memgrid.cli.picturing import rough_text
from memgrid.text import bytes_text, flops_text

_HEADINGS = ("stage", "units", "in the pool", "replicas", "to compute", "to send back", "expected")


def plan_table(plan: CampaignPlan) -> Table:
    """A row a stage, and their sum; `to compute` counts replicas and leaves out what the pool has."""
    table = Table(box=None, header_style="bold", show_footer=len(plan.stages) > 1, footer_style="bold")
    total = (
        "total",
        f"{plan.units:,}",
        f"{plan.units_present:,}",
        "",
        flops_text(plan.flops_left),
        bytes_text(plan.bytes),
        _time(plan.expected_s),
    )
    for heading, footer in zip(_HEADINGS, total, strict=True):
        left = heading == "stage"
        table.add_column(heading, footer, justify="left" if left else "right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(
            stage.kind,
            f"{stage.units:,}",
            f"{stage.units_present:,}",
            str(stage.replicas),
            flops_text(stage.flops_left),
            bytes_text(stage.bytes),
            _time(stage.expected_s),
        )
    return table


def plan_line(plan: CampaignPlan) -> str:
    """What the table is about, in a line, and what its times rest on.

    >>> plan_line(CampaignPlan(recipe="distill", documents=1, tokens=512, stages=(), units=9, units_present=0,
    ...     flops=10**12, flops_left=10**12, hosts=2, flops_per_s=4e10, expected_s=31.0))
    'distill: 1 document, 512 tokens; 2 hosts are here, 40.0 GFLOP/s together: about 31 s'
    """
    documents = f"{plan.documents:,} document{'' if plan.documents == 1 else 's'}"
    fleet = (
        "no host is here: nothing would be computed until one comes"
        if plan.expected_s is None
        else f"{plan.hosts} host{' is' if plan.hosts == 1 else 's are'} here,"
        f" {flops_text(plan.flops_per_s)}/s together: about {rough_text(plan.expected_s)}"
    )
    there = f" ({plan.documents_present:,} in the pool already)" if plan.documents_present else ""
    return f"{plan.recipe}: {documents}{there}, {plan.tokens:,} tokens; {fleet}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else rough_text(seconds)
