"""What a supervisor and a station say to each other; whole files go beside it, as bytes in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from memgrid.errors import UnavailableError
from memgrid.units import BlobRef, HostFacts
from memgrid_volunteer.devices import NamedDevice
from memgrid_volunteer.kinds.job import DeviceId, Outcome, Progress
from memgrid_volunteer.machine import Workers
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.signals import DeviceSignals, Pause

PIECE_BYTES = 16 << 20
"""Of a file in one message: several fit into the smallest of Ray's object stores."""
PACKED = "packed"
"""The name of a half-done unit's committed files, which travel as one."""
ARRIVING = "from-nodes"
LEFT = "left"
"""Folders beside those that workers see: whoever reads or writes for them must not be led elsewhere by a link."""
TaskName = str
"""Of one lease's part on a node: grids choose the ids of leases without knowing of each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the owner says that holds on a machine, now; `preferences` as text of `volunteer.toml`."""

    preferences: str
    pauses: tuple[Pause, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a station begins."""

    version: str
    """Of the supervisor's memgrid: two releases may compute otherwise."""
    platform: str
    """Of its machine: what a host says of itself is to hold for all of it."""
    workers: Workers
    wanted: Wanted
    cache_bytes: int | None
    """Room for models and inputs; None: as the preferences say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a station has found on its machine; devices by the machine's own names, in the order of the facts."""

    facts: HostFacts
    devices: tuple[NamedDevice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """How a machine stands; `number` grows with every change but those of readings."""

    number: int = 0
    decisions: Mapping[DeviceId, Decision] = field(default_factory=dict)
    signals: Mapping[DeviceId, DeviceSignals] = field(default_factory=dict)
    progress: Mapping[TaskName, Progress] = field(default_factory=dict)
    """Of the units that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a unit ended there, and which files are to be fetched: its outputs, or `PACKED`, or none."""

    outcome: Outcome
    files: tuple[BlobRef, ...] = ()
    decision: Decision
    """Of its device, by then."""


class NodeGoneError(UnavailableError):
    """A machine, or what ran there, is not there any more; the text says why as far as that is known."""


class Call(Protocol):
    """Calls a method of one station; bytes go and come as such."""

    async def __call__(self, method: str, *args: Any, limit_s: float | None = None) -> Any:
        """Raises the method's own MemgridError, and NodeGoneError when there is no answer or none in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A machine that belongs to the cluster now."""

    node_id: str
    host: str


class Nodes(Protocol):
    """The machines of a cluster, and a way to have stations on them; what blocks is called in a thread."""

    def look(self) -> tuple[Found, ...]:
        """All but this one; blocks. Raises UnavailableError when the cluster does not answer."""

    def begin(self, found: Found, terms: Terms) -> Call:
        """Start a station there; blocks for a moment. Its first call says how that went."""

    def end(self, call: Call) -> None:
        """End a station, and all that it runs; pending calls of it end, too."""
