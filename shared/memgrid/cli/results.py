"""What a campaign made: cubes with their digests and quality, and what became of the other documents."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from memgrid.campaign_status import CampaignStatus, DocumentStatus
from memgrid.cli.picturing import percent_text

_DIGEST_SHOWN = len("sha256:") + 12
"""Characters of a digest in the table; --json has it whole."""


def results_json(status: CampaignStatus) -> dict[str, Any]:
    """For machines: every document with its cube, or the reason why there is none."""
    return {
        "campaign_id": status.campaign_id,
        "name": status.name,
        "state": status.state,
        "recipe": status.recipe,
        "documents": [_document_json(document) for document in status.documents],
    }


def results_table(status: CampaignStatus) -> Table:
    """A row a document: how good its cube is where that was measured, and its digest."""
    is_distilled = status.recipe == "distill"
    table = Table(box=None, header_style="bold")
    scores = ("NLL without", "cube", "text", "gap closed", "n") if is_distilled else ()
    for heading in ("cube", "tokens", *scores, "digest"):
        table.add_column(heading, justify="left" if heading in ("cube", "digest") else "right", no_wrap=True)
    for document in status.documents:
        name = document.cube or f"{document.name}: {document.state}"
        quality = _scores(document) if is_distilled else ()
        table.add_row(name, f"{document.tokens:,}", *quality, document.cube_digest[:_DIGEST_SHOWN])
    return table


def results_notes(status: CampaignStatus) -> list[str]:
    """Why documents failed or ended early, and how to fetch the rest."""
    notes = [
        f"{document.name}: {document.reason or document.note}"
        for document in status.documents
        if document.reason or document.note
    ]
    published = [document.cube for document in status.documents if document.state == "published"]
    return notes + ([f"fetch one with: memgrid pull {published[0]}"] if published else [])


def _document_json(document: DocumentStatus) -> dict[str, Any]:
    return {
        "name": document.name,
        "state": document.state,
        "tokens": document.tokens,
        "cube": document.cube,
        "cube_digest": document.cube_digest,
        "quality": asdict(document.quality) if document.quality is not None else None,
        "reason": document.reason,
        "note": document.note,
        "pull": f"memgrid pull {document.cube}" if document.cube else None,
    }


def _scores(document: DocumentStatus) -> tuple[str, ...]:
    quality = document.quality
    if quality is None:
        return ("",) * 5
    nll = (f"{value:.2f}" for value in (quality.nll_none, quality.nll_cube, quality.nll_text))
    return (*nll, percent_text(quality.gap_closed), str(quality.items))
