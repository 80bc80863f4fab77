"""What can be said about a campaign file on the operator's machine, before any grid is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from memgrid.campaign import CampaignFile
from memgrid.campaign_distill import DistillParameters, Mode, PrefixAdapter
from memgrid.campaign_sources import LocalSource, find_sources
from memgrid.cube.identity import identity_of_folder
from memgrid.errors import InvalidError
from memgrid.text import bytes_text

SOURCES_SHOWN_MAX = 20


def read_campaign(file: Path, now: datetime) -> tuple[CampaignFile, tuple[LocalSource, ...]]:
    """A campaign with its sources, all that can be checked here checked; InvalidError has a line a problem."""
    campaign = CampaignFile.load(file)
    problems: list[str] = []
    sources: tuple[LocalSource, ...] = ()
    try:
        sources = find_sources(campaign, file.parent, where=file.name)
    except InvalidError as error:
        problems.append(str(error))
    if campaign.model_is_folder:
        try:
            identity_of_folder(file.parent / Path(campaign.model).expanduser())
        except InvalidError as error:
            problems.append(f"{file.name}: {error}")
    deadline = campaign.budget.deadline
    if deadline is not None and deadline <= now:
        problems.append(f"{file.name}: budget.deadline: expected a moment to come, found {deadline.isoformat()}")
    if problems:
        raise InvalidError("\n".join(problems))
    return campaign, sources


def validation_json(campaign: CampaignFile, sources: Sequence[LocalSource]) -> dict[str, Any]:
    found = [{**asdict(source), "path": str(source.path)} for source in sources]
    return {"name": campaign.name, "recipe": campaign.recipe, "sources": found, "valid": True}


def validation_text(name: str, campaign: CampaignFile, sources: Sequence[LocalSource]) -> str:
    """What will be read and what will be made of it; the longest lists of sources are cut."""
    total = bytes_text(sum(source.size_bytes for source in sources))
    count = f"{len(sources):,} source{'' if len(sources) == 1 else 's'}"
    lines = [f"{name} is valid: {campaign.recipe}, {count}, {total}, for {campaign.model}"]
    width = max(len(source.uri) for source in sources[:SOURCES_SHOWN_MAX])
    lines += [
        f"  {source.uri:{width}}  {bytes_text(source.size_bytes):>9}  {source.format:7}  {source.licence}"
        for source in sources[:SOURCES_SHOWN_MAX]
    ]
    if len(sources) > SOURCES_SHOWN_MAX:
        lines.append(f"  … and {len(sources) - SOURCES_SHOWN_MAX:,} more")
    if campaign.recipe == "distill":
        lines.append(_training_line(campaign.distill))
    return "\n".join(lines)


def _training_line(distill: DistillParameters) -> str:
    """What each document gets, in a line."""
    adapter, train = distill.adapter, distill.train
    if not isinstance(adapter, PrefixAdapter):
        what = f"LoRA of rank {adapter.rank} on {', '.join(adapter.targets)}"
    elif adapter.virtual_tokens is not None:
        what = f"a prefix of {adapter.virtual_tokens} virtual tokens"
    else:
        what = f"a prefix {adapter.shape(1000).virtual_tokens / 1000:.1%} as long as it".replace("%", " %")
    how = f"rounds of {train.rounds.members} members" if train.mode is Mode.ROUNDS else "a relay"
    steps = f"{train.total_steps:,} steps, {train.unit_steps} a unit, in {how}"
    return f"each document becomes {what}: {steps}; published from {distill.quality.min_gap_closed:g} of the gap on"
