"""A volunteer of two grids: one machine for both, and neither's trouble is the other's."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memgrid.digest import digest_of
from memgrid.errors import InvalidError, UnknownHostError
from memgrid.units import ModelFiles
from memgrid_volunteer.examining.redacting import Redactor
from memgrid_volunteer.history import History
from memgrid_volunteer.places import KEY_FILE
from memgrid_volunteer.service import keys
from memgrid_volunteer.sharing import SHARES_FILE
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import Volunteer
from tests.volunteer_homes import GRID, join_another, make_home

SLOW, FAST = (5, 50), (10, 30)
"""Tokens of units that take a second, and thirty milliseconds."""


def stands(volunteer: Volunteer, grid: ScriptedGrid) -> dict[str, Any]:
    """One grid as status.json has it."""
    return next((each for each in volunteer.home.status().get("grids", []) if each["url"] == grid.url), {})


async def test_each_grid_gets_its_own_results_under_a_key_of_its_own(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    place = volunteer.join(other, name="other")
    assert place.folder.parent == volunteer.home.folder / "grids"
    # Grids choose the names of their leases without knowing of each other; and the very same unit may be both's.
    other.verdict = "rejected"
    assert grid.offer("one", 1, 2).unit_key == other.offer("one", 1, 2).unit_key
    await volunteer.run(max_units=2)
    assert sorted(volunteer.units_run()) == sorted(["one", f"{place.membership().grid_id}.one"])
    for one in (grid, other):
        (report,) = one.reports
        assert digest_of(one.uploads["one"]) == report.outputs[0].digest and one.settled == {"one"}
    mine, theirs = (stands(volunteer, one) for one in (grid, other))
    assert (mine["accepted"], mine["credit_flops"], theirs["rejected"], theirs["credit_flops"]) == (1, 1000, 1, 0)
    status = volunteer.home.status()
    assert (status["units_done"], status["accepted"], status["rejected"]) == (2, 1, 1)
    assert volunteer.home.key().public_key != place.key().public_key
    assert not list(volunteer.home.work.glob("*/*"))
    history = History(volunteer.home.folder)
    found = {unit.grid: unit.outcome.value for unit in history.units()}
    assert found == {grid.url: "accepted", other.url: "rejected"}
    assert history.computed_s(datetime(2020, 1, 1, tzinfo=UTC)).keys() == found.keys()
    history.close()


async def test_a_grid_that_is_away_keeps_nobody_waiting(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    volunteer.join(other, name="other")
    await other.stop()
    grid.offer("one", 1)
    async with volunteer.running():
        await grid.until(lambda: "one" in grid.settled)
        await grid.until(lambda: stands(volunteer, other)["state"] == "away")
        assert any(line.startswith("other: ") and "trying again" in line for line in volunteer.lines)
        other.offer("two", 2)
        await other.start()
        await other.until(lambda: "two" in other.settled)
        # The first grid goes away in the middle.
        await grid.stop()
        other.offer("three", 3)
        await other.until(lambda: "three" in other.settled)
        assert volunteer.home.status()["state"] != "away"
        await grid.start()


async def test_inputs_that_cannot_be_had_from_one_grid_delay_no_other(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    volunteer.join(other)
    grid.is_data_away = True
    grid.offer("one", 1)
    async with volunteer.running():
        await grid.until(lambda: grid.granted)
        other.offer("two", 2)
        await other.until(lambda: "two" in other.settled)
        assert not grid.released, "its lease is kept, as with one grid"
        grid.is_data_away = False
        await grid.until(lambda: "one" in grid.settled)


async def test_a_grid_that_turns_the_host_away_is_left_and_the_others_go_on(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    error = UnknownHostError("who is h1?")
    volunteer.join(other, name="other")
    other.offer("lost", *SLOW)
    async with volunteer.running() as run:
        await other.until(lambda: volunteer.progress())
        other.errors.append(error)
        other.offer("never", *SLOW)
        await other.until(lambda: stands(volunteer, other).get("state") == "ended")
        assert stands(volunteer, other)["reason"]["text"]
        grid.offer("one", 1)
        await grid.until(lambda: "one" in grid.settled)
        assert volunteer.home.status()["state"] not in ("away", "ended") and not run.done()
        # When the last one turns it away, there is nothing left to do.
        grid.errors.append(error)
        grid.offer("two", 1)
        with pytest.raises(UnknownHostError):
            await run


async def test_a_grid_without_work_leaves_the_machine_to_the_other(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    volunteer.join(other, share=1000)
    for number in range(6):
        grid.offer(f"unit-{number}", *FAST, number)
    await volunteer.run(max_units=6)
    assert len(grid.settled) == 6 and not other.reports
    assert {ask.want for ask in other.asks} - {0}, "it is asked all the time"


async def test_devices_are_shared_out_and_a_change_holds_at_once(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    place = volunteer.join(other, share=300)
    for number in range(80):
        grid.offer(f"one-{number}", *FAST, number, estimate_s=0.04)
        other.offer(f"two-{number}", *FAST, number, estimate_s=0.04)
    async with volunteer.running():
        await grid.until(lambda: len(volunteer.units_run()) >= 32)
        first = volunteer.units_run()[:32]
        place.give_share(0)
        seen = len(volunteer.units_run())
        await grid.until(lambda: len(volunteer.units_run()) >= seen + 12)
        later = volunteer.units_run()[seen + 4 : seen + 12]
    ours = sum("two-" in lease for lease in first)
    assert 19 <= ours <= 29, first
    assert not any("two-" in lease for lease in later), later
    assert (volunteer.home.folder / SHARES_FILE).is_file()


async def test_what_a_grid_has_had_outlives_the_process(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    place = volunteer.join(other)
    path = volunteer.home.folder / SHARES_FILE
    path.write_text("no such thing")
    grid.offer("one", *FAST)
    await volunteer.run(max_units=1)
    written = json.loads(path.read_text())
    had_s, behind_s = (written["levels"][each.membership().grid_id] for each in (volunteer.home, place))
    assert had_s > 0 and behind_s <= had_s
    written["levels"][place.membership().grid_id] = had_s + 100_000.0
    path.write_text(json.dumps(written))
    for number in range(8):
        grid.offer(f"one-{number}", *FAST, number)
        other.offer(f"two-{number}", *FAST, number)
    before = len(volunteer.units_run())
    await volunteer.run(max_units=6)
    # Both are asked at once, so a device that is free sooner may begin with what came first.
    assert sum("two-" in lease for lease in volunteer.units_run()[before + 1 : before + 6]) <= 1


async def test_models_of_one_grid_are_not_told_to_another(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    volunteer.join(other)
    other.model = ModelFiles(digest=digest_of(b"another"), files=other.model.files)
    grid.offer("one", 1)
    other.offer("two", 2)
    await volunteer.run(max_units=2)
    # Both are asked again when everything is in the cache.
    for one, foreign in ((grid, other), (other, grid)):
        named = {model for ask in one.asks for model in ask.wishes.cached_models}
        assert foreign.model.digest not in named


def test_a_grid_that_was_left_and_comes_again_finds_its_key(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", "https://a.example")
    key = home.key().public_key
    other = home.place_for("https://b.example")
    assert other.folder.name == "b.example-443"
    other.make_place()
    other.join(replace(home.membership(), url="https://b.example", name="b"))
    home.forget()
    assert [place.grid_url for place in home.places()] == ["https://b.example"]
    assert home.place_for("https://a.example").key().public_key == key
    assert home.place_for("https://c.example").folder.parent == home.folder / "grids"
    other.forget()
    assert home.place_for("https://b.example").folder == other.folder
    with pytest.raises(InvalidError, match="no grid joined yet"):
        home.joined()


async def test_nothing_of_a_stopped_volunteer_is_kept_by_either_grid(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer
) -> None:
    volunteer.join(other)
    async with volunteer.running():
        for one in (grid, other):
            one.offer("slow", *SLOW)
            one.offer("next", *SLOW)
        await grid.until(lambda: volunteer.progress() and grid.granted and other.granted)
        granted = [set(one.granted) for one in (grid, other)]
    assert [{release.lease_id for release in one.released} for one in (grid, other)] == granted


def test_each_grid_has_a_key_that_is_kept_moved_and_hidden_for_itself(tmp_path: Path) -> None:
    home, file, now = make_home(tmp_path / "home"), tmp_path / "one.json", datetime(2026, 3, 1, tzinfo=UTC)
    home.key()
    place = join_another(home)
    content = (place.key(), (place.folder / KEY_FILE).read_bytes())[1]
    with pytest.raises(InvalidError, match="which grid"):
        keys.place_of(home, None)
    assert keys.place_of(home, "second").folder == place.folder
    cleaned = Redactor(home, {}).clean(f"{content.hex()} {home.folder}")
    assert content.hex() not in cleaned
    sealed = keys.move(home, file, "ten or more", now, grid="second")
    assert sealed.key == content and [each.grid_url for each in home.places()] == [GRID]
    with pytest.raises(InvalidError, match="was moved from here"):
        keys.check_label(home.place_for("https://second.example"), "attic")
    # On another machine it lies beside the grid that was joined there.
    there = make_home(tmp_path / "there", "https://third.example")
    keys.restore(there, file, "ten or more")
    assert [each.membership().name for each in there.places()] == ["a grid for tests", "second"]
    assert (there.place_for("https://second.example").folder / KEY_FILE).read_bytes() == content
    assert there.find("second").membership().share == 30
