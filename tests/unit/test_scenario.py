"""The scenario file says what is wrong with it, and the command writes what it was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memgrid.cli.main import build_app
from memgrid.errors import InvalidError
from memgrid_coordinator.policy.trust import TrustRule
from memgrid_coordinator.simulation.running import parts_of
from memgrid_coordinator.simulation.scenario import Scenario, rule_of

SCENARIOS = sorted((Path(__file__).resolve().parent.parent.parent / "docs" / "scenarios").glob("*.yaml"))
SMALL = b"""
name: small
days: 2
hosts: 20
devices: [{name: machine, share: 1, flops_per_s: 1.0e+12}]
populations:
  - {name: honest, share: 0.9, kind: honest}
  - {name: cheats, share: 0.1, kind: independent, wrong_rate: 0.5}
campaigns: [{name: book, units: 200, unit_flops: 1.0e+15}]
policies: [memgrid, quorum2]
"""


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenarios_of_the_manual_are_valid(path: Path) -> None:
    assert Scenario.load(path).name == path.stem


def test_the_trust_block_has_the_rules_own_keys_and_defaults() -> None:
    assert rule_of(Scenario.parse(SMALL, where="small").trust) == TrustRule()
    changed = Scenario.parse(SMALL + b"trust: {look_back: 7, provisional_max_hours: 2}", where="small")
    assert rule_of(changed.trust).look_back == 7
    assert rule_of(changed.trust).provisional_max.total_seconds() == 7200


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        (b"hosts: 20", b"hosts: many", "hosts: expected a whole number from 2 to 1000000, found 'many'"),
        (b"share: 0.9", b"share: 0.8", "populations: expected shares that add up to 1, found 0.9"),
        (b"kind: honest", b"kind: honest, wrong_rate: 0.1", "populations[0].wrong_rate: expected 0 for honest hosts"),
        (b", wrong_rate: 0.5", b"", "populations[1].wrong_rate: expected a number above 0 for independent hosts"),
        (b"kind: independent", b"kind: evil", "populations[1].kind: expected honest, flaky"),
        (b"kind: honest", b"kind: honest, devices: [phone]", "populations[0].devices: expected some of ['machine']"),
        (b"name: small", b"name: small\ntrust: {epsilom: 1}", "trust.epsilom: unknown key"),
        (b"[memgrid, quorum2]", b"[memgrid, best]", "policies[1]: expected"),
        (b"[{name: book", b"[{nam: book", "campaigns[0].nam: unknown key"),
        (b"days: 2", b"days: -2", "days: expected days above 0, found -2"),
    ],
)
def test_a_mistake_is_named_on_a_line_of_its_own(before: bytes, after: bytes, problem: str) -> None:
    assert before in SMALL
    with pytest.raises(InvalidError) as raised:
        Scenario.parse(SMALL.replace(before, after), where="small.yaml")
    assert any(line.startswith(f"small.yaml: {problem}") for line in str(raised.value).splitlines()), raised.value


@pytest.mark.parametrize("content", [b"- 1", b"a: [", b"\xff", b""])
def test_what_is_no_scenario_is_turned_down_in_one_line(content: bytes) -> None:
    with pytest.raises(InvalidError, match="expected"):
        Scenario.parse(content, where="small.yaml")


def test_every_host_is_in_one_part() -> None:
    scenario = Scenario.parse(SMALL, where="small").model_copy(update={"partition_hosts": 7})
    assert [(part.policy, part.number) for part in parts_of(scenario)] == [
        (policy, number) for policy in ("memgrid", "quorum2") for number in range(3)
    ]


def test_the_command_prints_a_table_and_writes_figures_and_plots(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_bytes(SMALL)
    json_file, plots = tmp_path / "small.json", tmp_path / "plots"
    words = ["simulate", str(tmp_path / "small.yaml"), "--json", str(json_file), "--plots", str(plots)]
    result = CliRunner().invoke(build_app("simulate"), [*words, "--seed", "3", "--processes", "1"])
    assert result.exit_code == 0, result.output
    assert "cost of an accepted unit" in result.output
    assert "small, seed 3" in result.output
    assert "An audit costs 0.1 of its unit" in result.output
    found = json.loads(json_file.read_text())
    assert found["scenario"]["seed"] == 3
    assert set(found["policies"]) == {"memgrid", "quorum2"}
    assert found["policies"]["memgrid"]["accepted"] == 200
    drawn = {path.name: path.read_bytes() for path in plots.iterdir()}
    assert set(drawn) == {"wrong-and-cost.svg", "days.svg", "detection.svg"}
    assert all(svg.startswith(b"<?xml") and b"memgrid" in svg for svg in drawn.values())


def test_a_bad_file_ends_the_command_with_its_problems(tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app("simulate"), ["simulate", str(tmp_path / "none.yaml")])
    assert isinstance(result.exception, InvalidError)
    assert "expected a scenario file" in str(result.exception)
