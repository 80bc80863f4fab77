"""What the owner of the machine wants: every key there is, and three presets."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from memgrid.campaign_parts import Number, Part, matching
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.spans import SPAN_FORM, Span, parse_span

KINDS = ("prefill", "study", "train", "evaluate")
CPU: DeviceId = "cpu"
_DEVICE = re.compile(r"(?:[A-Za-z0-9_-]{1,60}/)?(?:cpu|mps|(?:cuda|xpu):\d{1,3})")
"""Of another machine of a cluster with that machine's name before it."""


class Preset(StrEnum):
    POLITE = "polite"
    """Compute while nobody is at the machine, and on the processor a little while somebody is."""
    NIGHT = "night"
    """As polite, from ten in the evening till seven."""
    ALWAYS = "always"
    """A machine that is there for this: compute whatever else it does."""


class InUse(StrEnum):
    RUN = "run"
    THROTTLE = "throttle"
    PAUSE = "pause"


class Metered(StrEnum):
    USE = "use"
    AVOID = "avoid"
    """Transfer nothing while the connection is known to be metered."""
    NEVER = "never"
    """Transfer nothing unless the connection is known not to be metered."""


class Yield(StrEnum):
    RUN = "run"
    PAUSE = "pause"


def _span(text: str) -> str:
    try:
        parse_span(text)
    except ValueError as error:
        raise PydanticCustomError("form", "does not have the expected form") from error
    return text


SpanText = Annotated[StrictStr, AfterValidator(_span)]
KindName = Annotated[StrictStr, matching(KINDS.__contains__)]
DeviceName = Annotated[StrictStr, matching(_DEVICE.fullmatch)]
ProgramName = Annotated[StrictStr, Field(min_length=1, max_length=200)]
_PERCENT = "a whole number from 1 to 100"
_KINDS_FORM = f"names of kinds: {', '.join(KINDS)}"


class DevicePreferences(Part):
    """One device. A cap that is written here has to be seen: where it can't be, the device pauses."""

    enabled: StrictBool = Field(default=True, description="true or false")
    duty_percent: StrictInt = Field(default=100, ge=1, le=100, description=_PERCENT)
    """The share of the time in which it computes."""
    memory_gb: Number | None = Field(default=None, gt=0, le=4096, description="gigabytes, more than 0")
    """The most memory a worker may take of it."""
    temperature_max_c: Number | None = Field(
        default=None, ge=30, le=120, description="degrees Celsius from 30 to 120"
    )
    """It computes less near it, and pauses at it; by default 83 °C for a GPU and 90 °C for the processor."""
    power_max_w: Number | None = Field(default=None, gt=0, le=5000, description="watts, more than 0")
    """It computes for less of the time where it draws more."""


class When(Part):
    """Under which circumstances to compute."""

    hours: tuple[SpanText, ...] = Field(default=(), max_length=50, description=SPAN_FORM)
    """Compute only then; empty is always. Local time; a span may go over midnight."""
    quiet: tuple[SpanText, ...] = Field(default=(), max_length=50, description=SPAN_FORM)
    """Never compute then, whatever `hours` says."""
    idle_minutes: Number = Field(default=5, ge=0, le=1440, description="minutes from 0 to 1440")
    """Somebody is at the machine until it has had no input for so long; 0 does not care about input."""
    while_in_use: InUse = Field(default=InUse.THROTTLE, description="run, throttle or pause")
    """What the processor does while somebody is at the machine."""
    gpu_while_in_use: InUse = Field(default=InUse.PAUSE, description="run, throttle or pause")
    """What GPUs do while somebody is at the machine."""
    in_use_duty_percent: StrictInt = Field(default=25, ge=1, le=100, description=_PERCENT)
    """The share of the time that `throttle` leaves."""
    on_battery: StrictBool = Field(default=False, description="true or false")
    """Whether to compute while the machine runs on its battery."""
    battery_min_percent: StrictInt = Field(default=40, ge=0, le=100, description="a whole number from 0 to 100")
    """On battery, not below this charge."""
    fullscreen: Yield = Field(default=Yield.PAUSE, description="run or pause")
    """What to do while a program fills the screen."""
    exclusive_programs: tuple[ProgramName, ...] = Field(
        default=(), max_length=200, description='names of programs such as "blender"'
    )
    """Nothing is computed while one of them runs."""
    foreign_gpu: Yield = Field(default=Yield.PAUSE, description="run or pause")
    """What a GPU does while another program computes on it, or needs its memory."""
    foreign_load_max_percent: StrictInt = Field(default=25, ge=1, le=100, description=_PERCENT)
    """The processor pauses while other programs keep more of it busy; 100 does not care."""


