"""What a volunteer leaves of units that it gives back, and how it goes on from what another left."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memgrid.clock import SystemClock
from memgrid.digest import digest_of
from memgrid.units import CHECKPOINT_FILE, CheckpointRef, ComputeDtype, LeaseId, Reason, ReasonCode
from memgrid_volunteer.bench import PAUSE_EXPECTED
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.desk import Desk
from memgrid_volunteer.kept import place_of
from memgrid_volunteer.kinds.committed import Checkpoint
from memgrid_volunteer.owner.traffic import Traffic
from memgrid_volunteer.travelling import Travelling
from memgrid_volunteer.worth import MONTH_SHARE, Room, is_worth_sending, saved_s
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import ALWAYS, Volunteer

STEPS = 400


async def leave(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    """Compute some of a unit, and have the owner take the machine for long."""
    grid.offer("one", 5, STEPS)
    await grid.until(lambda: volunteer.progress().get("cpu", 0) > 0.05)
    await take_for_long(grid, volunteer)


async def take_for_long(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    volunteer.control.pause(datetime.now(UTC))
    await grid.until(lambda: volunteer.home.status()["state"] == "paused")
    volunteer.clock.ahead = PAUSE_EXPECTED + timedelta(seconds=10)
    await grid.until(lambda: grid.happened)


async def test_the_lease_is_back_before_anything_is_sent(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    async with volunteer.running():
        await leave(grid, volunteer)
        await grid.until(lambda: "here" in grid.happened)
        await grid.until(lambda: not list((volunteer.home.work / "leaving").iterdir()))
    assert grid.happened == ["one back", "offered", "begun", "here"]
    (back, offered) = grid.released
    assert back.checkpoint is None and offered.checkpoint is not None
    assert 0.05 < offered.checkpoint.progress < 1
    assert digest_of(grid.half_done["one"]) == offered.checkpoint.digest


async def test_what_the_grid_does_not_want_is_let_go(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.wants_half_done = False
    async with volunteer.running():
        await leave(grid, volunteer)
        await grid.until(lambda: "offered" in grid.happened)
        await grid.until(lambda: not list((volunteer.home.work / "leaving").iterdir()))
    assert not grid.half_done


async def test_over_a_spared_line_nothing_is_offered(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    async with volunteer.running():
        grid.offer("one", 5, STEPS)
        await grid.until(lambda: volunteer.progress().get("cpu", 0) > 0.05)
        volunteer.prefer(f"{ALWAYS}[network]\nmonth_gb = 0\n")
        await take_for_long(grid, volunteer)
    assert grid.happened == ["one back"]


async def test_a_result_goes_before_it_even_when_it_has_begun(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.orders, grid.holds_up = {"name": "another"}, asyncio.Event()
    grid.offer("zero", 1)
    async with volunteer.running():
        await grid.until(lambda: grid.reported)
        await leave(grid, volunteer)
        await grid.until(lambda: "begun" in grid.happened)
        grid.orders = {}
        await grid.until(lambda: "zero done" in grid.happened)
        grid.holds_up.set()
        await grid.until(lambda: "here" in grid.happened)
    assert grid.happened.index("zero done") < grid.happened.index("here")
    assert digest_of(grid.half_done["one"]) == grid.released[1].checkpoint.digest  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", ["", "damaged", "gone", "another unit's"])
async def test_another_goes_on_from_it_unless_it_is_no_good(
    fault: str, grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    async with volunteer.running():
        await leave(grid, volunteer)
        await grid.until(lambda: "here" in grid.happened)
    content = grid.half_done["one"]
    shutil.rmtree(volunteer.home.work)
    volunteer.clock.ahead = timedelta(0)
    volunteer.control.resume(datetime.now(UTC))
    told = digest_of(content)
    match fault:
        case "damaged":
            content = content[:-1] + b"?"
        case "gone":
            grid.missing.add(told)
        case "another unit's":
            content = re.sub(b"[0-9a-f]{64}", b"0" * 64, content, count=1)
            told = digest_of(content)
    grid.blobs[told] = content
    ref = CheckpointRef(
        digest=told, size_bytes=len(content), progress=0.05, path=f"/v2/grid/checkpoints/one/blobs/{told}"
    )
    grid.offer("two", 5, STEPS, checkpoint=ref)
    async with volunteer.running():
        await grid.until(lambda: volunteer.progress().get("cpu", 0) > 0)
        begun = volunteer.progress()["cpu"]
        assert (begun > 0.05) == (fault == ""), "it began somewhere else"
    assert not [one for one in grid.released if one.lease_id == "two" and one.reason.code == "unit_failed"]


async def test_a_grid_that_names_a_lease_like_a_path_gets_and_touches_nothing(
    grid: ScriptedGrid, tmp_path: Path
) -> None:
    """Given back before anybody looked at it; its unit is one that is half done here."""
    offer = grid.offer("../../theirs", 1)
    work, desk, clock = tmp_path / "a" / "work", Desk(), SystemClock()
    place = place_of(offer.unit_key, work)
    place.mkdir(parents=True)
    dtype = ComputeDtype.FLOAT32
    checkpoint = Checkpoint(place, offer.unit_key, wanted=dtype, resolved=dtype)
    assert checkpoint.add_part(b"state", 60.0, done=0.5)
    travelling = Travelling(
        desk=desk,
        work=work,
        cache=BlobCache(tmp_path / "cache", limit_bytes=1 << 20, reserve_bytes=0),
        budget=Budget(traffic=Traffic(tmp_path, clock), clock=clock),
        clock=clock,
        news=asyncio.Event(),
    )
    before = lying(tmp_path)
    for name in (offer.lease_id, LeaseId("honest")):
        desk.take(replace(offer, lease_id=name), grid.model)
    assert desk.give_all_back(Reason(code=ReasonCode.OWNER_PAUSED)) == 2
    await travelling.look()
    offered = {release.lease_id: release.checkpoint is not None for release in desk.released()}
    assert offered == {"../../theirs": False, "honest": True}
    leaving = work / "leaving"
    assert lying(tmp_path) - before == {leaving, leaving / "honest", leaving / "honest" / CHECKPOINT_FILE}


def lying(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@given(
    size_bytes=st.integers(1, 1 << 40),
    seconds=st.floats(0, 1e6),
    up=st.none() | st.floats(1, 1e9),
    month=st.none() | st.floats(0, 1e13),
    limit_s=st.none() | st.floats(0, 100),
)
def test_nothing_is_sent_that_is_not_worth_it(
    size_bytes: int, seconds: float, up: float | None, month: float | None, limit_s: float | None
) -> None:
    room = Room(up_bytes_per_s=up, month_left_bytes=month)
    assert not is_worth_sending(size_bytes, seconds, Room(is_spared=True), limit_s)
    if is_worth_sending(size_bytes, seconds, room, limit_s):
        sending_s = size_bytes / (up or 1.25e6)
        assert 2 * sending_s <= seconds and (limit_s is None or sending_s <= limit_s)
        assert month is None or size_bytes <= MONTH_SHARE * month
        assert is_worth_sending(size_bytes, seconds + 1, room, limit_s), "more to save is no reason against it"
        assert is_worth_sending(max(1, size_bytes // 2), seconds, room, limit_s)


@given(st.floats(0, 1e6), st.floats(0, 1), st.floats(0, 1))
@example(0.75, 5e-324, 0.0)
def test_what_the_grid_has_is_not_saved_again(compute_s: float, done: float, known: float) -> None:
    assert 0 <= saved_s(compute_s, done, known) <= compute_s * (1 + 1e-9)
    assert saved_s(compute_s, done, 1.0) == 0
