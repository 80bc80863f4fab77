"""Preferences: what a file may say, what is said about its errors, and that nobody's comments are lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memgrid.errors import InvalidError
from memgrid.units import ReasonCode
from memgrid_volunteer.owner.preferences import (
    PRESETS,
    DevicePreferences,
    Disk,
    InUse,
    Network,
    Preferences,
    Preset,
    When,
    Work,
    preferences_of,
)
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.preferences_toml import changed, lines_of, read_preferences, to_toml
from memgrid_volunteer.owner.signals import Signals
from memgrid_volunteer.owner.sparing import refused, transfers_held

MINE = """\
# My machine, my rules.
preset = "night" # for now

[when]
# Never while I work.
quiet = [
  "mon-fri 09:00-18:00", # the office
]
idle_minutes = 10

[devices."cuda:0"]
duty_percent = 60 # it is loud
"""


ODD_LINES = (
    *("[when]", "[[when]]", "[devices]", '[devices."cuda:0"]', "when = 3", "when.hours = [", '"sat"', "]"),
    *("idle_minutes = nan", "idle_minutes = inf", "hours = [[]]", "devices = {cpu = {enabled = 1}}", "preset = []"),
    *('"https://a.example" = -1', "quiet = [{a = 1}]", "a.b.c = 1979-05-27", "#", "\\", '"""'),
)


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidError) as error:
        read_preferences(text, "volunteer.toml")
    return str(error.value).splitlines()


def test_without_a_file_the_preset_is_polite() -> None:
    preferences = read_preferences("", "volunteer.toml")
    assert preferences == Preferences() and preferences.preset is Preset.POLITE
    assert preferences.when.gpu_while_in_use is InUse.PAUSE and not preferences.when.on_battery


def test_what_the_file_says_goes_before_its_preset() -> None:
    preferences = read_preferences(MINE, "volunteer.toml")
    assert preferences.when.hours == ("22:00-07:00",)
    assert preferences.when.quiet == ("mon-fri 09:00-18:00",)
    assert preferences.device("cuda:0").duty_percent == 60
    assert preferences.device("cuda:1") == DevicePreferences()


@pytest.mark.parametrize("preset", list(Preset))
def test_every_preset_is_valid_and_comes_back_from_its_own_text(preset: Preset) -> None:
    preferences = preferences_of({"preset": preset.value})
    assert set(PRESETS[preset]) <= {"when"} and preferences.preset is preset
    assert read_preferences(to_toml(preferences), "").model_dump() == preferences.model_dump()


def test_every_problem_is_told_with_its_line_its_key_and_what_was_expected() -> None:
    text = """\
preset = "rude"
[when]
quiet = [
  "sat-sun",
  "always",
]
idle_minuts = 5
while_in_use = "stop"
[devices."cuda:0"]
duty_percent = 300
[devices.gpu]
enabled = false
[disk]
cache_gb = "much"
"""
    assert problems(text) == [
        "volunteer.toml: line 1: preset: expected polite, night or always, found 'rude'",
        'volunteer.toml: line 3: when.quiet[1]: expected a span such as "mon-fri 09:00-18:00", "22:00-07:00" or'
        " \"sat-sun\", found 'always'",
        "volunteer.toml: line 7: when.idle_minuts: unknown key, expected one of "
        f"{', '.join(When.model_fields)}; did you mean idle_minutes?",
        "volunteer.toml: line 8: when.while_in_use: expected run, throttle or pause, found 'stop'",
        "volunteer.toml: line 10: devices.cuda:0.duty_percent: expected a whole number from 1 to 100, found 300",
        "volunteer.toml: line 11: devices.gpu: expected devices such as cpu, mps or \"cuda:0\", found 'gpu'",
        "volunteer.toml: line 14: disk.cache_gb: expected gigabytes, more than 0, found 'much'",
    ]


