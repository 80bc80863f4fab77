"""What every probe sees and what follows from it, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memgrid.text import bytes_text, seconds_text
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.probes.probe import Reading
from memgrid_volunteer.owner.signals import DeviceSignals, Pause
from memgrid_volunteer.owner.watching import Sight
from memgrid_volunteer.owner.words import decision_text, pause_text


def report_json(
    sights: Mapping[str, Sight],
    decisions: Mapping[DeviceId, Decision],
    pauses: Iterable[Pause],
    problems: Iterable[str],
    now: datetime,
) -> dict[str, Any]:
    """All of it, for machines."""
    return {
        "at": now.isoformat(),
        "probes": {name: _sight_json(sight) for name, sight in sights.items()},
        "devices": {device_id: decision_json(decision) for device_id, decision in decisions.items()},
        "pauses": [pause_text(pause, now) for pause in pauses],
        "problems": list(problems),
    }


def decision_json(decision: Decision) -> dict[str, Any]:
    reason = decision.reason
    return {
        "action": decision.action.value,
        "duty": decision.duty,
        "reason": None if reason is None else {"code": reason.code.value, "text": reason.text},
        "until": None if decision.until is None else decision.until.isoformat(),
        "preference": decision.preference,
        "text": decision_text(decision),
    }


def report_table(
    sights: Mapping[str, Sight],
    decisions: Mapping[DeviceId, Decision],
    pauses: Iterable[Pause],
    problems: Iterable[str],
    now: datetime,
) -> Group:
    """All of it, for people."""
    probes = Table("probe", "sees", title="What is seen", title_justify="left")
    for name, sight in sights.items():
        probes.add_row(name, sight_text(sight) or Text(f"nothing: {sight.why_unseen}", style="yellow"))
    devices = Table("device", "now", "decided by", title="What follows from it", title_justify="left")
    for device_id, decision in decisions.items():
        devices.add_row(device_id, decision_text(decision), decision.preference)
    lines = [Text(f"{pause_text(pause, now)}") for pause in pauses]
    return Group(*(Text(problem, style="red") for problem in problems), *lines, probes, devices)


def sight_text(sight: Sight) -> str:
    """A reading in words; empty where nothing was seen.

    >>> sight_text(Sight(reading={"on_battery": False}, at_s=0, took_s=0))
    'on mains'
    """
    return "" if sight.reading is None else "\n".join(_lines(sight.reading)) or "nothing to look for"


def _lines(reading: Reading) -> Iterable[str]:
    if (idle_s := reading.get("input_idle_s")) is not None:
        locked = ", locked" if reading.get("is_locked") else ""
        yield f"no input for {seconds_text(idle_s)}{locked}"
    if "fullscreen_program" in reading:
        yield f"{reading['fullscreen_program'] or 'nothing'} fills the screen"
    if (share := reading.get("foreign_load_share")) is not None:
        yield f"other programs keep {share:.0%} of the processor busy"
    if (on_battery := reading.get("on_battery")) is not None:
        charge = reading.get("battery_share")
        yield ("on battery" if on_battery else "on mains") + ("" if charge is None else f", charged to {charge:.0%}")
    if "programs" in reading:
        yield f"exclusive programs: {', '.join(sorted(reading['programs'] or ())) or 'none'}"
    if (is_metered := reading.get("is_metered")) is not None:
        yield "metered" if is_metered else "not metered"
    if (free := reading.get("disk_free_bytes")) is not None:
        yield f"{bytes_text(free)} free"
    if (sent := reading.get("month_bytes")) is not None:
        yield f"{bytes_text(sent)} sent and received this month"
    for device_id, device in reading.get("devices", {}).items():
        yield f"{device_id}: {_device_text(device)}"


def _device_text(device: DeviceSignals) -> str:
    parts = []
    if device.temperature_c is not None:
        parts.append(f"{device.temperature_c:.0f} °C")
    if device.power_w is not None:
        limit = "" if device.power_limit_w is None else f" of {device.power_limit_w:.0f}"
        parts.append(f"{device.power_w:.0f}{limit} W")
    if device.load_share is not None:
        parts.append(f"{device.load_share:.0%} busy")
    if device.memory_used_bytes is not None and device.memory_total_bytes is not None:
        used, total = bytes_text(device.memory_used_bytes), bytes_text(device.memory_total_bytes)
        parts.append(f"{used} of {total} in use")
    if device.foreign_memory_bytes is not None:
        parts.append(f"{bytes_text(device.foreign_memory_bytes)} by others")
    if device.foreign_processes is not None:
        parts.append(f"computing for others: {', '.join(device.foreign_processes) or 'none'}")
    return ", ".join(parts) or "nothing"


def _sight_json(sight: Sight) -> dict[str, Any]:
    return {
        "reading": None if sight.reading is None else _plain(sight.reading),
        "why_unseen": sight.why_unseen,
        "took_s": round(sight.took_s, 4),
    }


def _plain(reading: Reading) -> dict[str, Any]:
    value: dict[str, Any] = dict(reading)
    if "devices" in reading:
        value["devices"] = {device_id: asdict(device) for device_id, device in reading["devices"].items()}
    if "programs" in value:
        value["programs"] = sorted(reading.get("programs") or ())
    return value
