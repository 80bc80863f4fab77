"""The scenario file: who takes part in a simulated grid, what is computed, and which policies are compared."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError, create_model, model_validator

from memgrid.campaign_parts import Number, Part, contradiction
from memgrid.campaign_problems import problems_of
from memgrid.errors import InvalidError
from memgrid_coordinator.policy.tails import TailRule
from memgrid_coordinator.policy.trust import TrustRule
from memgrid_coordinator.simulation.behaviour import Kind

SCENARIO_BYTES_MAX = 1 << 20

Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Label = Annotated[StrictStr, Field(min_length=1, max_length=64)]

_SHARE = "a number from 0 to 1"
_POSITIVE = "a number above 0"
_NOT_NEGATIVE = "a number of at least 0"


class PolicyName(StrEnum):
    """Which rule decides what is accepted."""

    MEMGRID = "memgrid"
    QUORUM2 = "quorum2"
    BOINC_ADAPTIVE = "boinc_adaptive"
    POCO = "poco"


class Device(Part):
    """Machines of one make."""

    name: Label = Field(description="a name")
    share: Positive = Field(description="a number above 0: how many of the hosts, relative to the other devices")
    flops_per_s: Positive = Field(description="operations per second above 0")
    spread: NotNegative = Field(default=0.5, description="the deviation of the logarithm of speeds, at least 0")
    numerics_class: Label | None = Field(default=None, description="a name; the device's own where left out")


class Availability(Part):
    """How long machines are on and off, each exponentially distributed; off_hours 0 is always on."""

    on_hours: Positive = Field(default=8.0, description="hours above 0")
    off_hours: NotNegative = Field(default=8.0, description="hours of at least 0")

    @property
    def share(self) -> float:
        """Of the time, how much a host is on."""
        return self.on_hours / (self.on_hours + self.off_hours)


class Detection(Part):
    """How a wrong result of a population looks to whoever checks it."""

    audit: Share = Field(default=0.95, description=_SHARE)
    """How likely one audit finds a fault."""
    suspicious: Share = Field(default=0.0, description=_SHARE)
    """How likely it finds something suspicious instead."""
    sketch: Share = Field(default=1.0, description=_SHARE)
    """How likely the comparison with a right result sees it."""

    @model_validator(mode="after")
    def _one_outcome(self) -> Self:
        if self.audit + self.suspicious > 1:
            raise contradiction("suspicious", f"at most {1 - self.audit:g} beside audit", self.suspicious)
        return self


class Population(Part):
    """Hosts that behave alike."""

    name: Label = Field(description="a name")
    share: Share = Field(description="a number from 0 to 1: how many of all hosts")
    kind: Kind = Field(description=", ".join(Kind))
    wrong_rate: Share = Field(default=0.0, description=_SHARE)
    """Of its results, how many are wrong while it is at it."""
    group: StrictInt = Field(default=1, ge=0, description="a whole number; 0 puts all of a kind into one group")
    """How many hosts give the same wrong answers."""
    only_together: StrictBool = Field(default=False, description="true or false")
    """Whether a group cheats only on units that two of it were given."""
    detection: Detection = Field(default=Detection(), description="a mapping with audit, suspicious, sketch")
    self_check: Share = Field(default=0.0, description=_SHARE)
    """Of its wrong results, how many the host finds itself before it reports, and computes again."""
    devices: tuple[Label, ...] = Field(default=(), description="a list of devices")
    """Empty: the mix of all."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.kind is Kind.HONEST and self.wrong_rate:
            raise contradiction("wrong_rate", "0 for honest hosts (those that err are flaky)", self.wrong_rate)
        if self.kind is not Kind.HONEST and not self.wrong_rate:
            raise contradiction("wrong_rate", f"a number above 0 for {self.kind} hosts", self.wrong_rate)
        return self


class Networks(Part):
    """Where hosts call from."""

    prefixes: StrictInt = Field(default=10_000, ge=1, le=1 << 16, description="a whole number from 1 to 65536")
    """How many networks (/24) there are; a group of Sybils has one."""
    private_share: Share = Field(default=0.0, description=_SHARE)
    """Of the hosts, how many have an address that says nothing."""
    report_delay_s: NotNegative = Field(default=30.0, description="seconds of at least 0")
    """A result is reported within this time, evenly spread."""


class Campaign(Part):
    """Work that arrives at once."""

    name: Label = Field(description="a name")
    units: StrictInt | None = Field(default=None, ge=1, description="a whole number of at least 1, or null: endless")
    unit_flops: Positive = Field(description="operations above 0")
    spread: NotNegative = Field(default=0.3, description="the deviation of the logarithm of costs, at least 0")
    arrives_hour: NotNegative = Field(default=0.0, description="hours of at least 0")
    min_replicas: StrictInt = Field(default=1, ge=1, le=2, description="1 or 2")
    """Only memgrid's own policy asks: 1 is adaptive."""


