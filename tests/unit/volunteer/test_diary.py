"""What the diary writes down: devices with their decisions and readings, units with their ends, time that is left."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.clock import ManualClock
from memgrid.units import DeviceFacts, HostFacts, LeaseId, Reason, ReasonCode, VerdictNotice
from memgrid_volunteer.course import Course
from memgrid_volunteer.diary import READINGS_S, Diary
from memgrid_volunteer.done import Outcome
from memgrid_volunteer.grid_diary import GridDiary
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home
from memgrid_volunteer.kinds.job import Progress
from memgrid_volunteer.owner.decision import RUN, Action, Decision
from memgrid_volunteer.owner.signals import DeviceSignals, Signals
from memgrid_volunteer.status import DeviceStatus, Tally, VolunteerStatus
from tests.training import make_spec
from tests.volunteer_homes import GRID, KEYS, NOW, at_work, make_home

GPU = DeviceFacts(kind="cuda", name="A Fine GPU", memory_bytes=1 << 34, numerics_class="cuda-sm89/torch")
CPU = DeviceFacts(kind="cpu", name="A Fine Processor", memory_bytes=1 << 36, numerics_class="cpu/torch")
FACTS = HostFacts(
    os="", arch="", cpu_count=1, memory_bytes=0, devices=(GPU, CPU), client_version="", isolation="none"
)
WARM = Signals(devices={"cuda:0": DeviceSignals(temperature_c=66.6, load_share=0.987)}, unseen={"idle": "no desktop"})
HOT = Decision(action=Action.PAUSE_KEEP, duty=0.0, reason=Reason(code=ReasonCode.TOO_HOT, text="it is hot"))


class Kept:
    """A diary with its clock, its home and what its owner reads."""

    def __init__(self, home: Home) -> None:
        self.home, self.clock, self.lines = home, ManualClock(NOW), list[str]()
        self.diary = Diary(home, FACTS, self.clock, self.lines.append)
        self.grid = GridDiary(self.diary, home.membership())

    def device(self, device_id: str = "cuda:0") -> DeviceStatus:
        status = VolunteerStatus.from_json(self.home.status())
        return next(device for device in status.devices if device.device_id == device_id)

    def pass_s(self, seconds: float) -> None:
        self.clock.advance(timedelta(seconds=seconds))


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(make_home(tmp_path / "home"))
    yield kept
    kept.diary.stands("stopped")


def test_devices_show_what_they_may_do_and_why_and_what_was_seen(kept: Kept) -> None:
    kept.diary.decided({"cuda:0": replace(HOT, preference="devices.cuda:0"), "cpu": RUN}, WARM)
    device = kept.device()
    assert (device.action, device.reason, device.preference) == (Action.PAUSE_KEEP, HOT.reason, "devices.cuda:0")
    assert (device.temperature_c, device.load_share) == (67.0, 0.99)
    assert kept.home.status()["unseen"] == {"idle": "no desktop"}
    assert kept.lines == ["cuda:0: paused, it is hot"]
    kept.diary.decided({"cuda:0": RUN, "cpu": RUN}, WARM)
    assert kept.lines[1:] == ["cuda:0: goes on"] and kept.device("cpu").may_compute


def test_readings_alone_are_written_now_and_then(kept: Kept) -> None:
    kept.diary.decided({"cuda:0": RUN}, WARM)
    warmer = replace(WARM, devices={"cuda:0": DeviceSignals(temperature_c=70.0)})
    kept.diary.decided({"cuda:0": RUN}, warmer)
    assert kept.device().temperature_c == 67.0
    kept.pass_s(READINGS_S)
    kept.diary.decided({"cuda:0": RUN}, warmer)
    assert kept.device().temperature_c == 70.0


def test_the_time_that_is_left_does_not_run_while_a_device_is_held_back(kept: Kept) -> None:
    kept.grid.unit_started("cuda:0", KEYS[0], make_spec(), 100.0)
    assert kept.device().ends_at == NOW + timedelta(seconds=100)
    for step in (1, 2):
        kept.pass_s(10)
        kept.grid.unit_goes_on("cuda:0", KEYS[0], Progress(done=step / 10, text=f"step {step}"))
    assert kept.device().estimate_s == pytest.approx(80.0)
    kept.diary.decided({"cuda:0": HOT}, WARM)
    kept.pass_s(3600)
    assert kept.device().estimate_s == pytest.approx(80.0) and kept.device().ends_at is None
    kept.diary.decided({"cuda:0": RUN}, WARM)
    assert kept.device().ends_at == NOW + timedelta(seconds=3700)
    kept.pass_s(10)
    kept.grid.unit_goes_on("cuda:0", KEYS[0], Progress(done=0.3, text="step 3"))
    assert kept.device().estimate_s == pytest.approx(70.0)


def test_two_devices_do_not_mix_up_their_units(kept: Kept) -> None:
    kept.grid.unit_started("cuda:0", KEYS[0], make_spec())
    kept.grid.unit_started("cpu", KEYS[1], make_spec())
    kept.grid.unit_goes_on("cpu", KEYS[1], Progress(done=0.5, text="half", tokens_per_s=12.0))
    kept.grid.unit_goes_on("cpu", KEYS[0], Progress(done=0.9, text="of a worker that was ended"))
    assert (kept.device("cpu").progress, kept.device("cuda:0").progress) == ("half", "")
    assert kept.home.status()["unit"] == KEYS[0]
    kept.grid.unit_done("cuda:0", KEYS[0], 64, 3.0)
    assert kept.device("cuda:0").unit is None and kept.device("cpu").unit == KEYS[1]
    assert kept.home.status()["progress"] == "half"


def test_how_much_of_a_device_a_unit_made_use_of_is_told_and_kept(kept: Kept) -> None:
    for number, utilisation in enumerate((0.62, None)):
        kept.grid.unit_started("cuda:0", KEYS[number], make_spec())
        kept.grid.unit_done("cuda:0", KEYS[number], 64, 3.0, utilisation=utilisation)
    assert kept.lines[-3].endswith("done in 3.0 s, 62% of what cuda:0 can do")
    assert kept.lines[-1].endswith("done in 3.0 s")
    history = History(kept.home.folder)
    assert [unit.utilisation for unit in history.units()] == [None, 0.62]
    history.close()


def test_every_end_of_a_unit_is_in_the_history(kept: Kept) -> None:
    reason = Reason(code=ReasonCode.OWNER_PAUSED, text="you paused it")
    kept.grid.unit_started("cuda:0", KEYS[0], make_spec())
    kept.pass_s(7)
    kept.grid.unit_dropped("cuda:0", KEYS[0], reason)
    kept.grid.unit_given_back(None, KEYS[1], Reason(code=ReasonCode.INPUT_UNAVAILABLE))
    for number in (2, 3, 4, 5):
        kept.grid.unit_started("cpu", KEYS[number], make_spec())
        kept.grid.unit_done("cpu", KEYS[number], 64, 3.0)
    for number, verdict in ((2, "accepted"), (3, "rejected"), (4, "void")):
        notice = VerdictNotice(lease_id=LeaseId("l"), verdict=verdict, reason=reason, credit_flops=1000)
        kept.grid.judged(KEYS[number], notice)
    kept.grid.report_refused(KEYS[5], reason)
    history = History(kept.home.folder)
    units = history.units()[::-1]
    history.close()
    assert [unit.outcome for unit in units] == [
        Outcome.STOPPED,
        Outcome.GIVEN_BACK,
        Outcome.ACCEPTED,
        Outcome.REJECTED,
        Outcome.CANCELLED,
        Outcome.REFUSED,
    ]
    assert (units[0].compute_s, units[0].reason, units[0].kind) == (7.0, "you paused it", "train")
    assert (units[1].device_id, units[1].reason) == ("", "input_unavailable")
    assert [unit.credit_flops for unit in units] == [0, 0, 1000, 0, 0, 0]
    assert {unit.grid for unit in units} == {GRID}
    assert VolunteerStatus.from_json(kept.home.status()).tally.credit_flops == 1000


def test_a_history_that_cannot_be_written_stops_nothing(kept: Kept) -> None:
    (kept.home.folder / "history.db").mkdir()
    with pytest.raises(sqlite3.OperationalError):
        History(kept.home.folder).units()
    kept.grid.unit_started("cpu", KEYS[0], make_spec())
    kept.grid.unit_done("cpu", KEYS[0], 64, 3.0)
    assert kept.home.status()["units_done"] == 1


def test_the_next_run_counts_on(kept: Kept) -> None:
    kept.grid.unit_done("cpu", KEYS[0], 64, 3.0)
    again = Diary(kept.home, FACTS, kept.clock, kept.lines.append)
    GridDiary(again, kept.home.membership()).unit_done("cpu", KEYS[1], 64, 3.0)
    assert again.tally == Tally(units_done=2, tokens=128, compute_s=6.0)
    again.stands("stopped")


def test_what_another_release_wrote_is_read_as_far_as_it_is_known() -> None:
    status = at_work()
    assert VolunteerStatus.from_json(status.to_json()) == status
    newer = {
        **status.to_json(),
        "mood": "fine",
        "devices": [{"device_id": "npu:0", "sparkle": 3, "reason": {"code": "x"}}],
    }
    read = VolunteerStatus.from_json(newer)
    assert read.tally == status.tally
    assert read.devices == (DeviceStatus(device_id="npu:0", reason=Reason(code=ReasonCode.OTHER)),)


steps = st.lists(st.tuples(st.sampled_from(("work", "hold", "go_on")), st.floats(0, 1000)), max_size=30)


@given(steps=steps, whole_s=st.floats(1, 10_000), first_share=st.floats(0, 0.9))
def test_what_is_left_is_right_for_a_unit_that_goes_on_evenly(
    steps: list[tuple[str, float]], whole_s: float, first_share: float
) -> None:
    """However often it is held back, and wherever it begins: `whole_s` is what all of it takes."""
    course, now_s, worked_s, is_held = Course(began_s=0.0, estimate_s=whole_s), 0.0, 0.0, False
    course.left_s(0.0, first_share)
    for name, seconds in steps:
        if name != "work":
            is_held = name == "hold"
            (course.hold if is_held else course.go_on)(now_s)
        now_s += seconds
        worked_s += 0.0 if is_held else seconds
        share = first_share + worked_s / whole_s
        left_s = course.left_s(now_s, share) if share < 1 else None
        assert course.worked_s(now_s) == pytest.approx(worked_s, abs=1e-6)
        if left_s is not None and worked_s > 1e-3:
            assert left_s == pytest.approx((1 - share) * whole_s, rel=1e-3, abs=1e-3)


def test_moments_survive_the_file() -> None:
    until = datetime(2026, 3, 2, 22, tzinfo=UTC)
    device = DeviceStatus(device_id="cpu").decided(replace(HOT, until=until))
    assert DeviceStatus.from_json(device.to_json()) == device
