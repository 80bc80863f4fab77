"""What a volunteer's owner looks at, on the page and in a terminal: its state in words, device by device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from memgrid.text import bytes_text
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import Action
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.owner.words import moment_text, pause_text
from memgrid_volunteer.status import DeviceStatus, VolunteerStatus


class Tone(StrEnum):
    """What colour a state has: at work, at work but held back, at rest, in trouble."""

    GOOD = "good"
    BUSY = "busy"
    QUIET = "quiet"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """One device; every text is ready to be read and empty where there is nothing to say."""

    device_id: DeviceId
    name: str
    tone: Tone
    state: str
    why: str
    decided_by: str
    """The key of the preferences that decided."""
    unit: str
    work: str
    progress: str
    share: float | None
    left: str
    facts: tuple[tuple[str, str], ...]
    """Temperature, power, memory and the rest that can be seen: a name and a reading."""
    is_paused_alone: bool
    """By its owner, and not only because all devices are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The volunteer as a whole."""

    tone: Tone
    state: str
    why: str
    devices: tuple[DeviceView, ...]
    pauses: tuple[str, ...]
    """What the owner has paused, and until when."""
    is_paused: bool
    """All of it, by the owner."""
    unseen: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    """Machines of the owner's cluster that don't compute, each with why."""


def view_of(status: VolunteerStatus, pauses: Sequence[Pause], now: datetime, *, is_running: bool) -> View:
    """Everything in words, by the clock of `now`'s zone; a killed process may have written `status` last."""
    devices = tuple(device_view(device, pauses, now, is_running=is_running) for device in status.devices)
    tone, state, why = _headline(status, pauses, now) if is_running else _STOPPED
    return View(
        tone=tone,
        state=state,
        why=why,
        devices=devices,
        pauses=tuple(pause_text(pause, now) for pause in pauses),
        is_paused=any(pause.device_id is None for pause in pauses),
        unseen=tuple(status.unseen.items()) if is_running else (),
        left_out=tuple(status.left_out.items()) if is_running else (),
    )


def device_lines(view: View) -> list[str]:
    """What the devices of a cluster do, and which of its machines do nothing; of one machine, only what it has.

    >>> now = datetime(2026, 5, 4, 9, 30)
    >>> own, far = DeviceStatus(device_id="cpu", name="A CPU"), DeviceStatus(device_id="gpu-7/cuda:0", name="A GPU")
    >>> device_lines(view_of(VolunteerStatus(devices=(own,)), (), now, is_running=True))
    ['A CPU']
    >>> status = VolunteerStatus(devices=(own, far), left_out={"gpu-8": "did not answer in 60 s"})
    >>> device_lines(view_of(status, (), now, is_running=True))
    ['cpu A CPU: ready', 'gpu-7/cuda:0 A GPU: ready', 'gpu-8 is left out: did not answer in 60 s']
    """
    if not view.left_out and not any("/" in device.device_id for device in view.devices):
        return [", ".join(device.name for device in view.devices) or "not known yet"]
    devices = [f"{device.device_id} {device.name}: {_with(device.state, device.why)}" for device in view.devices]
    return devices + [left_out_text(*each) for each in view.left_out]


def left_out_text(name: str, why: str) -> str:
    return f"{name} is left out: {why}"


def _with(state: str, why: str) -> str:
    return f"{state}, {why}" if why else state


_GUESS_MAX = 0.95
_STOPPED = (Tone.QUIET, "Not running", "memgrid volunteer run starts it")


def _headline(status: VolunteerStatus, pauses: Sequence[Pause], now: datetime) -> tuple[Tone, str, str]:
    at_work = [device for device in status.devices if device.unit and device.may_compute]
    whole = next((pause for pause in pauses if pause.device_id is None), None)
    if whole is not None:
        return Tone.QUIET, "Paused by you", _sentence(end_text(whole, now))
    if at_work:
        where = at_work[0].name or at_work[0].device_id
        on = f"on {where}" if len(at_work) == 1 else f"on {len(at_work)} of {len(status.devices)} devices"
        away = "; the grid can't be reached, so results wait here" if status.state == "away" else ""
        slow = all(device.action is Action.THROTTLE for device in at_work)
        return Tone.BUSY if slow else Tone.GOOD, "Computing", _sentence(on + away)
    if status.state == "away":
        return Tone.BAD, "The grid can't be reached", "It is tried again and again; what is finished is kept"
    held = [device for device in status.devices if not device.may_compute]
    if held and len(held) == len(status.devices):
        return Tone.QUIET, "Paused", _sentence(why_text(held[0], now))
    if status.state == "starting":
        return Tone.QUIET, "Starting", ""
    idle = status.idle_reason
    return Tone.QUIET, "Waiting for work", "" if idle is None else _sentence(idle.text or _plain(idle.code))


def device_view(device: DeviceStatus, pauses: Sequence[Pause], now: datetime, *, is_running: bool) -> DeviceView:
    """One device in words."""
    tone, state = _device_state(device) if is_running else (Tone.QUIET, "stopped")
    busy = is_running and device.unit is not None
    return DeviceView(
        device_id=device.device_id,
        name=device.name,
        tone=tone,
        state=state,
        why=why_text(device, now) if is_running else "",
        decided_by=device.preference if is_running else "",
        unit=device.unit or "" if busy else "",
        work=device.work if busy else "",
        progress=device.progress if busy else "",
        share=share_of(device, now) if busy else None,
        left=left_text(device, now) if busy else "",
        facts=tuple(_facts(device)) if is_running else (),
        is_paused_alone=any(pause.device_id == device.device_id for pause in pauses),
    )


