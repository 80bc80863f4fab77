"""Which devices a volunteer has, under names that a reboot does not change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memgrid.units import DeviceFacts
from memgrid_volunteer.kinds.job import DeviceId, WorkerDevice
from memgrid_volunteer.owner.files import write_whole
from memgrid_volunteer.owner.preferences import CPU, Preferences

_NAMES_FILE = "devices.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDevice:
    """`device_id` is what its owner calls it; `torch_id` where torch finds it now, which a reboot may change."""

    device_id: DeviceId
    torch_id: DeviceId
    uuid: str
    facts: DeviceFacts

    def told(self) -> WorkerDevice:
        """As those who watch it want it: by its owner's name."""
        return WorkerDevice(device_id=self.device_id, uuid=self.uuid, facts=self.facts)


def named(found: Sequence[WorkerDevice], known: Mapping[str, DeviceId]) -> tuple[NamedDevice, ...]:
    """The devices found, each under the name that its uuid had before; what is new gets a name that nobody has.

    So preferences and pauses stay with the card they were meant for, whatever order a driver counts in.

    >>> facts = DeviceFacts(kind="cuda", name="A", memory_bytes=1, numerics_class="x")
    >>> found = [WorkerDevice(device_id=f"cuda:{n}", uuid=f"GPU-{u}", facts=facts) for n, u in enumerate("bca")]
    >>> [device.device_id for device in named(found, {"GPU-a": "cuda:0", "GPU-b": "cuda:1"})]
    ['cuda:1', 'cuda:2', 'cuda:0']
    """
    taken = {*known.values(), *(device.device_id for device in found if not device.uuid)}
    names = []
    for device in found:
        name = known.get(device.uuid) if device.uuid else device.device_id
        if name is None:
            name = _free(device.device_id, taken)
            taken.add(name)
        names.append(NamedDevice(device_id=name, torch_id=device.device_id, uuid=device.uuid, facts=device.facts))
    return tuple(names)


def remembered(found: Sequence[WorkerDevice], folder: Path) -> tuple[NamedDevice, ...]:
    """The same with what this folder remembers, which is brought up to date."""
    known = known_names(folder)
    devices = named(found, known)
    names = known | {device.uuid: device.device_id for device in devices if device.uuid}
    if names != known:
        write_whole(folder / _NAMES_FILE, dict(names))
    return devices


def known_names(folder: Path) -> dict[str, DeviceId]:
    """The name of every device that was ever found, by its uuid."""
    try:
        value = json.loads((folder / _NAMES_FILE).read_bytes())
        return {str(uuid): str(name) for uuid, name in value.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def used(devices: Sequence[NamedDevice], preferences: Preferences) -> frozenset[DeviceId]:
    """The devices that compute unless something stands against it: GPUs, and the processor where there is none.

    An owner who writes `devices.cpu.enabled` decides.
    """
    said = preferences.devices.get(CPU)
    is_said = said is not None and "enabled" in said.model_fields_set
    gpus = frozenset(device.device_id for device in devices if device.facts.kind != CPU)
    if gpus and not (is_said and said is not None and said.enabled):
        return gpus
    return frozenset(device.device_id for device in devices)


def _free(wanted: DeviceId, taken: set[DeviceId]) -> DeviceId:
    kind, _, number = wanted.partition(":")
    if wanted not in taken or not number:
        return wanted
    index = 0
    while f"{kind}:{index}" in taken:
        index += 1
    return f"{kind}:{index}"
