"""The owner's commands: pause, resume, probe and preferences, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memgrid.errors import InvalidError
from memgrid.units import AccountId, HostId
from memgrid_volunteer.cli import app
from memgrid_volunteer.home import Home, Membership


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A volunteer that has joined a grid."""
    home = Home(tmp_path / "attic")
    home.make()
    home.join(Membership(url="https://g", name="g", account_id=AccountId("a1"), host_id=HostId("h1"), label="attic"))
    return home


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which GPUs there are."""
    file = tmp_path / "gpus.json"
    monkeypatch.setenv("MEMGRID_NVML_STAND_IN", str(file))
    file.write_text(json.dumps({"gpus": [{"uuid": "GPU-a", "temperature_c": 50, "processes": []}]}))
    return file


def typed(home: Home, *words: str) -> str:
    """What a command prints; raises what it raises."""
    result = CliRunner().invoke(app, [*words, "--home", str(home.folder)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def seen(home: Home) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(typed(home, "probe", "--json"))
    return value


def test_a_device_is_paused_for_an_hour_and_the_status_says_so(home: Home, gpus: Path) -> None:
    assert typed(home, "pause", "--device", "cuda:0", "--for", "1h").startswith("cuda:0 paused until ")
    assert typed(home, "pause", "--until-restart") == "paused until the volunteer starts again\n"
    facts = json.loads(typed(home, "status", "--local", "--json"))
    assert facts["paused"] is True and len(facts["pauses"]) == 2
    lines = typed(home, "resume", "--device", "cuda:0").splitlines()
    assert lines == ["resumed", "still paused until the volunteer starts again"]
    assert seen(home)["devices"]["cuda:0"]["reason"]["code"] == "owner_paused"
    assert typed(home, "resume") == "resumed\n"
    assert seen(home)["pauses"] == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("pause", "--for", "soon"), "expected a time such as"),
        (("pause", "--for", "1h", "--until-restart"), "choose one"),
        (("pause", "--device", " "), "expected a device"),
        (("preferences", "set", "when.idle", "5"), "volunteer.toml: line 2: when.idle: unknown key"),
        (("preferences", "preset", "rude"), "expected polite, night or always, found 'rude'"),
    ],
)
def test_what_can_not_be_meant_is_said_in_one_line(home: Home, words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(InvalidError, match=problem) as error:
        typed(home, *words)
    assert "\n" not in str(error.value)
    assert not (home.folder / "volunteer.toml").exists() and not (home.folder / "control.json").exists()


def test_what_is_seen_and_what_follows_is_shown_for_every_device(home: Home, gpus: Path) -> None:
    facts = seen(home)
    assert set(facts["probes"]) == {
        *("idle", "screen", "gpu", "load", "power", "thermal", "programs", "network", "disk", "traffic")
    }
    assert facts["probes"]["gpu"]["reading"]["devices"]["cuda:0"]["temperature_c"] == 50
    assert set(facts["devices"]) == {"cuda:0"}  # the processor is left to its owner beside a GPU
    for probe in facts["probes"].values():
        assert (probe["reading"] is None) == bool(probe["why_unseen"])
    gpus.write_text(json.dumps({"error": "Driver Not Loaded"}))
    assert seen(home)["probes"]["gpu"]["why_unseen"] == "NVML: Driver Not Loaded"
    assert "nothing: NVML: Driver Not Loaded" in typed(home, "probe")


def test_a_hot_gpu_is_said_to_be_paused_and_by_which_preference(home: Home, gpus: Path) -> None:
    typed(home, "preferences", "preset", "always")
    typed(home, "preferences", "set", "devices.cuda:0.temperature_max_c", "45")
    decided = seen(home)["devices"]["cuda:0"]
    assert (decided["action"], decided["reason"]["code"]) == ("pause_keep", "too_hot")
    assert decided["preference"] == 'devices."cuda:0".temperature_max_c'
    typed(home, "preferences", "unset", "devices.cuda:0.temperature_max_c")
    assert seen(home)["devices"]["cuda:0"]["action"] == "run"


def test_preferences_are_shown_with_what_the_preset_says(home: Home) -> None:
    typed(home, "preferences", "preset", "night")
    path = Path(typed(home, "preferences", "path").strip())
    assert path == home.folder / "volunteer.toml" and path.read_text() == 'preset = "night"\n'
    assert 'hours = ["22:00-07:00"]' in typed(home, "preferences", "show")
    assert json.loads(typed(home, "preferences", "show", "--json"))["when"]["hours"] == ["22:00-07:00"]


def test_errors_in_the_file_are_shown_and_what_was_said_before_holds(home: Home) -> None:
    typed(home, "preferences", "set", "when.idle_minutes", "9")
    typed(home, "preferences", "show")
    (home.folder / "volunteer.toml").write_text("[when]\nidle_minutes = -1\n")
    result = CliRunner().invoke(app, ["preferences", "show", "--home", str(home.folder)])
    assert "line 2: when.idle_minutes: expected minutes from 0 to 1440, found -1" in result.stderr
    assert "idle_minutes = 9" in result.stdout
    assert seen(home)["problems"] == [
        "volunteer.toml: line 2: when.idle_minutes: expected minutes from 0 to 1440, found -1"
    ]