def _device_state(device: DeviceStatus) -> tuple[Tone, str]:
    share = f"{100 * device.duty:.0f}% of the time"
    match device.action:
        case Action.RUN:
            return (Tone.GOOD, "computing") if device.unit else (Tone.QUIET, "ready")
        case Action.THROTTLE:
            return (Tone.BUSY, f"computing {share}") if device.unit else (Tone.QUIET, f"ready, for {share}")
        case Action.PAUSE_KEEP:
            return Tone.QUIET, "paused, its memory kept" if device.unit else "paused"
        case Action.PAUSE_RELEASE:
            return Tone.QUIET, "paused"


def why_text(device: DeviceStatus, now: datetime) -> str:
    """Why a device is held back, and until when if that is known.

    >>> from memgrid.units import Reason, ReasonCode
    >>> why_text(DeviceStatus(device_id="cpu", reason=Reason(code=ReasonCode.OWNER_PAUSED)), datetime.now())
    'owner paused'
    """
    if device.reason is None:
        return ""
    text = device.reason.text or _plain(device.reason.code)
    until = "" if device.until is None or device.until <= now else moment_text(device.until, now)
    return text if until in text else f"{text}, until {until}"


def share_of(device: DeviceStatus, now: datetime) -> float | None:
    """How much of a unit is done: the worker's own word, else a guess from the time it has taken."""
    if device.progress_share is not None:
        return device.progress_share
    if device.estimate_s is None or device.heard_at is None or device.began_at is None:
        return None
    seen_at = now if device.may_compute else device.heard_at
    worked_s = max(0.0, (seen_at - device.began_at).total_seconds())
    whole_s = (device.heard_at - device.began_at).total_seconds() + device.estimate_s
    return min(_GUESS_MAX, worked_s / whole_s) if whole_s > 0 else None


def left_text(device: DeviceStatus, now: datetime) -> str:
    """How much of a unit is left, about; empty while nobody can tell."""
    if device.estimate_s is None or device.heard_at is None:
        return ""
    if not device.may_compute:
        return f"{about_text(device.estimate_s)} of computing left"
    left_s = device.estimate_s - (now - device.heard_at).total_seconds()
    if left_s <= 0:
        return "any moment now"
    ends_at = device.ends_at
    at = f", done at {moment_text(ends_at, now)}" if ends_at is not None and left_s >= 60 else ""
    return f"{about_text(left_s)} left{at}"


def about_text(seconds: float) -> str:
    """A duration no finer than anybody can know it.

    >>> about_text(20), about_text(430), about_text(9_000), about_text(200_000)
    ('under a minute', 'about 7 min', 'about 2 h 30 min', 'about 2 days')
    """
    minutes = max(1, round(seconds / 60))
    if seconds < 60:
        return "under a minute"
    if minutes < 60:
        return f"about {minutes} min"
    if minutes < 36 * 60:
        return f"about {minutes // 60} h {minutes % 60} min"
    return f"about {round(minutes / 1440)} days"


def end_text(pause: Pause, now: datetime) -> str:
    """Until when a pause lasts.

    >>> end_text(Pause(is_until_restart=True), datetime.now())
    'until the volunteer starts again'
    """
    if pause.until is not None:
        return f"until {moment_text(pause.until, now)}"
    return "until the volunteer starts again" if pause.is_until_restart else "until you resume"


def past_text(moment: datetime, now: datetime) -> str:
    """When something was, by the clock of `now`'s zone: the time, and the day where it was another one.

    >>> from datetime import UTC
    >>> past_text(datetime(2026, 3, 1, 21, 5, tzinfo=UTC), datetime(2026, 3, 2, 9, tzinfo=UTC))
    '1 Mar, 21:05'
    """
    wall = moment.astimezone(now.tzinfo)
    return f"{wall:%H:%M}" if wall.date() == now.date() else f"{wall.day} {wall:%b, %H:%M}"


def _facts(device: DeviceStatus) -> list[tuple[str, str]]:
    facts = []
    if device.temperature_c is not None:
        facts.append(("temperature", f"{device.temperature_c:.0f} °C"))
    if device.power_w is not None:
        limit = f" of {device.power_limit_w:.0f}" if device.power_limit_w else ""
        facts.append(("power", f"{device.power_w:.0f}{limit} W"))
    if device.memory_used_bytes is not None:
        others = f", {bytes_text(device.foreign_memory_bytes)} by others" if device.foreign_memory_bytes else ""
        whole = f" of {bytes_text(device.memory_bytes)}" if device.memory_bytes else ""
        facts.append(("memory", f"{bytes_text(device.memory_used_bytes)}{whole}{others}"))
    elif device.memory_bytes:
        facts.append(("memory", bytes_text(device.memory_bytes)))
    if device.load_share is not None:
        facts.append(("load", f"{100 * device.load_share:.0f}%"))
    if device.tokens_per_s is not None and device.unit is not None:
        facts.append(("speed", f"{device.tokens_per_s:,.0f} tokens/s"))
    return facts


def _plain(code: str) -> str:
    return code.replace("_", " ")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
