"""What devices of other machines are called here, and what their owner says of them, as such a machine reads it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import tomlkit

from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.preferences import Preferences
from memgrid_volunteer.owner.signals import Pause

NodeName = str
_CHARS_MAX = 40


def node_name(host: str, taken: Collection[NodeName]) -> NodeName:
    """What a machine is called: the first part of its host's name, with a number when another one has it.

    >>> node_name("gpu-7.lab.example", ()), node_name("gpu-7", {"gpu-7"}), node_name("10.0.0.7", ())
    ('gpu-7', 'gpu-7-2', '10-0-0-7')
    """
    first = host.partition(".")[0]
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", host if first.isdigit() else first)[:_CHARS_MAX] or "node"
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def far_id(node: NodeName, device_id: DeviceId) -> DeviceId:
    """A device of another machine, as it is called here.

    >>> far_id("gpu-7", "cuda:0")
    'gpu-7/cuda:0'
    """
    return f"{node}/{device_id}"


def preferences_on(node: NodeName, preferences: Preferences) -> Preferences:
    """What holds on a machine: its own keys over those that are said of all.

    >>> from memgrid_volunteer.owner.preferences import preferences_of
    >>> said = {"devices": {"cuda:0": {"duty_percent": 50}, "gpu-7/cuda:0": {"memory_gb": 8}}}
    >>> there = preferences_on("gpu-7", preferences_of(said)).devices
    >>> list(there), there["cuda:0"].duty_percent, there["cuda:0"].memory_gb
    (['cuda:0'], 50, 8.0)
    """
    names = {name for name in preferences.devices if "/" not in name}
    names |= {name.removeprefix(f"{node}/") for name in preferences.devices if name.startswith(f"{node}/")}
    devices = {name: preferences.device(far_id(node, name)) for name in sorted(names)}
    return preferences.model_copy(update={"devices": devices}) if preferences.devices else preferences


def preferences_text(preferences: Preferences) -> str:
    """As `volunteer.toml` would have them: what nobody said is not said there either, for that can matter.

    >>> from memgrid_volunteer.owner.preferences import preferences_of
    >>> from memgrid_volunteer.owner.preferences_toml import read_preferences
    >>> said = preferences_of({"preset": "night", "devices": {"cpu": {"duty_percent": 50}}})
    >>> again = read_preferences(preferences_text(said), "")
    >>> again == said, again.devices["cpu"].model_fields_set
    (True, {'duty_percent'})
    """
    return tomlkit.dumps(preferences.model_dump(mode="json", exclude_none=True, exclude_unset=True))


def pauses_on(node: NodeName, pauses: Iterable[Pause]) -> tuple[Pause, ...]:
    """The pauses that are about a machine: those of everything, of it as a whole, and of its devices.

    >>> said = [Pause(device_id=name) for name in ("gpu-7/cuda:0", "cuda:0", "gpu-7")]
    >>> [pause.device_id for pause in pauses_on("gpu-7", said)]
    ['cuda:0', None]
    """
    found = []
    for pause in pauses:
        if pause.device_id in (None, node):
            found.append(Pause(until=pause.until, is_until_restart=pause.is_until_restart))
        elif pause.device_id is not None and pause.device_id.startswith(f"{node}/"):
            device_id = pause.device_id.removeprefix(f"{node}/")
            found.append(Pause(device_id=device_id, until=pause.until, is_until_restart=pause.is_until_restart))
    return tuple(found)
