"""What the documentation shows can be done as it is shown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from memgrid.campaign import ActivationParameters, Budget, CampaignFile, Publication, SourcePattern, Trust
from memgrid.campaign_distill import DistillParameters
from memgrid.campaign_problems import models_in
from memgrid.cli.main import build_app

ROOT = Path(__file__).resolve().parent.parent.parent
DISTIL_PAGE = ROOT / "docs" / "distil.md"
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
    CampaignFile.parse(block.encode(), where="the page")


def whole_file(recipe: str) -> str:
    """The block that claims to show every key."""
    (page,) = [block for block in campaigns() if f"recipe: {recipe}" in block and "\nbudget:" in block]
    return page


@pytest.mark.parametrize(("recipe", "other"), [("activation", "distill"), ("distill", "activation")])
def test_the_whole_campaign_file_names_every_key(recipe: str, other: str) -> None:
    shown = yaml.safe_load(whole_file(recipe))
    assert set(shown) == set(CampaignFile.model_fields) - {other}
    assert {key for source in shown["sources"] for key in source} == set(SourcePattern.model_fields)
    for part, model in (("publish", Publication), ("trust", Trust), ("budget", Budget)):
        assert set(shown[part]) == set(model.model_fields)


def test_the_whole_activation_block_names_every_key_with_its_default() -> None:
    page = whole_file("activation")
    assert set(yaml.safe_load(page)["activation"]) == set(ActivationParameters.model_fields)
    campaign = CampaignFile.parse(page.encode(), where="the page")
    assert campaign.activation == ActivationParameters()
    assert (campaign.trust, campaign.budget) == (Trust(), Budget())


def test_the_whole_distill_block_shows_the_defaults() -> None:
    campaign = CampaignFile.parse(whole_file("distill").encode(), where="the page")
    assert campaign.distill == DistillParameters()
    assert (campaign.trust, campaign.budget) == (Trust(), Budget())


def test_the_reference_of_the_distill_block_is_the_schema() -> None:
    table = DISTIL_PAGE.read_text().partition("## Every key")[2]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    shown = {key: (default.strip().strip("`"), takes.strip()) for key, default, takes, _ in rows}
    assert shown == dict(keys_of(DistillParameters))
    assert all(meaning.strip() for *_, meaning in rows)


def keys_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    """Every key of a part of the campaign file, with its default as YAML has it and what it takes."""
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        inner = [part for part in models_in(field.annotation) if part is not model]
        for part in inner:
            yield from keys_of(part, f"{path}{name}.")
        if not inner:
            default = field.default.value if isinstance(field.default, StrEnum) else field.default
            yield f"{path}{name}", (json.dumps(default).replace('"', ""), field.description or "")


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
