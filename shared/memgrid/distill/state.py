"""The state of training as a file: what is trained, Adam's moments, and the step.

It holds float32 parameters under PEFT's names, `step` I64 [1], and, unless it is what a round begins or ends with,
`adam.m/<name>` and `adam.v/<name>` of the same shapes. The same state gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memgrid.errors import InvalidError
from memgrid.kinds.state_file import FIRST_MOMENT, SECOND_MOMENT, STATE_FORMAT, STEP
from memgrid.kinds.tensorfile import TensorFile

Array = npt.NDArray[np.float32]
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainState:
    """`step` logical steps are done; `m` and `v` have the names and shapes of `parameters`, or are both empty."""

    step: int
    parameters: Arrays
    m: Arrays = field(default_factory=dict)
    v: Arrays = field(default_factory=dict)

    @property
    def has_moments(self) -> bool:
        return bool(self.m)


def cold_state(parameters: Mapping[str, Array]) -> TrainState:
    """Step 0: nothing of Adam yet.

    >>> state = cold_state({"prompt_embeddings": np.ones((2, 4), dtype=np.float32)})
    >>> state.step, float(state.m["prompt_embeddings"].sum())
    (0, 0.0)
    """
    return TrainState(
        step=0,
        parameters=dict(parameters),
        m={name: np.zeros_like(value) for name, value in parameters.items()},
        v={name: np.zeros_like(value) for name, value in parameters.items()},
    )


def without_moments(state: TrainState) -> TrainState:
    """What goes from round to round.

    >>> without_moments(cold_state({"prompt_embeddings": np.ones((2, 4), dtype=np.float32)})).has_moments
    False
    """
    return replace(state, m={}, v={})


def state_bytes(state: TrainState) -> bytes:
    """The file's content; safetensors orders tensors by itself, so equal states give equal bytes."""
    groups = {"": state.parameters, FIRST_MOMENT: state.m, SECOND_MOMENT: state.v}
    tensors: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]] = {
        prefix + name: np.ascontiguousarray(value, dtype=np.float32)
        for prefix, group in groups.items()
        for name, value in group.items()
    }
    tensors[STEP] = np.array([state.step], dtype=np.int64)
    content: bytes = save(tensors, metadata={"format": STATE_FORMAT})
    return content


def write_state(path: Path, state: TrainState) -> None:
    """Write durably and at once: whoever finds the file finds all of it, even after a power cut."""
    write_whole(path, state_bytes(state))


def write_whole(path: Path, content: bytes) -> None:
    """A file that appears complete or not at all."""
    making = path.with_name(f".{path.name}.making")
    with making.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    making.replace(path)


def read_state(path: Path) -> TrainState:
    """A state without torch; raises InvalidError unless it is whole, of float32 and finite."""
    file = TensorFile.open(path)
    if file.metadata != {"format": STATE_FORMAT} or STEP not in file.tensors:
        raise InvalidError(f"{path.name}: not a {STATE_FORMAT} file")
    if (file.tensors[STEP].dtype, file.tensors[STEP].shape) != ("I64", (1,)):
        raise InvalidError(f"{path.name}: {STEP}: expected I64 [1]")
    groups: dict[str, Arrays] = {"": {}, FIRST_MOMENT: {}, SECOND_MOMENT: {}}
    for name, info in file.tensors.items():
        if name == STEP:
            continue
        if info.dtype != "F32" or not file.is_finite(name):
            raise InvalidError(f"{path.name}: {name[:200]}: expected finite F32")
        group = next((prefix for prefix in (FIRST_MOMENT, SECOND_MOMENT) if name.startswith(prefix)), "")
        groups[group][name.removeprefix(group)] = file.float32(name)
    _check_shapes(groups, path.name)
    step = int(file.bits(STEP)[0])
    if step < 0:
        raise InvalidError(f"{path.name}: {STEP}: expected 0 or more, found {step}")
    return TrainState(step=step, parameters=groups[""], m=groups[FIRST_MOMENT], v=groups[SECOND_MOMENT])


def _check_shapes(groups: dict[str, Arrays], what: str) -> None:
    shapes = {name: value.shape for name, value in groups[""].items()}
    if not shapes:
        raise InvalidError(f"{what}: no parameters")
    if not groups[FIRST_MOMENT] and not groups[SECOND_MOMENT]:
        return
    for prefix in (FIRST_MOMENT, SECOND_MOMENT):
        found = {name: value.shape for name, value in groups[prefix].items()}
        if found != shapes:
            raise InvalidError(f"{what}: {prefix}: expected the names and shapes of the parameters")