def test_what_is_no_toml_is_told_with_its_line() -> None:
    (problem,) = problems('preset = "polite"\n[when\nidle_minutes = 5')
    assert problem.startswith("volunteer.toml: line 2: not TOML: ") and '"[when"' in problem
    (problem,) = problems("preset = [1,")
    assert problem.startswith("volunteer.toml: line 1: not TOML: ")


def test_a_file_that_is_far_too_large_is_not_looked_into() -> None:
    (problem,) = problems("#" * 300_000)
    assert problem == "volunteer.toml: larger than 256 KiB"


def test_a_changed_key_leaves_comments_and_all_else_as_they_were() -> None:
    text = changed(MINE, "when.idle_minutes", 3)
    assert text == MINE.replace("idle_minutes = 10", "idle_minutes = 3")
    text = changed(MINE, "preset", "polite")
    assert text == MINE.replace('"night"', '"polite"')
    text = changed(MINE, "devices.cuda:0.duty_percent", None)
    assert text == MINE.replace("duty_percent = 60 # it is loud\n", "")
    text = changed(MINE, 'devices."cuda:1".enabled', False)
    assert text.startswith(MINE.rstrip()) and read_preferences(text, "").device("cuda:1").enabled is False


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(
        st.sampled_from(
            [
                ("when.idle_minutes", 7),
                ("when.exclusive_programs", ["a", "b"]),
                ("devices.cpu.enabled", False),
                ("devices.cuda:0.memory_gb", 2.5),
                ("network.up_kbps", 100),
                ("preset", "always"),
                ("work.kinds", ["prefill"]),
            ]
        ),
        max_size=8,
    ),
    text=st.sampled_from(["", MINE, "# nothing yet\n", "[devices.cpu]\nenabled = true\n"]),
)
def test_whatever_is_set_is_what_is_read_and_comments_stay(keys: list[tuple[str, object]], text: str) -> None:
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    for key, value in keys:
        text = changed(text, key, value)
    said = read_preferences(text, "volunteer.toml").model_dump(mode="json")
    for key, value in dict(keys).items():
        table, _, name = key.partition(".")
        found = said["devices"][name.split(".")[0]][name.split(".")[1]] if table == "devices" else said[table]
        assert (found[name] if table not in ("devices", "preset") else found) == value
    assert all(comment in text for comment in comments)


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(ODD_LINES),
            max_size=8,
        ).map("\n".join),
    ),
    key=st.text(alphabet='when.idle"cuda:0 #=[]\n', max_size=20),
)
def test_whatever_a_file_or_a_key_is_the_answer_is_preferences_or_problems(text: str, key: str) -> None:
    for attempt in (lambda: read_preferences(text, "f"), lambda: read_preferences(changed(text, key, 5), "f")):
        try:
            assert isinstance(attempt(), Preferences)
        except InvalidError as error:
            assert str(error)


def test_every_key_of_a_text_has_its_line() -> None:
    assert lines_of(MINE)["when.quiet"] == 6 and lines_of(MINE)["devices.cuda:0.duty_percent"] == 12


def test_a_change_on_disk_holds_at_the_next_look(tmp_path: Path) -> None:
    file = PreferencesFile(tmp_path)
    assert file.current().preset is Preset.POLITE
    file.path.write_text('preset = "always"')
    assert file.current().preset is Preset.ALWAYS and file.problems == ()
    before = file.current()
    assert file.current() is before
    file.path.unlink()
    assert file.current().preset is Preset.POLITE


def test_a_file_with_errors_leaves_what_held_before_also_in_the_next_process(tmp_path: Path) -> None:
    file = PreferencesFile(tmp_path)
    file.set("when.idle_minutes", "20")
    assert file.current().when.idle_minutes == 20
    file.path.write_text("[when]\nidle_minutes = 'long'\n")
    assert file.current().when.idle_minutes == 20
    assert file.problems == (
        "volunteer.toml: line 2: when.idle_minutes: expected minutes from 0 to 1440, found 'long'",
    )
    again = PreferencesFile(tmp_path)
    assert again.current().when.idle_minutes == 20 and again.problems == file.problems
    file.path.write_text("[when]\nidle_minutes = 2\n")
    assert file.current().when.idle_minutes == 2 and file.problems == ()


