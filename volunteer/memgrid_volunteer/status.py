"""How a volunteer stands at one moment, as its commands, its page and its file `status.json` show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from memgrid.units import DeviceFacts, Reason, ReasonCode, UnitKey
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import Action, Decision
from memgrid_volunteer.owner.signals import DeviceSignals


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counted since the grid was joined."""

    units_done: int = 0
    units_failed: int = 0
    accepted: int = 0
    rejected: int = 0
    cancelled: int = 0
    credit_flops: int = 0
    tokens: int = 0
    compute_s: float = 0.0

    @staticmethod
    def from_status(status: Mapping[str, Any]) -> Tally:
        """Go on counting where the last run stopped."""
        return Tally(**{each.name: status[each.name] for each in fields(Tally) if each.name in status})

    @staticmethod
    def sum_of(tallies: Sequence[Tally]) -> Tally:
        """
        >>> Tally.sum_of([Tally(units_done=1), Tally(units_done=2, accepted=1)]) == Tally(units_done=3, accepted=1)
        True
        """
        return Tally(**{each.name: sum(getattr(tally, each.name) for tally in tallies) for each in fields(Tally)})


@dataclass(frozen=True, slots=True, kw_only=True)
class GridStatus:
    """How this machine stands with one of its grids."""

    url: str
    """Where its pages are."""
    name: str = ""
    state: str = "stopped"
    """running, idle, paused, away, ended or stopped."""
    reason: Reason | None = None
    """Why nothing is computed for it."""
    awaiting_verdict: int = 0
    tally: Tally = field(default_factory=Tally)

    def to_json(self) -> dict[str, Any]:
        """As in the file: the tally's fields lie on top."""
        own = {each.name: getattr(self, each.name) for each in fields(GridStatus) if each.name != "tally"}
        return {**own, "reason": None if self.reason is None else asdict(self.reason), **asdict(self.tally)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> GridStatus:
        """The inverse; of what another release wrote, what this one knows."""
        reason = value.get("reason")
        return GridStatus(
            url=str(value.get("url", "")),
            name=str(value.get("name", "")),
            state=str(value.get("state", "stopped")),
            reason=_reason(reason) if reason else None,
            awaiting_verdict=int(value.get("awaiting_verdict", 0)),
            tally=Tally.from_status(value),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """One device: what it may do and why, what it does, and how it feels; None wherever that can't be seen."""

    device_id: DeviceId
    kind: str = ""
    name: str = ""
    numerics_class: str = ""
    memory_bytes: int = 0
    action: Action = Action.RUN
    duty: float = 1.0
    reason: Reason | None = None
    until: datetime | None = None
    preference: str = ""
    """The key of the preferences that decided."""
    unit: UnitKey | None = None
    unit_kind: str = ""
    work: str = ""
    """What the unit asks for, in words."""
    progress: str = ""
    progress_share: float | None = None
    tokens_per_s: float | None = None
    began_at: datetime | None = None
    estimate_s: float | None = None
    """Computing still to come until the unit is done, as of `heard_at`; pauses don't count."""
    heard_at: datetime | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    memory_used_bytes: int | None = None
    foreign_memory_bytes: int | None = None
    load_share: float | None = None

    @property
    def may_compute(self) -> bool:
        return self.action in (Action.RUN, Action.THROTTLE)

    @property
    def ends_at(self) -> datetime | None:
        """When the unit should be done if nothing holds it up; None while that can't be told."""
        if self.unit is None or self.estimate_s is None or self.heard_at is None or not self.may_compute:
            return None
        return datetime.fromtimestamp(self.heard_at.timestamp() + self.estimate_s, tz=self.heard_at.tzinfo)

    def decided(self, decision: Decision) -> DeviceStatus:
        return replace(
            self,
            action=decision.action,
            duty=decision.duty,
            reason=decision.reason,
            until=decision.until,
            preference=decision.preference,
        )

    def seen(self, signals: DeviceSignals) -> DeviceStatus:
        """With its readings; rounded as far as anybody reads them, so that noise is no news."""
        return replace(
            self,
            temperature_c=_rounded(signals.temperature_c, 0),
            power_w=_rounded(signals.power_w, 0),
            power_limit_w=_rounded(signals.power_limit_w, 0),
            memory_used_bytes=signals.memory_used_bytes,
            foreign_memory_bytes=signals.foreign_memory_bytes,
            load_share=_rounded(signals.load_share, 2),
        )

    def without_unit(self) -> DeviceStatus:
        return replace(
            self,
            unit=None,
            unit_kind="",
            work="",
            progress="",
            progress_share=None,
            tokens_per_s=None,
            began_at=None,
            estimate_s=None,
            heard_at=None,
        )

    def to_json(self) -> dict[str, Any]:
        """Every field; moments in ISO 8601.

        >>> DeviceStatus.from_json(DeviceStatus(device_id="cuda:0", duty=0.5).to_json()).duty
        0.5
        """
        value = asdict(self)
        return {name: each.isoformat() if isinstance(each, datetime) else each for name, each in value.items()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DeviceStatus:
        """Of what another release wrote, what this one knows."""
        known = {each.name: value[each.name] for each in fields(DeviceStatus) if value.get(each.name) is not None}
        for name in known.keys() & {"until", "began_at", "heard_at"}:
            known[name] = datetime.fromisoformat(known[name])
        if "reason" in known:
            known["reason"] = _reason(known["reason"])
        if "action" in known:
            known["action"] = Action(known["action"])
        return DeviceStatus(**{"device_id": "", **known})


@dataclass(frozen=True, slots=True, kw_only=True)
class VolunteerStatus:
    """Everything in `status.json`."""

    state: str = "stopped"
    """starting, running, idle, paused, away or stopped."""
    idle_reason: Reason | None = None
    """Why the grid has nothing for this volunteer."""
    awaiting_verdict: int = 0
    isolation: str = ""
    pid: int = 0
    tally: Tally = field(default_factory=Tally)
    """Of all grids that are joined now."""
    grids: tuple[GridStatus, ...] = ()
    """Each of them, in the order of the home."""
    devices: tuple[DeviceStatus, ...] = ()
    unseen: Mapping[str, str] = field(default_factory=dict)
    """What can't be seen of this machine, each with why."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Machines of the owner's cluster that do not compute, each with why."""
    updated_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """As the file has it: the tally's fields lie on top, with the unit and progress of the first busy device."""
        busy = next((device for device in self.devices if device.unit), None)
        return {
            "state": self.state,
            "unit": busy.unit if busy else None,
            "progress": busy.progress if busy else "",
            "idle_reason": None if self.idle_reason is None else asdict(self.idle_reason),
            "awaiting_verdict": self.awaiting_verdict,
            "isolation": self.isolation,
            "grids": [grid.to_json() for grid in self.grids],
            "devices": [device.to_json() for device in self.devices],
            "unseen": dict(self.unseen),
            "left_out": dict(self.left_out),
            "pid": self.pid,
            **asdict(self.tally),
            "updated_at": self.updated_at.isoformat() if self.updated_at else None,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> VolunteerStatus:
        """The inverse; what is missing is as it is before the first run.

        >>> VolunteerStatus.from_json({}) == VolunteerStatus()
        True
        """
        idle, at = value.get("idle_reason"), value.get("updated_at")
        return VolunteerStatus(
            state=str(value.get("state", "stopped")),
            idle_reason=_reason(idle) if idle else None,
            awaiting_verdict=int(value.get("awaiting_verdict", 0)),
            isolation=str(value.get("isolation", "")),
            pid=int(value.get("pid", 0)),
            tally=Tally.from_status(value),
            grids=tuple(GridStatus.from_json(grid) for grid in value.get("grids", ())),
            devices=tuple(DeviceStatus.from_json(device) for device in value.get("devices", ())),
            unseen=dict(value.get("unseen", {})),
            left_out=dict(value.get("left_out", {})),
            updated_at=datetime.fromisoformat(at) if at else None,
        )


def devices_of(facts: Sequence[DeviceFacts], names: Sequence[DeviceId] | None = None) -> dict[DeviceId, DeviceStatus]:
    """A host's devices by name; without names, by torch's: GPUs of a kind are counted in the order they were found.

    >>> gpu = DeviceFacts(kind="cuda", name="A", memory_bytes=1, numerics_class="x")
    >>> list(devices_of([gpu, gpu, DeviceFacts(kind="cpu", name="B", memory_bytes=1, numerics_class="y")]))
    ['cuda:0', 'cuda:1', 'cpu']
    """
    found: dict[DeviceId, DeviceStatus] = {}
    for place, device in enumerate(facts):
        index = sum(each.kind == device.kind for each in found.values())
        torch_name = f"{device.kind}:{index}" if device.kind == "cuda" else device.kind
        name = torch_name if names is None else names[place]
        found[name] = DeviceStatus(device_id=name, **asdict(device))
    return found


def _reason(value: Mapping[str, Any]) -> Reason:
    text = str(value.get("text", ""))
    try:
        return Reason(code=ReasonCode(value["code"]), text=text)
    except ValueError:
        return Reason(code=ReasonCode.OTHER, text=text)


def _rounded(value: float | None, places: int) -> float | None:
    return None if value is None else round(value, places)