class Network(Part):
    """What may go over the network."""

    up_kbps: Number | None = Field(default=None, gt=0, description="kilobytes a second, more than 0")
    down_kbps: Number | None = Field(default=None, gt=0, description="kilobytes a second, more than 0")
    month_gb: Number | None = Field(default=None, ge=0, description="gigabytes, 0 or more")
    """Sent and received together, from the first of the month on."""
    metered: Metered = Field(default=Metered.AVOID, description="use, avoid or never")


class Disk(Part):
    """What may lie on the disk."""

    cache_gb: Number = Field(default=20, gt=0, description="gigabytes, more than 0")
    """Room for models and inputs; what was used longest ago goes first."""
    free_min_gb: Number = Field(default=2, ge=0, description="gigabytes, 0 or more")
    """Nothing is computed while less of the disk is free."""


class Work(Part):
    """Which units to take; an empty list of what is wanted takes all."""

    kinds: tuple[KindName, ...] = Field(default=(), description=_KINDS_FORM)
    kinds_avoided: tuple[KindName, ...] = Field(default=(), description=_KINDS_FORM)
    campaigns: tuple[StrictStr, ...] = Field(default=(), max_length=1000, description="names or ids of campaigns")
    campaigns_avoided: tuple[StrictStr, ...] = Field(
        default=(), max_length=1000, description="names or ids of campaigns"
    )
    max_runtime_minutes: Number | None = Field(default=None, gt=0, description="minutes, more than 0")
    """Units that are estimated to take longer are not taken."""


class Preferences(Part):
    """All of it, with what the preset says where the file is silent."""

    preset: Preset = Field(default=Preset.POLITE, description="polite, night or always")
    devices: dict[DeviceName, DevicePreferences] = Field(
        default={}, max_length=64, description='devices such as cpu, mps or "cuda:0"'
    )
    when: When = Field(default=When(), description="a table [when]")
    network: Network = Field(default=Network(), description="a table [network]")
    disk: Disk = Field(default=Disk(), description="a table [disk]")
    work: Work = Field(default=Work(), description="a table [work]")

    def device(self, device_id: DeviceId) -> DevicePreferences:
        """What holds for a device; for one of another machine what is said of its like, where nothing is of itself.

        >>> said = {"cuda:0": {"duty_percent": 50, "memory_gb": 8}, "gpu-7/cuda:0": {"duty_percent": 100}}
        >>> own = preferences_of({"devices": said}).device("gpu-7/cuda:0")
        >>> own.duty_percent, own.memory_gb
        (100, 8.0)
        """
        own = self.devices.get(device_id, _NOTHING_SAID)
        _, is_far, like = device_id.rpartition("/")
        if not is_far or like not in self.devices:
            return own
        return self.devices[like].model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


_NOTHING_SAID = DevicePreferences()

PRESETS: dict[Preset, dict[str, Any]] = {
    Preset.POLITE: {},
    Preset.NIGHT: {"when": {"hours": ("22:00-07:00",)}},
    Preset.ALWAYS: {
        "when": {
            "idle_minutes": 0,
            "while_in_use": "run",
            "gpu_while_in_use": "run",
            "fullscreen": "run",
            "foreign_gpu": "run",
            "foreign_load_max_percent": 100,
        }
    },
}
"""What each preset says other than the defaults above."""


def preferences_of(said: dict[str, Any]) -> Preferences:
    """What the owner has said, over what the preset says. Raises pydantic's ValidationError.

    >>> preferences_of({"preset": "night", "when": {"idle_minutes": 1}}).when.hours
    ('22:00-07:00',)
    """
    preset = said.get("preset", Preset.POLITE)
    base = PRESETS[Preset(preset)] if preset in list(Preset) else {}
    return Preferences.model_validate(_over(base, said))


def _over(base: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in said.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


@lru_cache(maxsize=64)
def spans_of(texts: tuple[str, ...]) -> tuple[Span, ...]:
    """The spans of a list that was validated."""
    return tuple(parse_span(text) for text in texts)
