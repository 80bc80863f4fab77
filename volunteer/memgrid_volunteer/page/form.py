"""The preferences that most people want to change, as the page's form shows them; all others are in the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from memgrid.errors import InvalidError
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.preferences import InUse, Preferences, Preset
from memgrid_volunteer.owner.preferences_file import PreferencesFile


class FieldKind(StrEnum):
    FLAG = "flag"
    NUMBER = "number"
    CHOICE = "choice"
    LIST = "list"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """One key; `value` is what holds now, whoever said it."""

    key: str
    label: str
    kind: FieldKind
    hint: str = ""
    empty: str = ""
    """What holds while nothing is written."""
    choices: tuple[tuple[str, str], ...] = ()
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FormGroup:
    title: str
    fields: tuple[FormField, ...]


_IN_USE = ((InUse.PAUSE, "pause"), (InUse.THROTTLE, "compute a little"), (InUse.RUN, "compute as always"))
_SPANS = "as 22:00-07:00, mon-fri 9:00-17:00"
_WHEN = (
    FormField(
        key="when.idle_minutes",
        label="Counts as in use for (minutes)",
        kind=FieldKind.NUMBER,
        hint="after the last key or mouse",
    ),
    FormField(
        key="when.while_in_use", label="While in use, the processor may", kind=FieldKind.CHOICE, choices=_IN_USE
    ),
    FormField(key="when.gpu_while_in_use", label="While in use, GPUs may", kind=FieldKind.CHOICE, choices=_IN_USE),
    FormField(key="when.hours", label="Only at these times", kind=FieldKind.LIST, hint=_SPANS, empty="always"),
    FormField(key="when.quiet", label="Never at these times", kind=FieldKind.LIST, hint=_SPANS, empty="none"),
    FormField(key="when.on_battery", label="Compute on battery, too", kind=FieldKind.FLAG),
)
_LIMITS = (
    FormField(key="disk.cache_gb", label="Room for models and inputs (GB)", kind=FieldKind.NUMBER),
    FormField(key="network.month_gb", label="Network, each month (GB)", kind=FieldKind.NUMBER, empty="no limit"),
)
_OF_DEVICE = (
    FormField(key="enabled", label="Use it", kind=FieldKind.FLAG),
    FormField(key="duty_percent", label="Share of the time (%)", kind=FieldKind.NUMBER),
    FormField(key="temperature_max_c", label="Warmest (°C)", kind=FieldKind.NUMBER, empty="as usual"),
    FormField(key="power_max_w", label="Most power (W)", kind=FieldKind.NUMBER, empty="no limit"),
    FormField(key="memory_gb", label="Most memory (GB)", kind=FieldKind.NUMBER, empty="no limit"),
)
PRESETS = (
    (Preset.POLITE, "Polite", "computes while nobody is at the machine"),
    (Preset.NIGHT, "Night", "as polite, from ten in the evening till seven"),
    (Preset.ALWAYS, "Always", "a machine that is there for this"),
)


def form_facts(file: PreferencesFile, devices: Sequence[tuple[DeviceId, str]]) -> dict[str, Any]:
    """The file as it is, what is wrong with it, and the form; which is empty while nobody knows what holds."""
    try:
        preferences = file.current()
    except InvalidError:
        preferences = None
    return {
        "path": str(file.path),
        "text": _text(file),
        "problems": list(file.problems),
        "preset": "" if preferences is None else preferences.preset.value,
        "presets": [(preset.value, name, words) for preset, name, words in PRESETS],
        "groups": [] if preferences is None else [asdict(group) for group in _groups(preferences, devices)],
    }


def change(file: PreferencesFile, wish: Any) -> None:
    """Do what the form, the presets or the editor ask for. Raises InvalidError, and then nothing has changed."""
    match wish:
        case {"preset": str(name), **rest} if not rest and name in list(Preset):
            file.choose(Preset(name))
        case {"text": str(text), **rest} if not rest:
            file.replace(text)
        case {"key": str(key), "value": None, **rest} if not rest:
            file.unset(key)
        case {"key": str(key), "value": value, **rest} if not rest and isinstance(
            value, bool | int | float | str | list
        ):
            file.set(key, _as_toml(value))
        case _:
            raise InvalidError("expected a preset, a text, or a key and its value")


def _groups(preferences: Preferences, devices: Sequence[tuple[DeviceId, str]]) -> list[FormGroup]:
    groups = [FormGroup(title="When to compute", fields=tuple(_filled(field, preferences) for field in _WHEN))]
    for device_id, name in devices:
        own = preferences.device(device_id)
        fields = tuple(
            replace(field, key=f'devices."{device_id}".{field.key}', value=getattr(own, field.key))
            for field in _OF_DEVICE
        )
        groups.append(FormGroup(title=f"{device_id}: {name}" if name else device_id, fields=fields))
    return [*groups, FormGroup(title="Limits", fields=tuple(_filled(field, preferences) for field in _LIMITS))]


def _filled(field: FormField, preferences: Preferences) -> FormField:
    table, _, name = field.key.partition(".")
    value = getattr(getattr(preferences, table), name)
    return replace(field, value=list(value) if isinstance(value, tuple) else value)


def _text(file: PreferencesFile) -> str:
    try:
        return file.text()
    except InvalidError:
        return ""


def _as_toml(value: bool | float | str | list[Any]) -> str:
    """A value of JSON as TOML writes it, which is the same for all that a form has.

    >>> _as_toml(True), _as_toml(2.5), _as_toml(["22:00-07:00"]), _as_toml('say "no"')
    ('true', '2.5', '["22:00-07:00"]', '"say \\\\"no\\\\""')
    """
    return json.dumps(value)