class Audits(Part):
    """What checking costs, and how often it wrongs honest hosts."""

    cost: Share = Field(default=0.1, description=_SHARE)
    """Of one audit, as a share of computing the unit."""
    suspicious: Share = Field(default=1e-3, description=_SHARE)
    """How often an audit of a right result is suspicious."""
    suspicious_again: Share = Field(default=0.5, description=_SHARE)
    """How often the second audit of such a result is suspicious too."""
    fault: Share = Field(default=0.0, description=_SHARE)
    """How often an audit of a right result finds a fault, and confirms it."""


class Tails(Part):
    """Whether the last units of a campaign are computed twice."""

    copies: StrictBool = Field(default=True, description="true or false")
    speedup_min: Positive = Field(default=TailRule().speedup_min, description=_POSITIVE)
    copied_share_max: Share = Field(default=TailRule().copied_share_max, description=_SHARE)

    @property
    def rule(self) -> TailRule:
        return TailRule(speedup_min=self.speedup_min, copied_share_max=self.copied_share_max)


_HOURS = "provisional_max_hours"
_RULE = TrustRule()
_KEYS: dict[str, Any] = {
    field.name: (type(field.default), Field(default=field.default, ge=0, strict=True, description=_NOT_NEGATIVE))
    for field in fields(TrustRule)
    if not isinstance(field.default, timedelta)
}
_KEYS[_HOURS] = (Positive, Field(default=_RULE.provisional_max / timedelta(hours=1), description="hours above 0"))
TrustKeys: type[Part] = create_model("TrustKeys", __base__=Part, **_KEYS)
"""The keys of TrustRule, with its defaults."""


def rule_of(part: Part) -> TrustRule:
    """The rule that a scenario's `trust` block means."""
    values = part.model_dump()
    return TrustRule(provisional_max=timedelta(hours=values.pop(_HOURS)), **values)


class Scenario(Part):
    """A simulated grid."""

    name: Label = Field(description="a name")
    seed: StrictInt = Field(default=1, description="a whole number")
    days: Positive = Field(default=30.0, description="days above 0")
    hosts: StrictInt = Field(ge=2, le=1_000_000, description="a whole number from 2 to 1000000")
    partition_hosts: StrictInt = Field(default=2500, ge=2, description="a whole number of at least 2")
    """The grid is simulated in independent parts of at most so many hosts."""
    devices: tuple[Device, ...] = Field(min_length=1, description="a list of at least one device")
    availability: Availability = Field(default=Availability(), description="a mapping with on_hours, off_hours")
    lifetime_days: Positive | None = Field(default=None, description="days above 0, or nothing")
    """How long hosts stay, exponentially distributed; for each that leaves a new one comes."""
    populations: tuple[Population, ...] = Field(min_length=1, description="a list of at least one population")
    networks: Networks = Field(default=Networks(), description="a mapping")
    campaigns: tuple[Campaign, ...] = Field(min_length=1, description="a list of at least one campaign")
    audits: Audits = Field(default=Audits(), description="a mapping")
    trust: TrustKeys = Field(default=TrustKeys(), description="a mapping")  # type: ignore[valid-type]
    tails: Tails = Field(default=Tails(), description="a mapping")
    ahead: StrictInt = Field(default=2, ge=1, le=64, description="a whole number from 1 to 64")
    """How many leases a host wants to hold."""
    held_max: StrictInt = Field(default=64, ge=1, description="a whole number of at least 1")
    poco_trust: StrictInt = Field(default=100, ge=2, description="a whole number of at least 2")
    """PoCo accepts when the likelihood exceeds 1 - 1/T."""
    policies: tuple[PolicyName, ...] = Field(
        default=(PolicyName.MEMGRID,), min_length=1, description=f"a list of {', '.join(PolicyName)}"
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum(population.share for population in self.populations)
        if abs(total - 1) > 1e-6:
            raise contradiction("populations", "shares that add up to 1", f"{total:g}")
        known = {device.name for device in self.devices}
        for at, population in enumerate(self.populations):
            if unknown := set(population.devices) - known:
                raise contradiction(f"populations[{at}].devices", f"some of {sorted(known)}", sorted(unknown)[0])
        return self

    @staticmethod
    def load(path: Path) -> Scenario:
        """Read a file; raises InvalidError with one line for each problem."""
        try:
            with path.open("rb") as file:
                content = file.read(SCENARIO_BYTES_MAX + 1)
        except OSError as error:
            raise InvalidError(f"{path}: expected a scenario file, found: {error.strerror}") from None
        if len(content) > SCENARIO_BYTES_MAX:
            raise InvalidError(f"{path}: expected at most {SCENARIO_BYTES_MAX} bytes")
        return Scenario.parse(content, where=path.name)

    @staticmethod
    def parse(content: bytes, *, where: str) -> Scenario:
        """The scenario in some YAML; `where` begins every line of an error."""
        try:
            value = yaml.safe_load(content)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
            found = " ".join(str(error).split())[:200]
            raise InvalidError(f"{where}: expected YAML, found: {found}") from None
        if not isinstance(value, dict):
            raise InvalidError(f"{where}: expected a mapping with name, hosts, … found {type(value).__name__}")
        try:
            return Scenario.model_validate(value)
        except ValidationError as error:
            raise InvalidError("\n".join(f"{where}: {line}" for line in problems_of(error, Scenario))) from None
