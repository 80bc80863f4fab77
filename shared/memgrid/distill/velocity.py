"""The velocity of the outer optimiser as a file: the grid's own, from merge to merge; no host ever needs it.

Knows names, shapes and bytes; knows nothing of rounds or members. Under each parameter's name lies a float32 tensor
of its shape. The same velocity gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from memgrid.distill.state import Arrays, write_whole
from memgrid.errors import InvalidError
from memgrid.kinds.tensorfile import TensorFile

VELOCITY_FORMAT = "memgrid.velocity.v1"


def write_velocity(path: Path, velocity: Arrays) -> None:
    """Write durably and at once."""
    tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in velocity.items()}
    write_whole(path, save(tensors, metadata={"format": VELOCITY_FORMAT}))


def read_velocity(path: Path, parameters: Arrays) -> Arrays:
    """Of these parameters; raises InvalidError unless it is whole, finite, and has their names and shapes."""
    file = TensorFile.open(path)
    if file.metadata != {"format": VELOCITY_FORMAT}:
        raise InvalidError(f"{path.name}: not a {VELOCITY_FORMAT} file")
    expected = {name: ("F32", value.shape) for name, value in parameters.items()}
    if {name: (info.dtype, info.shape) for name, info in file.tensors.items()} != expected:
        raise InvalidError(f"{path.name}: expected the names and shapes of the parameters, in F32")
    for name in file.tensors:
        if not file.is_finite(name):
            raise InvalidError(f"{path.name}: {name[:200]}: expected finite F32")
    return {name: file.float32(name) for name in file.tensors}
