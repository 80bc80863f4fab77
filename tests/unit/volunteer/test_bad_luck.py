"""What happens to machines and networks: nothing is lost, nobody fights, and the owner is told why it idles."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memgrid.errors import SessionReplacedError, UntrustedGridError
from memgrid.testing import Faults
from memgrid.units import ReasonCode
from memgrid_volunteer.health import FAILURES_BEFORE_REST
from tests.certificates import make_certificate
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import ALWAYS, Volunteer

LONG = (5, 3000)


async def test_after_a_sleep_it_logs_in_anew_and_keeps_its_work(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", *LONG)
    async with volunteer.running():
        await grid.until(volunteer.progress)
        pids = volunteer.worker_pids()
        for ahead in (timedelta(hours=3), timedelta(0)):
            log_ins = grid.log_ins
            volunteer.clock.ahead = ahead
            await grid.until(lambda before=log_ins: grid.log_ins > before)
        assert volunteer.worker_pids() == pids and volunteer.units_run() == ["one"] and not grid.released
    assert any("the machine slept or its clock ran ahead, 3 h" in line for line in volunteer.lines)
    assert any("the clock was put back 3 h" in line for line in volunteer.lines)


async def test_a_day_without_network_loses_nothing(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", 1)
    grid.offer("two", 5, 20, deadline_at=datetime.now(UTC) + timedelta(days=3))
    async with volunteer.running():
        await grid.until(lambda: "two" in volunteer.units_run())
        await grid.stop()
        await grid.until(lambda: (volunteer.home.outbox / "two").is_dir())
        await grid.until(lambda: volunteer.home.status()["state"] == "away")
        assert volunteer.idle_code() == ReasonCode.GRID_AWAY
        volunteer.clock.ahead = timedelta(days=1)
        await asyncio.sleep(0.3)
        await grid.start()
        await grid.until(lambda: volunteer.home.status()["accepted"] == 2)
    assert sorted(volunteer.units_run()) == ["one", "two"] and not grid.released


async def test_a_store_that_does_not_answer_costs_no_unit(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.is_data_away = True
    grid.offer("one", 1)
    async with volunteer.running(max_units=1) as run:
        await grid.until(lambda: volunteer.idle_code() == ReasonCode.GRID_AWAY)
        await grid.until(lambda: grid.asks[-1].want == 0)
        assert not grid.released and len(grid.asks[-1].held) == 1, "it is the store's fault, not the unit's"
        grid.is_data_away = False
        await run
    assert volunteer.home.status()["accepted"] == 1


async def test_an_upload_that_fails_lets_the_others_go_first(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.refuses_uploads.add("one")
    for number, name in enumerate(("one", "two", "three")):
        grid.offer(name, 1, number)
    volunteer.backoff = slowly_at_first
    async with volunteer.running():
        await grid.until(lambda: grid.settled >= {"two", "three"})
        assert "one" not in grid.settled
        grid.refuses_uploads.clear()
        await grid.until(lambda: volunteer.home.status()["accepted"] == 3)


async def test_an_order_that_its_delivery_has_passed_is_not_obeyed_again(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    grid.delay_s = 0.3
    grid.offer("one", 1)
    grid.offer("two", 5, 5)  # reported while the first goes up: that answer still carries the order
    await volunteer.run(max_units=2)
    assert grid.uploads_begun == ["one", "two"]


def slowly_at_first(attempt: int, rng: random.Random) -> float:
    return 0.5


async def test_a_full_disk_stops_taking_says_so_and_goes_on(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    volunteer.prefer(ALWAYS.replace("free_min_gb = 0", "free_min_gb = 2"))
    volunteer.probe.reading["disk_free_bytes"] = 1 << 30
    grid.offer("one", 1)
    async with volunteer.running():
        await grid.until(
            lambda: volunteer.home.status().get("devices") and volunteer.device()["action"] == "pause_keep"
        )
        await grid.until(lambda: volunteer.idle_code() == ReasonCode.DISK_FULL)
        assert not grid.granted
        volunteer.prefer(ALWAYS)
        await grid.until(lambda: volunteer.home.status()["accepted"] == 1)


@pytest.mark.parametrize("is_known_before", [False, True])
async def test_a_damaged_input_is_fetched_again(
    grid: ScriptedGrid, volunteer: Volunteer, is_known_before: bool
) -> None:
    offer = grid.offer("one", 1, 2, 3)
    await volunteer.run(max_units=1)
    path = volunteer.home.cache / "blobs" / offer.inputs[0].digest.removeprefix("sha256:")
    grid.offer("two", 9)  # keeps the worker busy, while the next unit's inputs are ready
    grid.offer("three", 1, 2, 3)
    if not is_known_before:
        Faults.flipped_bit(path)
    async with volunteer.running():
        await grid.until(lambda: (volunteer.home.work / "in" / "three").is_dir())
        if is_known_before:
            Faults.flipped_bit(path)
        grid.cancel("two")
        await grid.until(lambda: "three" in grid.reported)
    assert volunteer.units_run()[:2] == ["one", "two"]
    assert volunteer.units_run()[2:] == ["three"] * (2 if is_known_before else 1)
    assert not grid.released


@pytest.mark.parametrize(("token", "code"), [(11, ReasonCode.OUT_OF_MEMORY), (8, ReasonCode.UNIT_FAILED)])
async def test_a_device_on_which_units_fail_rests_longer_every_time(
    grid: ScriptedGrid, volunteer: Volunteer, token: int, code: ReasonCode
) -> None:
    for number in range(9):
        grid.offer(f"unit-{number}", token, number)
    async with volunteer.running():
        await grid.until(lambda: volunteer.why() == ReasonCode.DEVICE_RESTS)
        assert len(volunteer.units_run()) == FAILURES_BEFORE_REST
        assert {release.reason.code for release in grid.released} == {code}
        first = datetime.fromisoformat(volunteer.device()["until"]) - datetime.now(UTC)
        assert "3 failures in a row" in volunteer.device()["reason"]["text"]
        await grid.until(lambda: volunteer.idle_code() == ReasonCode.DEVICE_RESTS)
        volunteer.clock.later = timedelta(hours=1)
        await grid.until(lambda: len(volunteer.units_run()) == FAILURES_BEFORE_REST + 1)
        await grid.until(lambda: volunteer.why() and "4 failures in a row" in volunteer.device()["reason"]["text"])
        until = datetime.fromisoformat(volunteer.device()["until"])
        assert until - volunteer.clock.now() > 2 * first


async def test_a_reset_driver_ends_that_worker_and_leaves_the_other_device(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    volunteer.find("cuda:0=GPU-a cuda:1=GPU-b")
    grid.offer("busy", *LONG)
    async with volunteer.running():
        await grid.until(volunteer.progress)
        (busy,) = volunteer.progress()
        other = {"cuda:0": "cuda:1", "cuda:1": "cuda:0"}[busy]
        grid.offer("one", 4)
        await grid.until(lambda: volunteer.why(other) == ReasonCode.DEVICE_RESTS)
        assert "it fell off the bus" in volunteer.device(other)["reason"]["text"]
        await grid.until(lambda: len(volunteer.worker_pids()) == 1)
        assert volunteer.progress().keys() == {busy}
    # What is done of the busy one is told in a release of its own, once that is packed.
    assert list(dict.fromkeys(release.lease_id for release in grid.released)) == ["one", "busy"]


async def test_a_device_that_has_gone_gives_its_unit_to_another(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    volunteer.find("cuda:0=GPU-a cuda:1=GPU-b")
    volunteer.control.pause(datetime.now(UTC), device_id="cuda:0")
    async with volunteer.running(max_units=1) as run:
        await grid.until(lambda: grid.asks)
        volunteer.find("cuda:0=GPU-a")
        grid.offer("one", 1)
        await grid.until(lambda: volunteer.why("cuda:1") == ReasonCode.DEVICE_RESTS)
        volunteer.control.resume(datetime.now(UTC))
        await run
    assert volunteer.runs() == [("one", "cuda:0", "GPU-a")] and not grid.released


async def test_of_two_with_one_identity_the_older_stops(
    grid: ScriptedGrid, volunteer: Volunteer, tmp_path: Path
) -> None:
    grid.offer("one", *LONG)
    async with volunteer.running() as older:
        await grid.until(volunteer.progress)
        async with twin(volunteer, tmp_path / "twin") as newer:
            with pytest.raises(SessionReplacedError, match="another volunteer has logged in"):
                await older
            log_ins = grid.log_ins
            await grid.until(lambda: grid.asks[-1].held)
            assert grid.log_ins == log_ins, "nobody logs in again, not even to say goodbye"
            assert not newer.done() and not grid.released


@contextlib.asynccontextmanager
async def twin(volunteer: Volunteer, folder: Path) -> AsyncIterator[asyncio.Task[None]]:
    """The same identity, copied to another machine."""
    home = type(volunteer.home)(folder)
    home.make()
    for name in ("volunteer.key", "grid.json", "volunteer.toml"):
        (folder / name).write_bytes((volunteer.home.folder / name).read_bytes())
        (folder / name).chmod(0o600)
    copy = Volunteer(home=home, ran=folder / "ran")
    async with copy.running() as run:
        yield run


async def test_another_certificate_is_refused_and_explained(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    await grid.stop()
    grid.certificate = make_certificate()
    await grid.start()
    volunteer.join(grid)
    grid.offer("one", *LONG)
    async with volunteer.running() as run:
        await grid.until(volunteer.progress)
        await grid.stop()
        grid.certificate = make_certificate()
        await grid.start()
        with pytest.raises(UntrustedGridError, match=r"the certificate has changed|not the pinned"):
            await run
    with pytest.raises(UntrustedGridError, match=r"the certificate has changed|not the pinned"):
        await volunteer.run()
    assert not volunteer.worker_pids() and grid.log_ins == 1


async def test_preferences_with_errors_are_told_once_and_the_last_good_hold(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    async with volunteer.running():
        await grid.until(lambda: grid.asks)
        volunteer.prefer(f"{ALWAYS}[when]\nidle_minutes = 'soon'\n")
        await grid.until(lambda: any("idle_minutes" in line for line in volunteer.lines))
        grid.offer("one", 1)
        await grid.until(lambda: volunteer.home.status()["accepted"] == 1)
        volunteer.prefer(ALWAYS)
        await grid.until(lambda: "the preferences are good again" in volunteer.lines)
    (told,) = [line for line in volunteer.lines if "idle_minutes" in line]
    assert told.startswith("volunteer.toml: line 5: when.idle_minutes") and "the last good preferences hold" in told


async def test_wishes_reach_the_grid_and_hold_at_once(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", 1)
    async with volunteer.running():
        await grid.until(lambda: volunteer.home.status().get("accepted") == 1)
        await grid.until(lambda: grid.asks[-1].wishes.cached_models == {grid.model.digest})
        volunteer.prefer(
            f'{ALWAYS}[work]\nkinds_avoided = ["train"]\ncampaigns_avoided = ["x"]\nmax_runtime_minutes = 5\n'
        )
        await grid.until(lambda: grid.asks[-1].wishes.longest == timedelta(minutes=5))
        wishes = grid.asks[-1].wishes
        assert wishes.kinds == {"prefill", "study", "evaluate"} and wishes.avoided_campaigns == {"x"}
        volunteer.prefer(f'{ALWAYS}[work]\nkinds_avoided = ["prefill", "study", "train", "evaluate"]\n')
        await grid.until(lambda: volunteer.idle_code() == ReasonCode.NOT_TAKEN)
        await grid.until(lambda: grid.asks[-1].want == 0)


async def test_a_kind_that_is_avoided_from_now_on_is_stopped_at_once(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    grid.offer("one", *LONG)
    grid.offer("two", 1)
    async with volunteer.running():
        await grid.until(lambda: volunteer.progress() and len(grid.granted) == 2)
        volunteer.prefer(f'{ALWAYS}[work]\nkinds = ["study"]\n')
        await grid.until(lambda: {release.lease_id for release in grid.released} == {"one", "two"})
        assert {release.reason.code for release in grid.released} == {ReasonCode.OWNER_PAUSED}
        await grid.until(lambda: volunteer.home.status()["state"] == "idle")


async def test_a_spent_month_takes_nothing_new_and_uploads_wait(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", 5, 50)
    grid.offer("two", 1)
    async with volunteer.running():
        await grid.until(volunteer.progress)
        volunteer.prefer(f"{ALWAYS}[network]\nmonth_gb = 0\n")
        await grid.until(lambda: "one" in grid.reported)
        await grid.until(lambda: volunteer.idle_code() == ReasonCode.NETWORK_SPARED)
        await asyncio.sleep(0.5)
        assert not grid.uploads and grid.asks[-1].want == 0
        volunteer.prefer(ALWAYS)
        await grid.until(lambda: volunteer.home.status()["accepted"] == 2)
    assert "month" in (volunteer.home.folder / "traffic.json").read_text()


async def test_no_answer_of_the_grid_leaves_it_idle_without_a_reason(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    async with volunteer.running():
        await grid.until(lambda: volunteer.home.status().get("state") == "idle" and grid.asks)
        await grid.until(lambda: volunteer.home.status()["idle_reason"]["text"] == "no work")
        assert volunteer.idle_code() == ReasonCode.NO_WORK
