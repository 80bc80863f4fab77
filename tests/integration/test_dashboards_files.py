"""What Grafana, Prometheus and compose are given has the form that they want, and fits together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from memgrid_coordinator.metrics import Metrics
from tests.integration.prometheus import DASHBOARDS, ROOT, boards, needs_prometheus, panels_of

UNITS = {"short", "percentunit", "s", "bytes", "Bps", "cps", "reqps", "x", "si:FLOP", "si:FLOP/s"}
"""Of Grafana's formats those that memgrid needs; `x` and `si:…` are written behind the number as they are."""


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DASHBOARDS / "rules" / "memgrid.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def test_what_is_committed_is_what_the_code_says() -> None:
    subprocess.run([sys.executable, DASHBOARDS / "build.py", "--check"], check=True)


@pytest.mark.parametrize("name", sorted(boards()))
def test_a_dashboard_explains_itself(name: str) -> None:
    board = boards()[name]
    assert board["uid"] == f"memgrid-{name}"
    assert board["description"] and not board["editable"]
    assert [link["type"] for link in board["links"]] == ["dashboards", "link"]
    assert {variable["name"] for variable in board["templating"]["list"]} >= {"datasource", "job", "instance", "page"}
    for panel in panels_of(board):
        assert len(panel["description"]) > 10, panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("name", sorted(boards()))
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str) -> None:
    every = boards()[name]["panels"]
    ids = [panel["id"] for panel in every]
    assert len(set(ids)) == len(ids) and 0 not in ids
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells


def test_titles_are_told_apart() -> None:
    for name, board in boards().items():
        titles = [panel["title"] for panel in panels_of(board) if panel["type"] != "stat"]
        assert len(set(titles)) == len(titles), name


@needs_prometheus
def test_alerts_fire_when_they_should_and_not_beside_it() -> None:
    subprocess.run(["promtool", "check", "rules", DASHBOARDS / "rules" / "memgrid.yml"], check=True)
    subprocess.run(["promtool", "test", "rules", DASHBOARDS / "rules" / "tests.yml"], check=True)


@needs_prometheus
def test_series_are_named_as_prometheus_advises() -> None:
    served = generate_latest(Metrics().registry)
    told = subprocess.run(["promtool", "check", "metrics"], input=served, capture_output=True, check=True)
    assert not told.stderr, told.stderr.decode()


@needs_prometheus
def test_the_shipped_configuration_is_one() -> None:
    subprocess.run(["promtool", "check", "config", DASHBOARDS / "prometheus.yml"], check=True)


def test_every_alert_has_a_story_and_a_runbook_and_stands_on_the_page() -> None:
    told = (DASHBOARDS / "rules" / "tests.yml").read_text()
    page = (ROOT / "docs" / "watching.md").read_text()
    runbooks = set()
    for rule in rules():
        assert rule["alert"] in told, rule["alert"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        name = rule["annotations"]["runbook_url"].rstrip("/").rpartition("/")[2]
        text = (ROOT / "docs" / "runbooks" / f"{name}.md").read_text()
        assert f"**{rule['alert']}**, {rule['labels']['severity']}" in text
        assert f"[{rule['alert']}](runbooks/{name}.md) | {rule['labels']['severity']} |" in page
        runbooks.add(name)
    assert {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")} == runbooks


def test_runbooks_name_panels_that_are_there() -> None:
    titles = {panel["title"] for board in boards().values() for panel in board["panels"]}
    for path in sorted((ROOT / "docs" / "runbooks").glob("*.md")):
        for named in re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", path.read_text()):
            assert named in titles, f"{path.name}: {named}"


def test_panels_name_runbooks_that_are_there() -> None:
    known = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    for board in boards().values():
        for panel in panels_of(board):
            for named in re.findall(r"[Rr]unbooks?:? ([a-z-]+(?:, [a-z-]+)*)", panel["description"]):
                assert set(named.split(", ")) <= known, panel["title"]


def test_grafana_finds_what_it_is_provisioned_with() -> None:
    provisioning = DASHBOARDS / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "memgrid.yml").read_text())["providers"]
    services = compose()["services"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    assert mounted["./dashboards/grafana"] == provider["options"]["path"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert (DASHBOARDS / "grafana" / Path(home).name).exists()


def test_compose_pins_its_images_and_mounts_what_is_there() -> None:
    for name, service in compose()["services"].items():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists(), name
        else:
            assert re.fullmatch(r".+:v?\d+\.\d+[\w.-]*", service["image"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose()["volumes"] or (ROOT / source).exists(), volume
        assert set(service["networks"]) <= set(compose()["networks"]), name
        if name != "coordinator":
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_the_scrape_job_is_the_one_that_rules_and_dashboards_go_by() -> None:
    config = yaml.safe_load((DASHBOARDS / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "memgrid"
    (target,) = job["static_configs"][0]["targets"]
    service, _, port = target.partition(":")
    assert any(published.endswith(f":{port}") for published in compose()["services"][service]["ports"])
    assert json.dumps(config["rule_files"]) == '["rules/memgrid.yml"]'
