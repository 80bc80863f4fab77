"""Made-up days of a machine and its owner, and what the owner policy decides in each moment of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.policy import Former, decide
from memgrid_volunteer.owner.preferences import Preferences, preferences_of
from memgrid_volunteer.owner.signals import DeviceSignals, Pause, Signals

STEPS = 60
CALM_STEPS = 40
DEVICES = ("cuda:0", "cuda:1", "cpu")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")
STARTS = (
    datetime(2026, 3, 29, 0, 30, tzinfo=UTC),  # clocks go forward in Berlin half an hour later
    datetime(2026, 10, 25, 0, 15, tzinfo=UTC),  # and back here
    datetime(2026, 11, 1, 5, 40, tzinfo=UTC),  # and back in New York
    datetime(2026, 6, 1, 12, 0, tzinfo=UTC),
)
SPANS = ("mon-fri 09:00-18:00", "22:00-07:00", "sat-sun", "fri-mon 23:30-02:30", "tue,thu 12:00-12:30", "02:15-02:45")
PROGRAMS = ("blender", "Steam", "obs")
TOTAL_BYTES = 8_000_000_000
CALM_DEVICE = DeviceSignals(
    temperature_c=40.0,
    power_w=20.0,
    memory_used_bytes=0,
    memory_total_bytes=TOTAL_BYTES,
    foreign_memory_bytes=0,
    foreign_processes=(),
    load_share=0.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What one device was told at one moment, and all that this could have rested on."""

    device_id: DeviceId
    now: datetime
    signals: Signals
    preferences: Preferences
    decision: Decision
    is_owners_word: bool
    """The owner has paused, resumed or changed preferences since the moment before."""
    was_clock_put_back: bool
    """At some time since the history began."""

    @property
    def device(self) -> DeviceSignals:
        return self.signals.devices[self.device_id]

    @property
    def is_gpu(self) -> bool:
        return self.device_id != "cpu"


Trace = list[Moment]


@dataclass(slots=True, kw_only=True)
class Machine:
    """A machine that changes a little from moment to moment."""

    rng: random.Random
    now: datetime
    preferences: Preferences
    pauses: list[Pause] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)
    devices: dict[DeviceId, DeviceSignals] = field(default_factory=dict)

    def signals(self) -> Signals:
        pauses = tuple(pause for pause in self.pauses if pause.until is None or self.now < pause.until)
        return Signals(devices=dict(self.devices), pauses=pauses, **self.seen)


def histories(rng: random.Random, steps: int = STEPS) -> Iterator[Trace]:
    """One history of so many steps and a calm end: the trace of each of its devices."""
    machine = _machine(rng)
    traces: dict[DeviceId, Trace] = {device_id: [] for device_id in machine.devices}
    former, latest = Former(), machine.now
    was_put_back = False
    for step in range(steps + CALM_STEPS):
        was_put_back, latest = was_put_back or machine.now < latest, max(latest, machine.now)
        signals = machine.signals()
        decisions, then = decide(signals, machine.preferences, machine.now, former)
        for device_id, decision in decisions.items():
            traces[device_id].append(_moment(device_id, decision, signals, machine, former, was_put_back))
        former = then
        _step(machine) if step < steps else _calm(machine)
    yield from traces.values()


def _moment(
    device_id: DeviceId, decision: Decision, signals: Signals, machine: Machine, former: Former, was_put_back: bool
) -> Moment:
    def about(pauses: tuple[Pause, ...]) -> list[Pause]:
        return [pause for pause in pauses if pause.device_id in (None, device_id)]

    is_changed = former.preferences is not None and former.preferences != machine.preferences
    return Moment(
        device_id=device_id,
        now=machine.now,
        signals=signals,
        preferences=machine.preferences,
        decision=decision,
        is_owners_word=is_changed or about(former.pauses) != about(signals.pauses),
        was_clock_put_back=was_put_back,
    )


def _machine(rng: random.Random) -> Machine:
    zone = ZoneInfo(rng.choice(ZONES))
    start = rng.choice(STARTS) + timedelta(minutes=rng.randrange(7 * 24 * 60) if rng.random() < 0.7 else 0)
    machine = Machine(rng=rng, now=start.astimezone(zone), preferences=_preferences(rng))
    for device_id in rng.sample(DEVICES, rng.randint(1, 2)):
        machine.devices[device_id] = CALM_DEVICE
    for name in _SEEN:
        machine.seen[name] = _seen(rng, name)
    return machine


def _preferences(rng: random.Random) -> Preferences:
    """Mostly what the preset says, with some keys of the owner's own."""

    def maybe(share: float, *values: Any) -> Any:
        return rng.choice(values) if rng.random() < share else None

    when = {
        "hours": maybe(0.05, [rng.choice(SPANS)], rng.sample(SPANS, 2)),
        "quiet": maybe(0.1, [rng.choice(SPANS)], rng.sample(SPANS, 2)),
        "idle_minutes": maybe(0.4, 0, 0.5, 3, 15),
        "while_in_use": maybe(0.4, "run", "throttle", "pause"),
        "gpu_while_in_use": maybe(0.4, "run", "throttle", "pause"),
        "in_use_duty_percent": maybe(0.2, 5, 50),
        "on_battery": maybe(0.3, True, False),
        "battery_min_percent": maybe(0.2, 0, 20, 80),
        "fullscreen": maybe(0.3, "run", "pause"),
        "exclusive_programs": maybe(0.4, [PROGRAMS[0]], list(PROGRAMS)),
        "foreign_gpu": maybe(0.3, "run", "pause"),
        "foreign_load_max_percent": maybe(0.3, 10, 60, 100),
    }
    devices = {
        device_id: _without_none(
            {
                "enabled": maybe(0.1, False),
                "duty_percent": maybe(0.3, 10, 60),
                "temperature_max_c": maybe(0.3, 60, 75, 95),
                "power_max_w": maybe(0.3, 100, 200),
            }
        )
        for device_id in rng.sample(DEVICES, rng.randint(0, 3))
    }
    said = {
        "preset": rng.choice(("polite", "polite", "polite", "polite", "always", "always", "night")),
        "when": _without_none(when),
        "devices": devices,
        "disk": _without_none({"free_min_gb": maybe(0.2, 0, 50)}),
    }
    return preferences_of(said)


