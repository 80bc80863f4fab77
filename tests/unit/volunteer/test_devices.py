"""One agent and all devices of a machine: what runs where, and what the owner says of each."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.units import DeviceFacts, ReasonCode
from memgrid_volunteer.devices import NamedDevice, named, used
from memgrid_volunteer.kinds.job import WorkerDevice
from memgrid_volunteer.owner.preferences import preferences_of
from memgrid_volunteer.owner.signals import DeviceSignals
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import ALWAYS, Volunteer

LONG = (5, 3000)  # a minute of work, committed every step


@pytest.fixture
def gpus(volunteer: Volunteer) -> Volunteer:
    """A machine with two GPUs, both seen and cool."""
    volunteer.find("cuda:0=GPU-a cuda:1=GPU-b cpu=")
    cool = DeviceSignals(
        temperature_c=40.0, foreign_memory_bytes=0, foreign_processes=(), memory_used_bytes=0, memory_total_bytes=1
    )
    volunteer.probe.reading["devices"] = {"cuda:0": cool, "cuda:1": cool}
    return volunteer


def running_on(volunteer: Volunteer) -> dict[str, str | None]:
    devices = volunteer.home.status().get("devices", [])
    return {device["device_id"]: device["unit"] for device in devices}


async def test_every_gpu_has_a_unit_and_the_processor_none(grid: ScriptedGrid, gpus: Volunteer) -> None:
    for number in range(6):
        grid.offer(f"unit-{number}", *LONG, number)
    async with gpus.running():
        await grid.until(lambda: all(running_on(gpus).get(device) for device in ("cuda:0", "cuda:1")))
        await grid.until(lambda: grid.asks[-1].want == 0)
        assert gpus.device("cpu")["reason"]["code"] == ReasonCode.DEVICE_DISABLED
        own = {("cuda:0", "GPU-a"), ("cuda:1", "GPU-b")}
        await grid.until(lambda: {(device, uuid) for _, device, uuid in gpus.runs()} == own)
        assert len(grid.granted) == 4, "for each device one to run and one to fetch"
        gpus.prefer(f"{ALWAYS}[devices.cpu]\nenabled = true\n")
        await grid.until(lambda: running_on(gpus)["cpu"])


async def test_one_paused_gpu_leaves_the_other_at_work(grid: ScriptedGrid, gpus: Volunteer) -> None:
    for number in range(4):
        grid.offer(f"unit-{number}", *LONG, number)
    async with gpus.running():
        await grid.until(lambda: all(running_on(gpus).get(device) for device in ("cuda:0", "cuda:1")))
        still = running_on(gpus)["cuda:1"]
        gpus.control.pause(datetime.now(UTC), device_id="cuda:0")
        await grid.until(lambda: running_on(gpus)["cuda:0"] is None)
        assert gpus.home.status()["state"] == "running" and running_on(gpus)["cuda:1"] == still
        assert gpus.device("cuda:0")["reason"]["code"] == ReasonCode.OWNER_PAUSED
        assert not grid.released
        gpus.control.resume(datetime.now(UTC))
        await grid.until(lambda: running_on(gpus)["cuda:0"])


async def test_a_unit_goes_on_from_its_checkpoint_on_another_device(grid: ScriptedGrid, gpus: Volunteer) -> None:
    offer = grid.offer("one", *LONG)
    async with gpus.running():
        await grid.until(gpus.progress)
        (begun,) = gpus.progress()
        other = {"cuda:0": "cuda:1", "cuda:1": "cuda:0"}[begun]
        gpus.control.pause(datetime.now(UTC), device_id=begun)
        await grid.until(lambda: running_on(gpus)[other] == offer.unit_key)
        await grid.until(lambda: other in gpus.progress())
        assert "begins at step 0" not in gpus.lines
    assert [lease for lease, _, _ in gpus.runs()] == ["one", "one"]
    assert len({device for _, device, _ in gpus.runs()}) == 2


async def test_a_card_keeps_its_name_when_the_driver_counts_otherwise(grid: ScriptedGrid, gpus: Volunteer) -> None:
    grid.offer("one", 1)
    await gpus.run(max_units=1)
    gpus.find("cuda:0=GPU-b cuda:1=GPU-a cpu=")
    gpus.control.pause(datetime.now(UTC), device_id="cuda:0")
    grid.offer("two", 2)
    await gpus.run(max_units=1)
    assert gpus.runs()[-1] == ("two", "cuda:0", "GPU-b"), "the pause is that of the card, not of its place"


async def test_a_worker_that_finds_another_card_in_the_place_looks_for_its_own(
    grid: ScriptedGrid, gpus: Volunteer
) -> None:
    gpus.control.pause(datetime.now(UTC), device_id="cuda:0")
    async with gpus.running(max_units=1) as run:
        await grid.until(lambda: grid.asks)
        gpus.find("cuda:0=GPU-b cuda:1=GPU-a cpu=")
        grid.offer("one", 1)
        await run
    assert gpus.runs() == [("one", "cuda:0", "GPU-b")]


async def test_throttling_reaches_the_worker_and_a_kept_pause_holds_it(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    grid.offer("one", *LONG)
    async with volunteer.running():
        await grid.until(volunteer.progress)
        volunteer.prefer(f"{ALWAYS}[devices.cpu]\ntemperature_max_c = 80\n")
        volunteer.probe.reading["devices"] = {"cpu": DeviceSignals(temperature_c=90.0)}
        await grid.until(lambda: volunteer.device()["action"] == "pause_keep")
        assert volunteer.device()["reason"]["code"] == ReasonCode.TOO_HOT
        await asyncio.sleep(0.3)
        held = volunteer.device()["progress"]
        await asyncio.sleep(0.3)
        assert volunteer.device()["progress"] == held, "a step takes two hundredths of a second"
        pid = volunteer.worker_pids()
        assert volunteer.home.status()["state"] == "paused"
        volunteer.probe.reading["devices"] = {"cpu": DeviceSignals(temperature_c=40.0)}
        volunteer.prefer(f"{ALWAYS}[devices.cpu]\nduty_percent = 50\n")
        await grid.until(lambda: volunteer.device()["action"] == "throttle", limit_s=60)
        await grid.until(lambda: volunteer.device()["progress"] != held)
        assert volunteer.device()["duty"] == 0.5 and volunteer.worker_pids() == pid, "it kept its memory"
    assert volunteer.units_run() == ["one"]


async def test_leases_go_back_when_a_pause_outlasts_them(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    now = datetime.now(UTC)
    grid.offer("short", *LONG, deadline_at=now + timedelta(minutes=20))
    grid.offer("long", *LONG, 1, deadline_at=now + timedelta(hours=9))
    async with volunteer.running():
        await grid.until(lambda: volunteer.units_run() and len(grid.granted) == 2)
        volunteer.control.pause(now, until=now + timedelta(hours=1))
        await grid.until(lambda: grid.released)
        assert [release.lease_id for release in grid.released] == ["short"]
        assert grid.released[0].reason.text == "the owner of the machine needs it", "no more is a grid's business"
        await grid.until(lambda: [lease.lease_id for lease in grid.asks[-1].held] == ["long"])


uuids = st.sampled_from(["GPU-a", "GPU-b", "GPU-c", "GPU-d", ""])
FACTS = DeviceFacts(kind="cuda", name="A", memory_bytes=1, numerics_class="x")


@given(st.lists(st.lists(st.sampled_from("abcd"), unique=True, max_size=4), max_size=5))
def test_names_are_one_to_one_and_a_card_never_changes_its_own(boots: list[list[str]]) -> None:
    known: dict[str, str] = {}
    for found in boots:
        devices = named(
            [
                WorkerDevice(device_id=f"cuda:{place}", uuid=f"GPU-{letter}", facts=FACTS)
                for place, letter in enumerate(found)
            ],
            known,
        )
        names = {device.uuid: device.device_id for device in devices}
        assert len(set(names.values())) == len(names)
        assert all(known.get(uuid, name) == name for uuid, name in names.items())
        known |= names
        assert len(set(known.values())) == len(known)


@pytest.mark.parametrize(
    ("kinds", "said", "expected"),
    [
        (("cpu",), {}, {"cpu"}),
        (("cuda", "cpu"), {}, {"cuda"}),
        (("cuda", "cpu"), {"cpu": {"enabled": True}}, {"cuda", "cpu"}),
        (("cuda", "cpu"), {"cpu": {"duty_percent": 50}}, {"cuda"}),
        (("mps", "cpu"), {"cpu": {"enabled": False}}, {"mps"}),
    ],
)
def test_gpus_compute_and_the_processor_where_there_is_none(
    kinds: tuple[str, ...], said: dict[str, object], expected: set[str]
) -> None:
    devices = [
        NamedDevice(
            device_id=kind,
            torch_id=kind,
            uuid="",
            facts=DeviceFacts(kind=kind, name="A", memory_bytes=1, numerics_class="x"),
        )
        for kind in kinds
    ]
    assert used(devices, preferences_of({"devices": said})) == expected
