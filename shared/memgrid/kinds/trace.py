"""The trace of training: what each logical step was like."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from memgrid.digest import canonical_json
from memgrid.errors import InvalidError
from memgrid.specs import TrainSpec

TRACE_FILE = "trace.json"
TRACE_FORMAT = "memgrid.trace.v1"
_STEP_BYTES_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """What one logical step was like before its update: its mean loss an answer token, and its gradient's norm."""

    step: int
    loss: float
    tokens: int
    gradient_norm: float


def trace_bytes(trace: Sequence[StepTrace]) -> bytes:
    """The content of trace.json."""
    return canonical_json({"format": TRACE_FORMAT, "steps": [asdict(entry) for entry in trace]})


def trace_bytes_max(spec: TrainSpec) -> int:
    return _STEP_BYTES_MAX * (1 + spec.stop_step - spec.first_step)


def read_trace(content: bytes) -> tuple[StepTrace, ...]:
    """Raises InvalidError unless it is a trace of finite numbers.

    >>> entry = StepTrace(step=4, loss=1.25, tokens=300, gradient_norm=0.5)
    >>> read_trace(trace_bytes([entry])) == (entry,)
    True
    """
    try:
        value = json.loads(content)
        if value.pop("format") != TRACE_FORMAT or set(value) != {"steps"}:
            raise InvalidError(f"{TRACE_FILE}: expected format {TRACE_FORMAT} and steps")
        trace = tuple(
            StepTrace(
                step=int(each["step"]),
                loss=float(each["loss"]),
                tokens=int(each["tokens"]),
                gradient_norm=float(each["gradient_norm"]),
            )
            for each in value["steps"]
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InvalidError(f"{TRACE_FILE}: {type(error).__name__}: {error}"[:300]) from None
    if not all(math.isfinite(each.loss) and math.isfinite(each.gradient_norm) for each in trace):
        raise InvalidError(f"{TRACE_FILE}: expected finite numbers")
    return trace
