"""What the supervisor and its worker say to each other: one JSON object a line."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memgrid.errors import InvalidError
from memgrid.units import ComputeDtype, DeviceFacts, Reason, ReasonCode, WorkFacts

SKETCH_FILE = "sketch.safetensors"
DeviceId = str
"""A device of this machine as torch names it: `cuda:0`, `mps`, `cpu`."""
_NAME_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One unit to run: inputs in `unit_dir`, weights in `model_dir`, results go to `out_dir`."""

    kind: str
    unit_dir: Path
    model_dir: Path
    out_dir: Path

    def to_line(self) -> bytes:
        value = {name: str(field) for name, field in asdict(self).items()}
        return json.dumps(value).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Job:
        value = json.loads(line)
        return Job(
            kind=value["kind"],
            unit_dir=Path(value["unit_dir"]),
            model_dir=Path(value["model_dir"]),
            out_dir=Path(value["out_dir"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDevice:
    """A device that a worker found; `uuid` is the maker's name for it (`GPU-…`), "" when it has none."""

    device_id: DeviceId
    uuid: str
    facts: DeviceFacts

    @staticmethod
    def from_json(value: dict[str, Any]) -> WorkerDevice:
        """The inverse of `asdict`; raises KeyError, TypeError or ValueError."""
        facts = value["facts"]
        return WorkerDevice(
            device_id=str(value["device_id"])[:_NAME_MAX],
            uuid=str(value["uuid"])[:_NAME_MAX],
            facts=DeviceFacts(
                kind=str(facts["kind"]),
                name=str(facts["name"]),
                memory_bytes=int(facts["memory_bytes"]),
                numerics_class=str(facts["numerics_class"]),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A worker's first line: it is ready, and this is what it found, what it computes with first."""

    devices: tuple[WorkerDevice, ...]

    def to_line(self) -> bytes:
        return json.dumps({"devices": [asdict(device) for device in self.devices]}).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Hello:
        try:
            return Hello(devices=tuple(WorkerDevice.from_json(device) for device in json.loads(line)["devices"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InvalidError(f"worker: not a greeting: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceLine:
    """The supervisor's word, at any time: compute for `duty` of the time; 0: hold, with all that is in memory."""

    duty: float

    def to_line(self) -> bytes:
        return json.dumps({"pace": asdict(self)}).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> PaceLine | None:
        """None when the line is something else, such as a job.

        >>> PaceLine.from_line(PaceLine(duty=0.5).to_line())
        PaceLine(duty=0.5)
        """
        try:
            duty = float(json.loads(line)["pace"]["duty"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        return PaceLine(duty=min(max(duty, 0.0), 1.0)) if duty == duty else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the running unit has got: the share that is done, and a few words for people."""

    done: float
    text: str
    tokens_per_s: float | None = None
    """How fast this run computes, resting left out."""

    def to_line(self) -> bytes:
        return json.dumps({"progress": asdict(self)}).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Progress | None:
        """None when the line is no progress but something else, such as an outcome.

        >>> Progress.from_line(Progress(done=0.375, text="step 12 of 32, loss 1.23").to_line())
        Progress(done=0.375, text='step 12 of 32, loss 1.23', tokens_per_s=None)
        """
        try:
            value = json.loads(line)["progress"]
            done, text = float(value["done"]), str(value["text"])
            speed = _measure(value.get("tokens_per_s"))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError):
            return None
        return Progress(done=min(max(done, 0.0), 1.0), text=text[:200], tokens_per_s=speed) if done == done else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A worker's answer to a job: the facts of what it did, or why it could not."""

    facts: WorkFacts | None = None
    failure: Reason | None = None
    utilisation: float | None = None
    """The unit's floating-point operations a second, as a share of what this device was measured to reach."""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Outcome:
        try:
            value = json.loads(line)
            facts, failure = value["facts"], value["failure"]
            return Outcome(
                facts=facts_from_json(facts) if facts else None,
                failure=Reason(code=ReasonCode(failure["code"]), text=failure["text"]) if failure else None,
                utilisation=_measure(value.get("utilisation")),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InvalidError(f"worker: not an outcome: {error}") from None


def _measure(value: object) -> float | None:
    """A number that was measured, None when there is none; raises TypeError or ValueError when it is no number."""
    if value is None:
        return None
    number = float(str(value))
    return number if math.isfinite(number) and number >= 0 else None


def facts_from_json(value: dict[str, object]) -> WorkFacts:
    """The inverse of `asdict`; raises KeyError, TypeError or ValueError."""
    return WorkFacts(
        tokens=int(str(value["tokens"])),
        compute_s=float(str(value["compute_s"])),
        device_kind=str(value["device_kind"]),
        numerics_class=str(value["numerics_class"]),
        compute_dtype=ComputeDtype(str(value["compute_dtype"])),
        torch_version=str(value["torch_version"]),
    )