def test_a_file_that_was_never_good_is_no_permission_to_compute(tmp_path: Path) -> None:
    (tmp_path / "volunteer.toml").write_text("on_battery = false")
    with pytest.raises(InvalidError, match=r"volunteer.toml: line 1: on_battery: unknown key"):
        PreferencesFile(tmp_path).current()
    (tmp_path / "volunteer.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidError, match=r"volunteer.toml: not UTF-8 text"):
        PreferencesFile(tmp_path).current()


def test_a_key_that_can_not_be_set_changes_nothing(tmp_path: Path) -> None:
    file = PreferencesFile(tmp_path)
    file.set("when.idle_minutes", "20")
    before = file.text()
    for key, value in (("when.idle_minutes", "soon"), ("when.idle", "5"), ("preset.name", "5"), ("..", "5")):
        with pytest.raises(InvalidError):
            file.set(key, value)
    assert file.text() == before and not list(tmp_path.glob(".volunteer.toml*"))


def test_a_preset_is_chosen_and_a_key_left_to_it_again(tmp_path: Path) -> None:
    file = PreferencesFile(tmp_path)
    assert file.choose(Preset.ALWAYS).when.idle_minutes == 0
    assert file.set("when.idle_minutes", "4").when.idle_minutes == 4
    assert file.unset("when.idle_minutes").when.idle_minutes == 0


@pytest.mark.parametrize(
    ("said", "is_metered", "month_bytes", "text"),
    [
        ({}, True, 0, "the connection is metered (network.metered)"),
        ({}, None, 0, None),
        ({"metered": "use"}, True, 0, None),
        ({"metered": "never"}, None, 0, "nobody can tell whether the connection is metered (no NetworkManager)"),
        ({"metered": "never"}, False, 0, None),
        ({"month_gb": 2}, False, 1_999_999_999, None),
        ({"month_gb": 2}, False, 2_000_000_000, "2.0 GB have gone over it this month (network.month_gb)"),
    ],
)
def test_transfers_are_held_as_the_owner_wants(
    said: dict[str, object], is_metered: bool | None, month_bytes: int, text: str | None
) -> None:
    unseen = {"network": "no NetworkManager"} if is_metered is None else {}
    signals = Signals(devices={}, is_metered=is_metered, month_bytes=month_bytes, unseen=unseen)
    reason = transfers_held(signals, preferences_of({"network": said}))
    assert (None if reason is None else reason.text) == text


@pytest.mark.parametrize(
    ("work", "is_taken"),
    [
        (Work(), True),
        (Work(kinds=("prefill",)), False),
        (Work(kinds=("train",)), True),
        (Work(kinds_avoided=("train",)), False),
        (Work(campaigns=("peps",)), True),
        (Work(campaigns=("other",)), False),
        (Work(campaigns_avoided=("peps",)), False),
        (Work(max_runtime_minutes=10), True),
        (Work(max_runtime_minutes=9.9), False),
    ],
)
def test_only_what_the_owner_wants_is_taken(work: Work, is_taken: bool) -> None:
    reason = refused(work, kind="train", campaign=("c1", "peps"), estimate_s=600)
    assert (reason is None) == is_taken and (reason is None or reason.code is ReasonCode.NOT_TAKEN)


def test_the_docs_name_every_key_and_their_example_is_valid() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "preferences.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert read_preferences(example, "docs").device("cuda:0").duty_percent == 60
    tables = {"when": When, "network": Network, "disk": Disk, "work": Work, "devices.X": DevicePreferences}
    keys = {f"{table}.{name}" for table, model in tables.items() for name in model.model_fields}
    assert keys == set(re.findall(r"`((?:when|network|disk|work|devices\.X)\.[a-z_]+)`", text))