def _without_none(said: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in said.items() if value is not None}


def _step(machine: Machine) -> None:
    """Time goes on, mostly a little; something may have changed."""
    rng = machine.rng
    machine.now += timedelta(seconds=rng.choice(_WAITS_S)) if rng.random() > 0.01 else rng.choice(_JUMPS)
    idle_s = machine.seen["input_idle_s"]
    if idle_s is not None:
        machine.seen["input_idle_s"] = idle_s + 5
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        name = rng.choice(_SEEN)
        machine.seen[name] = _seen(rng, name)
    for device_id, device in machine.devices.items():
        machine.devices[device_id] = _device(rng, device)
    if rng.random() < 0.04:
        machine.preferences = _preferences(rng)
    if rng.random() < 0.06:
        _pause(machine)
    elif rng.random() < 0.3:
        machine.pauses = []


_WAITS_S = (0.25, 0.25, 1, 2, 5, 5, 11, 20, 45, 61, 130, 400, 3600)
_JUMPS = (timedelta(days=-1), timedelta(hours=-1), timedelta(seconds=-30), timedelta(hours=9), timedelta(days=3))


def _pause(machine: Machine) -> None:
    rng = machine.rng
    until = machine.now + timedelta(seconds=rng.choice((1, 30, 600, 7200))) if rng.random() < 0.5 else None
    device_id = rng.choice((None, *DEVICES))
    machine.pauses.append(Pause(device_id=device_id, until=until, is_until_restart=rng.random() < 0.2))


_SEEN = (
    "input_idle_s",
    "is_locked",
    "foreign_load_share",
    "on_battery",
    "battery_share",
    "fullscreen_program",
    "programs",
    "disk_free_bytes",
)


def _seen(rng: random.Random, name: str) -> Any:
    if rng.random() < 0.06:
        return None
    match name:
        case "input_idle_s":
            return rng.choice((0.0, 2.0, 45.0, 170.0, 400.0, 950.0, 4000.0, 9000.0, 90_000.0))
        case "is_locked":
            return rng.random() < 0.2
        case "foreign_load_share":
            return rng.choice((0.0, 0.02, 0.1, 0.2, 0.4, 0.9))
        case "on_battery":
            return rng.random() < 0.1
        case "battery_share":
            return rng.choice((0.05, 0.22, 0.42, 0.6, 0.82, 1.0))
        case "fullscreen_program":
            return rng.choice((*("",) * 10, "Steam", "mpv"))
        case "programs":
            return frozenset(rng.sample(PROGRAMS, rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 2))))
        case _:
            return rng.choice((0, 1_900_000_000, 2_100_000_000, *(500_000_000_000,) * 7))


def _device(rng: random.Random, device: DeviceSignals) -> DeviceSignals:
    """One GPU or processor after a moment: warmer or cooler, and now and then unseen or wanted by others."""
    temperature_c = (device.temperature_c or 50.0) + rng.choice((-15, -6, -2, -1, 0, 0, 1, 3, 6, 12))
    power_w = rng.choice((15.0, 60.0, 90.0, 99.0, 101.0, 150.0, 260.0)) if rng.random() < 0.4 else device.power_w
    changed = replace(
        device,
        temperature_c=None if rng.random() < 0.02 else min(max(temperature_c, 30.0), 99.0),
        power_w=None if rng.random() < 0.02 else power_w,
    )
    if rng.random() < 0.2:
        names = None if rng.random() < 0.1 else rng.choice(((), (), (), (), ("blender",), ("python", "ffmpeg")))
        changed = replace(changed, foreign_processes=names)
    if rng.random() < 0.2:
        foreign = rng.choice((None, 0, 0, 0, 500_000_000, 500_000_000, 2_000_000_000, 7_800_000_000))
        used = None if foreign is None else min(foreign + rng.choice((0, 3_000_000_000, 6_000_000_000)), TOTAL_BYTES)
        changed = replace(changed, foreign_memory_bytes=foreign, memory_used_bytes=used)
    return changed


def _calm(machine: Machine) -> None:
    """Nobody is there, nothing is wanted, everything is cool and seen: for twenty minutes."""
    machine.now += timedelta(seconds=30)
    machine.pauses = []
    machine.devices = dict.fromkeys(machine.devices, CALM_DEVICE)
    machine.seen = {
        "input_idle_s": 100_000.0,
        "is_locked": False,
        "foreign_load_share": 0.0,
        "on_battery": False,
        "battery_share": 1.0,
        "fullscreen_program": "",
        "programs": frozenset(),
        "disk_free_bytes": 500_000_000_000,
    }
