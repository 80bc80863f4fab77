"""A campaign in pictures and sentences: bars, loss curves, and a line that sums it up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from memgrid.campaign_status import COMPLETED, CampaignStatus, DocumentStatus, QualityStatus
from memgrid.cli.curves import plot, sparkline
from memgrid.text import seconds_text

DOCUMENTS_SHOWN_MAX = 16
PLOTTED_MAX = 2
"""Documents that get a plot of their own; with more of them, each has a line of bars beside its progress."""
_STATES = ("waiting", "open", "checking", "provisional", "accepted", "failed", "cancelled")
_STAGES = ("study", "train", "evaluate", "publish")
_COLOURS = {"published": "green", "failed": "red", "cancelled": "yellow"}


def summary_of(status: CampaignStatus) -> str:
    """One line: how far, what the units do, how long still.

    >>> summary_of(CampaignStatus(campaign_id="c", name="handbook", state="running", model="m", created_at=None,
    ...     ended_at=None, units=4, units_by_state={"accepted": 1, "open": 3}, reports_by_verdict={},
    ...     rejections_by_reason={"disagrees": 2}, tokens=1000, tokens_accepted=250, produced_flops=0,
    ...     spent_flops=0, documents=(), eta_s=75.0))
    'handbook running: 250 of 1,000 tokens, units: 3 open, 1 accepted, 2 reports rejected, about 1 min 15 s to go'
    """
    parts = [_progress(status), f"units: {_units(status)}"]
    if status.rejections:
        parts.append(f"{status.rejections} report{'' if status.rejections == 1 else 's'} rejected")
    if status.eta_s is not None and not status.is_over:
        parts.append(f"about {rough_text(status.eta_s)} to go")
    return f"{status.name} {status.state}: {', '.join(parts)}"


def picture(status: CampaignStatus) -> RenderableType:
    """The bars of all documents (or the most telling ones), loss curves, and what the units do."""
    documents = shown(status.documents)
    table = Table.grid(padding=(0, 2))
    table.add_column(max_width=32, no_wrap=True)
    for column in ("bar", "size", "state", "loss"):
        table.add_column(column, no_wrap=True, justify="right" if column == "size" else "left")
    for document in documents:
        done, total = _done(document)
        bar = ProgressBar(total=max(total, 1), completed=done, width=30)
        state = Text(_state(document), style=_COLOURS.get(document.state, "default"))
        table.add_row(document.name, bar, f"{document.tokens:,} tokens", state, _losses(document))
    hidden = len(status.documents) - DOCUMENTS_SHOWN_MAX
    if hidden > 0:
        table.add_row(f"… and {hidden} more", "", "", "", "")
    style = "green" if status.state == COMPLETED else "red" if status.is_over else "default"
    return Group(table, *_plots(documents), Text(summary_of(status), style=style))


def ending_of(document: DocumentStatus) -> str:
    """What became of a document that is over, in a line."""
    if document.state != "published":
        reason = document.reason or "no reason given"
        return f"{document.name}: {document.state}: {reason}{_quality_clause(document.quality)}"
    note = f"; training ended early: {document.note}" if document.note else ""
    return f"published {document.cube} ({document.tokens:,} tokens){_quality_clause(document.quality)}{note}"


def endings_of(status: CampaignStatus) -> list[str]:
    """A line for each document that is over, as far as there is room."""
    over = [document for document in status.documents if document.state != "running"]
    more = len(over) - DOCUMENTS_SHOWN_MAX
    return [ending_of(each) for each in over[:DOCUMENTS_SHOWN_MAX]] + ([f"… and {more} more"] if more > 0 else [])


def quality_text(quality: QualityStatus) -> str:
    """What a cube is worth, in half a sentence.

    >>> quality_text(QualityStatus(nll_none=2.1, nll_cube=0.8, nll_text=0.5, gap_closed=0.8125, items=32,
    ...     kl_none=1.5, kl_cube=0.2, exact_none=0.0, exact_cube=0.25))
    'closes 81 % of the gap to having read the text (NLL without it 2.10, with the cube 0.80, with it 0.50; n = 32)'
    """
    share = percent_text(quality.gap_closed)
    scores = f"NLL without it {quality.nll_none:.2f}, with the cube {quality.nll_cube:.2f}, with it"
    return f"closes {share} of the gap to having read the text ({scores} {quality.nll_text:.2f}; n = {quality.items})"


def percent_text(share: float) -> str:
    """A share as people read it.

    >>> percent_text(0.8125)
    '81 %'
    """
    return f"{100 * share:.0f} %"


def rough_text(seconds: float) -> str:
    """No estimate is good to a tenth of a second."""
    return f"{max(1, round(seconds))} s" if seconds < 60 else seconds_text(seconds)


def shown(documents: Iterable[DocumentStatus]) -> list[DocumentStatus]:
    """When there are too many to show: those under way first, then failed ones, then the rest."""
    everything = list(documents)
    if len(everything) <= DOCUMENTS_SHOWN_MAX:
        return everything
    order = {"running": 0, "failed": 1}
    ranked = sorted(everything, key=lambda each: (order.get(each.state, 2), each.units_accepted == 0))
    return ranked[:DOCUMENTS_SHOWN_MAX]


def progress_text(status: CampaignStatus) -> str:
    """Tokens read, or steps trained."""
    if status.recipe != "distill":
        return f"{status.tokens_accepted:,} of {status.tokens:,} tokens"
    steps = sum(document.steps for document in status.documents)
    total = sum(document.steps_total for document in status.documents)
    return f"{steps:,} of {total:,} steps"


def _progress(status: CampaignStatus) -> str:
    """How far, and of a distillation the stages its documents are in, and their loss."""
    if status.recipe != "distill":
        return progress_text(status)
    stages = Counter(document.stage for document in status.documents if document.state == "running")
    named = [f"{stages[stage]} in {stage}" for stage in _STAGES if stages[stage]]
    losses = [losses[-1][1] for losses in map(_curve, status.documents) if losses]
    loss = [f"loss {sum(losses) / len(losses):.2f}"] if losses else []
    count = f"{len(status.documents)} document{'' if len(status.documents) == 1 else 's'}"
    return ", ".join([count + (f" ({', '.join(named)})" if named else ""), progress_text(status), *loss])


def _done(document: DocumentStatus) -> tuple[int, int]:
    """How far a document is in the stage it is in."""
    if document.stage == "train":
        return document.steps, document.steps_total
    return document.units_accepted, document.units


def _state(document: DocumentStatus) -> str:
    if document.state == "published" and document.quality is not None:
        return f"{document.cube}  {percent_text(document.quality.gap_closed)} of the gap closed"
    if document.cube or document.state != "running":
        return document.cube or document.state
    if document.stage == "train":
        return f"train: {document.steps:,} of {document.steps_total:,} steps"
    return document.stage or document.state


def _losses(document: DocumentStatus) -> str:
    losses = [loss for _, loss in _curve(document)]
    return f"{sparkline(losses)} {losses[-1]:.2f}" if losses else ""


def _plots(documents: list[DocumentStatus]) -> list[Text]:
    curves = [(document.name, curve) for document in documents if len(curve := _curve(document)) > 1]
    if len(curves) > PLOTTED_MAX:
        return []
    return [Text("\n".join(["", f"{name}: loss by step", *plot(curve), ""]), style="cyan") for name, curve in curves]


def _curve(document: DocumentStatus) -> list[tuple[int, float]]:
    """What of the losses can be drawn."""
    return [(step, loss) for step, loss in document.losses if math.isfinite(loss)]


def _units(status: CampaignStatus) -> str:
    present = [f"{status.units_by_state[state]} {state}" for state in _STATES if status.units_by_state.get(state)]
    return ", ".join(present) or "none"


def _quality_clause(quality: QualityStatus | None) -> str:
    return f": {quality_text(quality)}" if quality is not None else ""
