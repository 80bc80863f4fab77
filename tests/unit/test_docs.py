"""What the documentation shows can be done as it is shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from memgrid.campaign import ActivationParameters, CampaignFile, Publication, SourcePattern, Trust
from memgrid.cli.main import build_app

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("dashboards/*.md")])


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of a page in one language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `memgrid …` line of a shell block, cut into words."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "memgrid":
                    yield f"{page.name}: {line.strip()}", words[1:]


def campaigns() -> list[str]:
    return [block for page in PAGES for block in blocks(page, "yaml") if "recipe:" in block]


@pytest.mark.parametrize("block", campaigns())
def test_a_campaign_that_is_shown_is_valid(block: str) -> None:
    assert CampaignFile.parse(block.encode(), where="the page").recipe == "activation"


def test_the_whole_campaign_file_names_every_key() -> None:
    (page,) = [block for block in campaigns() if "sink_tokens" in block]
    shown = yaml.safe_load(page)
    assert set(shown) == set(CampaignFile.model_fields)
    assert {key for source in shown["sources"] for key in source} == set(SourcePattern.model_fields)
    for part, model in (("activation", ActivationParameters), ("publish", Publication), ("trust", Trust)):
        assert set(shown[part]) == set(model.model_fields)


def test_the_whole_campaign_file_shows_the_defaults() -> None:
    (page,) = [block for block in campaigns() if "sink_tokens" in block]
    campaign = CampaignFile.parse(page.encode(), where="the page")
    assert campaign.activation == ActivationParameters()
    assert campaign.trust == Trust()


@pytest.mark.parametrize(("where", "words"), list(commands()))
def test_a_command_that_is_shown_exists_with_its_options(where: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(build_app())
    for word in words:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, where
        command = command.commands[word]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
