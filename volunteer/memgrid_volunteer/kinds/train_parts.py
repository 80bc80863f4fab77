"""A training unit in the middle of a segment on disk: the state before the present step, and its rows so far.

Knows tensors and their form. Whoever reads these files believes nothing but what it can see: names and shapes are
those of the unit's start, steps and rows are within the unit, all numbers are finite.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from memgrid.distill.state import Arrays, TrainState, read_state, state_bytes
from memgrid.distill.training import StepSoFar
from memgrid.errors import InvalidError
from memgrid.kinds.tensorfile import TensorFile
from memgrid.kinds.trace import StepTrace, read_trace, trace_bytes
from memgrid.specs import TrainSpec

_FORMAT = "memgrid.step-part.v1"
_GRADIENT = "gradient/"


def parts_bytes(so_far: StepSoFar) -> tuple[bytes, bytes]:
    """The state, and what has been done since."""
    tensors = {
        **{_GRADIENT + name: value for name, value in so_far.gradient.items()},
        "losses": so_far.losses,
        "rows": np.array([so_far.rows], dtype=np.int64),
        "trace": np.frombuffer(trace_bytes(so_far.trace), dtype=np.uint8),
    }
    return state_bytes(so_far.state), save(tensors, metadata={"format": _FORMAT})


def read_parts(spec: TrainSpec, start: TrainState, paths: tuple[Path, Path]) -> StepSoFar | None:
    """None unless these files could be of this unit, which began with `start`."""
    try:
        state = read_state(paths[0])
        file = TensorFile.open(paths[1])
        if file.metadata != {"format": _FORMAT}:
            return None
        so_far = _so_far(state, file)
    except (OSError, InvalidError, KeyError, ValueError):
        return None
    if not is_of(start, state.parameters) or not is_of(start, so_far.gradient):
        return None
    if not state.has_moments or not fits(spec, so_far.state, so_far.trace):
        return None
    finite = all(np.isfinite(value).all() for value in (*so_far.gradient.values(), so_far.losses))
    is_bounded = 0 <= so_far.rows <= spec.batch_rows and len(so_far.losses) <= so_far.rows * spec.row_tokens
    return so_far if finite and is_bounded else None


def is_of(start: TrainState, found: Arrays) -> bool:
    """Whether these have the names and shapes of what is trained."""
    shapes = {name: value.shape for name, value in start.parameters.items()}
    return {name: value.shape for name, value in found.items()} == shapes


def fits(spec: TrainSpec, state: TrainState, trace: tuple[StepTrace, ...]) -> bool:
    """Whether a state is within the unit, and the trace is that of every step before it."""
    steps = [entry.step for entry in trace]
    return spec.first_step <= state.step <= spec.stop_step and steps == list(range(spec.first_step, state.step))


def _so_far(state: TrainState, file: TensorFile) -> StepSoFar:
    gradient = {
        name.removeprefix(_GRADIENT): file.float32(name) for name in file.tensors if name.startswith(_GRADIENT)
    }
    losses = file.float32("losses")
    if losses.ndim != 1 or file.tensors["rows"].dtype != "I64" or file.tensors["trace"].dtype != "U8":
        raise InvalidError("not a part of a step")
    return StepSoFar(
        state=state,
        trace=read_trace(bytes(file.raw("trace"))),
        rows=int(file.bits("rows").reshape(-1)[0]),
        gradient=gradient,
        losses=losses,
    )
