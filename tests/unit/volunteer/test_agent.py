"""The volunteer through good and bad luck, against real servers whose moods the test decides."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from memgrid.digest import digest_of
from memgrid.errors import (
    BusyError,
    DrainingError,
    InternalError,
    StaleSequenceError,
    TokenExpiredError,
    UnknownHostError,
)
from memgrid.units import LeaseId, Reason, ReasonCode
from memgrid_volunteer.bench import PAUSE_EXPECTED
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import Volunteer

ONE = LeaseId("one")


async def test_a_unit_goes_from_offer_to_credit(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    offer = grid.offer("one", 1, 2, 3)
    await volunteer.run(max_units=1)
    (report,) = grid.reports
    assert (report.lease_id, report.fence, report.unit_key) == ("one", 1, offer.unit_key)
    assert digest_of(grid.uploads["one"]) == report.outputs[0].digest
    status = volunteer.home.status()
    assert (status["units_done"], status["accepted"], status["credit_flops"]) == (1, 1, 1000)
    assert status["state"] == "stopped" and status["isolation"] == "none"
    assert not list(volunteer.home.outbox.iterdir()) and not list(volunteer.home.work.glob("*/*"))
    assert [line.split(": ")[1].split(",")[0] for line in volunteer.lines if line.startswith("unit")] == [
        "started",
        "done in 0.0 s",
        "uploaded 0.0 MB",
        "accepted",
    ]


async def test_no_more_units_are_taken_than_wanted(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    for number in range(5):
        grid.offer(f"unit-{number}", 1, number)
    await volunteer.run(max_units=2)
    assert volunteer.units_run() == ["unit-0", "unit-1"]
    assert len(grid.waiting) == 3 and not grid.released


async def test_a_report_whose_answer_was_lost_is_sent_again_and_not_computed_again(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    grid.offer("one", 1, 2, 3)
    async with volunteer.running(max_units=1) as run:
        await grid.until(lambda: grid.granted)
        grid.lost_answers = 3
        await run
    assert len(grid.reports) > 1 and len(set(grid.reports)) == 1
    assert volunteer.units_run() == ["one"] and volunteer.home.status()["accepted"] == 1


async def test_the_coordinators_absence_is_waited_out(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    async with volunteer.running(max_units=2) as run:
        grid.offer("one", 1)
        await grid.until(lambda: grid.settled == {"one"})
        await grid.stop()
        await grid.until(lambda: volunteer.home.status()["state"] == "away")
        grid.offer("two", 2)
        await grid.start()
        await run
    assert volunteer.units_run() == ["one", "two"] and volunteer.home.status()["accepted"] == 2


async def test_a_volunteer_may_start_before_its_coordinator(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    await grid.stop()
    grid.offer("one", 1)
    async with volunteer.running(max_units=1) as run:
        await grid.until(lambda: any("does not answer" in line for line in volunteer.lines))
        await grid.start()
        await run
    assert volunteer.home.status()["accepted"] == 1


@pytest.mark.parametrize("error", [TokenExpiredError, StaleSequenceError])
async def test_an_ended_session_is_replaced(
    grid: ScriptedGrid, volunteer: Volunteer, error: type[TokenExpiredError]
) -> None:
    grid.errors = [error("log in again")]
    grid.offer("one", 1)
    await volunteer.run(max_units=1)
    assert grid.log_ins == 2 and volunteer.home.status()["accepted"] == 1


@pytest.mark.parametrize("error", [DrainingError, InternalError])
async def test_errors_that_may_pass_are_waited_out(
    grid: ScriptedGrid, volunteer: Volunteer, error: type[DrainingError]
) -> None:
    grid.errors = [error("not now")] * 3
    grid.offer("one", 1)
    await volunteer.run(max_units=1)
    assert volunteer.home.status()["accepted"] == 1


async def test_a_busy_grid_is_asked_again_when_it_said(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.door_errors = [BusyError("too many", wait_s=0.05, ticket="place 1"), BusyError("too many", wait_s=0.05)]
    grid.errors = [BusyError("too many", wait_s=0.05)]
    grid.offer("one", 1)
    await volunteer.run(max_units=1)
    assert volunteer.home.status()["accepted"] == 1
    assert grid.tickets == ["", "place 1", ""], "the place that was kept for us is claimed once"
    assert grid.log_ins == 1, "who is in stays in"
    told = [line for line in volunteer.lines if "hands full" in line]
    assert told == ["the grid has its hands full; trying again in 0 s"] * 3
    assert not any("does not answer" in line for line in volunteer.lines)


async def test_a_grid_that_does_not_know_us_ends_the_run(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.errors = [UnknownHostError("host h1 is not enrolled here; join first")]
    with pytest.raises(UnknownHostError, match="join first"):
        await volunteer.run()


async def test_a_refused_report_is_dropped_with_a_line(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", 1)
    grid.refusals = {ONE: Reason(code=ReasonCode.LEASE_EXPIRED, text="lease one ran out")}
    await volunteer.run(max_units=1)
    assert len(grid.reports) == 1 and not list(volunteer.home.outbox.iterdir())
    assert any("report refused: lease one ran out" in line for line in volunteer.lines)


async def test_a_rejected_unit_is_counted_and_told(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.orders_uploads, grid.verdict = False, "rejected"
    grid.offer("one", 1)
    await volunteer.run(max_units=1)
    status = volunteer.home.status()
    assert (status["accepted"], status["rejected"], status["credit_flops"]) == (0, 1, 0)


async def test_a_cancelled_unit_is_stopped_and_the_next_one_runs(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", 9)  # hangs
    async with volunteer.running(max_units=1) as run:
        await grid.until(lambda: volunteer.units_run() == ["one"])
        grid.cancel("one")
        grid.offer("two", 1)
        await run
    assert volunteer.units_run() == ["one", "two"]
    assert [claim.lease_id for claim in grid.reports] == ["two"] and not grid.released


async def test_a_queued_unit_that_is_cancelled_never_runs(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", 9)
    grid.offer("two", 1)
    async with volunteer.running():
        await grid.until(lambda: volunteer.units_run() == ["one"] and "two" in grid.granted)
        grid.cancel("two")
        await grid.until(lambda: not any(lease.lease_id == "two" for lease in grid.asks[-1].held))
        grid.cancel("one")
        grid.offer("three", 1)
        await grid.until(lambda: grid.reported)
    assert volunteer.units_run() == ["one", "three"]


async def test_a_spec_that_is_not_the_units_is_never_run(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    spec = grid.offer("good", 1).spec
    grid.offer("one", 2, spec=spec)
    await volunteer.run(max_units=2)
    assert volunteer.units_run() == ["good"]
    (release,) = grid.released
    assert (release.lease_id, release.reason.code) == ("one", ReasonCode.UNIT_FAILED)
    assert "its spec is not that of unit" in release.reason.text


async def test_an_input_with_a_dangerous_name_is_refused(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    blob = grid.offer("good", 1).inputs[0]
    grid.offer("one", 1, inputs=(blob, replace(blob, name="../../volunteer.key")))
    await volunteer.run(max_units=2)
    assert [release.reason.code for release in grid.released] == [ReasonCode.UNIT_FAILED]
    assert volunteer.units_run() == ["good"]


@pytest.mark.parametrize(("token", "text"), [(7, "it does not add up"), (8, "the worker died with status 3")])
async def test_a_failed_unit_is_given_back_with_the_reason(
    grid: ScriptedGrid, volunteer: Volunteer, token: int, text: str
) -> None:
    grid.offer("one", token)
    grid.offer("two", 1)
    await volunteer.run(max_units=2)
    (release,) = grid.released
    assert release.reason.code is ReasonCode.UNIT_FAILED and text in release.reason.text
    assert [claim.lease_id for claim in grid.reports] == ["two"]
    assert volunteer.home.status()["units_failed"] == 1


async def test_a_unit_whose_input_is_gone_is_given_back(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.missing.add(grid.offer("one", 1).inputs[0].digest)
    await volunteer.run(max_units=1)
    assert [release.reason.code for release in grid.released] == [ReasonCode.INPUT_UNAVAILABLE]


async def test_a_machine_on_which_everything_fails_takes_a_rest(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    for number in range(20):
        grid.offer(f"unit-{number}", 7, number)
    async with volunteer.running():
        await grid.until(lambda: len(grid.released) >= 3)
        await asyncio.sleep(1.0)
        assert len(grid.released) <= 5
        assert grid.asks[-1].want == 0


async def test_pausing_kills_the_worker_keeps_leases_for_a_while_and_still_delivers(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    grid.offer("one", 1)
    grid.offer("two", 9)
    grid.offer("three", 1)
    async with volunteer.running():
        await grid.until(lambda: volunteer.units_run() == ["one", "two"])
        volunteer.control.pause(datetime.now(UTC))
        await grid.until(lambda: volunteer.device()["unit"] is None)
        await grid.until(lambda: grid.settled == {"one"})
        await grid.until(lambda: volunteer.home.status()["accepted"] == 1)
        await grid.until(lambda: volunteer.home.status()["state"] == "paused")
        grid.offer("four", 1)
        asked = len(grid.asks)
        await asyncio.sleep(0.5)
        assert all(ask.want == 0 for ask in grid.asks[asked:]) and len(grid.asks) < asked + 5
        assert not grid.released, "the owner may be back in a minute"
        volunteer.clock.ahead = PAUSE_EXPECTED + timedelta(seconds=10)
        await grid.until(lambda: {release.lease_id for release in grid.released} == {"two", "three"})
        assert {release.reason.code for release in grid.released} == {ReasonCode.OWNER_PAUSED}
        volunteer.clock.ahead = timedelta(0)
        volunteer.control.resume(datetime.now(UTC))
        await grid.until(lambda: volunteer.home.status()["accepted"] == 2)
    assert volunteer.units_run() == ["one", "two", "four"]


async def test_a_stopped_volunteer_gives_back_what_it_holds(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", 9)
    grid.offer("two", 1)
    async with volunteer.running():
        await grid.until(lambda: volunteer.units_run() == ["one"] and "two" in grid.granted)
    assert {release.lease_id for release in grid.released} == {"one", "two"}
    assert {release.reason.code for release in grid.released} == {ReasonCode.LEAVING}
    assert volunteer.home.status()["state"] == "stopped"


async def test_work_finished_before_a_crash_is_reported_by_the_next_run(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    grid.offer("one", 1)
    grid.hears_reports = False
    async with volunteer.running() as run:
        # The process ends with the result on disk and the report unacknowledged.
        await grid.until(lambda: list(volunteer.home.outbox.glob("one")))
        run.cancel()
    assert not grid.reports
    grid.hears_reports = True
    async with volunteer.running():
        await grid.until(lambda: volunteer.home.status()["accepted"] == 1)
    assert volunteer.units_run() == ["one"] and len(grid.reports) == 1


async def test_an_order_for_anything_else_than_what_was_reported_is_ignored(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    grid.orders = {"name": "volunteer.key"}
    grid.offer("one", 1)
    async with volunteer.running():
        await grid.until(lambda: grid.reported)
        await asyncio.sleep(0.5)
        assert not grid.uploads
        # The same order in every answer must not turn into a storm of calls.
        assert len(grid.asks) < 10


async def test_verdicts_that_do_not_come_are_left_to_the_next_run(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.orders = {"name": "another"}
    grid.offer("one", 1)
    await volunteer.run(max_units=1, settle_limit_s=0.3)
    assert any("1 verdicts are still to come" in line for line in volunteer.lines)
    grid.orders = {}
    async with volunteer.running():
        await grid.until(lambda: volunteer.home.status()["accepted"] == 1)
    assert volunteer.units_run() == ["one"]
