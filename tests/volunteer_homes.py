"""A volunteer's home with something in it, for tests of who looks at it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from memgrid.teams import Standing
from memgrid.units import AccountId, HostId, Reason, ReasonCode, UnitKey
from memgrid_volunteer.done import DoneUnit, Fate, Outcome
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home, Membership, Place
from memgrid_volunteer.status import DeviceStatus, GridStatus, Tally, VolunteerStatus

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
GRID = "https://grid.example:7070"
KEYS = tuple(UnitKey(f"{number:064x}") for number in range(40))


def make_home(folder: Path, url: str = f"{GRID}#sha256={'ab' * 32}") -> Home:
    """A member of a grid that has never computed; `h1`, as scripted grids call it."""
    home = Home(folder)
    home.make()
    member = {"account_id": AccountId("a3f1" * 8), "host_id": HostId("h1")}
    home.join(Membership(url=url, name="a grid for tests", label="attic", **member))
    return home


def join_another(home: Home) -> Place:
    """A second grid with less of the machine, which can't be reached just now."""
    url = "https://second.example"
    place = home.place_for(url)
    place.make_place()
    place.join(replace(home.membership(), url=url, name="second", host_id=HostId("h2"), share=30))
    status = VolunteerStatus.from_json(home.status())
    away = Reason(code=ReasonCode.GRID_AWAY, text="no route")
    grids = (
        GridStatus(url=home.grid_url, name="a grid for tests", state="running", tally=status.tally),
        GridStatus(url=url, name="second", state="away", reason=away),
    )
    home.write_status(replace(status, grids=grids).to_json())
    return place


def at_work(now: datetime = NOW) -> VolunteerStatus:
    """One GPU in the middle of a unit, one that is idle, and a processor."""
    gpu = {"kind": "cuda", "name": "A Fine GPU", "memory_bytes": 12 << 30, "numerics_class": "cuda-sm89/torch-2.13"}
    return VolunteerStatus(
        state="running",
        isolation="bubblewrap",
        pid=1,
        tally=Tally(units_done=7, accepted=5, rejected=1, credit_flops=58 * 10**12, tokens=9000, compute_s=700.0),
        awaiting_verdict=1,
        devices=(
            DeviceStatus(
                device_id="cuda:0",
                **gpu,
                unit=KEYS[0],
                unit_kind="study",
                work="48 conversations about 1900 tokens",
                progress="20 of 48 conversations",
                progress_share=0.42,
                tokens_per_s=1874.0,
                began_at=now - timedelta(minutes=5),
                estimate_s=420.0,
                heard_at=now,
                temperature_c=67.0,
                power_w=164.0,
                power_limit_w=200.0,
                memory_used_bytes=7_900_000_000,
                load_share=0.98,
            ),
            DeviceStatus(device_id="cuda:1", **gpu),
            DeviceStatus(device_id="cpu", kind="cpu", name="A Fine Processor", memory_bytes=64 << 30),
        ),
        updated_at=now,
    )


def fill_history(home: Home, units: int = 30, now: datetime = NOW) -> None:
    """So many units, hours apart, nearly all accepted; the oldest have cubes."""
    history = History(home.folder)
    for number in range(units):
        at, key = now - timedelta(hours=5 * (units - number)), KEYS[number]
        history.add(
            DoneUnit(
                at=at,
                unit_key=key,
                kind="prefill",
                work=f"512 tokens from position {512 * number}",
                grid=GRID,
                device_id="cuda:0",
                tokens=512,
                compute_s=4.0,
            )
        )
        if number != units - 1:
            outcome = Outcome.REJECTED if number == units - 3 else Outcome.ACCEPTED
            credit = 0 if outcome is Outcome.REJECTED else (1 + number) * 10**12
            history.judge(key, outcome, "disagrees" if not credit else "", credit, at, grid=GRID)
        if number < units - 5:
            fate = Fate(cube="manuals/pump:1.2.0", campaign_id="c0ffee", campaign="Pumps")
            history.tell_fate({key: [fate]}, [key], now, grid=GRID)
    history.close()


async def stands(place: Place) -> Standing:
    """What a grid might say of an account."""
    return Standing(flops=61e12, escrow_flops=2e12, results=6, rank=7, ranked=1204, team="Early Birds")
