"""The file a training state is: its names, its sizes, and whether a stranger's is one of the unit's.

float32 parameters under PEFT's names, `step` I64 [1], and, unless it is what a round begins or ends with,
`adam.m/<name>` and `adam.v/<name>` of the same shapes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import AdapterKind, AdapterSpec
from memgrid.units import ReasonCode

STATE_FORMAT = "memgrid.state.v1"
STEP = "step"
FIRST_MOMENT = "adam.m/"
SECOND_MOMENT = "adam.v/"
PREFIX_TENSOR = "prompt_embeddings"
_WHOLE_COPIES = 3
"""Parameters and two moments."""
_HEADER_BYTES_MAX = 1 << 20

Array = npt.NDArray[np.float32]


def prefix_width(geometry: ModelGeometry) -> int:
    """Numbers of one virtual token."""
    return geometry.layers * 2 * geometry.kv_heads * geometry.head_dim


def state_bytes_max(adapter: AdapterSpec, geometry: ModelGeometry, *, moments: bool) -> int:
    """More than any state of this adapter takes, with Adam's moments or without.

    LoRA's matrices are bounded by the weights a layer can have.
    """
    if adapter.kind is AdapterKind.PREFIX:
        numbers = adapter.virtual_tokens * prefix_width(geometry)
    else:
        widest = geometry.matmul_parameters // (geometry.layers * geometry.hidden) + 1
        sides = geometry.hidden + geometry.heads * geometry.head_dim + widest
        numbers = geometry.layers * len(adapter.targets) * adapter.rank * sides
    return (_WHOLE_COPIES if moments else 1) * 4 * numbers + _HEADER_BYTES_MAX


def group_count(adapter: AdapterSpec, geometry: ModelGeometry) -> int:
    """Into how many parts `groups` takes an adapter's parameters."""
    if adapter.kind is AdapterKind.PREFIX:
        return 2 * geometry.layers
    return geometry.layers * len(adapter.targets) * (1 if adapter.frozen_a_seed is not None else 2)


def groups(parameters: dict[str, Array], adapter: AdapterSpec, geometry: ModelGeometry) -> list[Array]:
    """The parts that are judged one by one, flat: K and V of each layer of a prefix, each matrix of LoRA by name."""
    if adapter.kind is AdapterKind.PREFIX:
        cut = parameters[PREFIX_TENSOR].reshape(adapter.virtual_tokens, 2 * geometry.layers, -1)
        return [cut[:, half].reshape(-1) for half in range(2 * geometry.layers)]
    return [parameters[name].reshape(-1) for name in sorted(parameters)]


def parameters_of(file: TensorFile) -> dict[str, Array]:
    return {name: file.float32(name) for name in parameter_names(file)}


def parameter_names(file: TensorFile) -> list[str]:
    return sorted(name for name in file.tensors if name != STEP and "/" not in name)


def check_state(
    path: Path, adapter: AdapterSpec, start: Path, *, step: int, moments: bool, geometry: ModelGeometry
) -> None:
    """Whether a stranger's file is a state that follows from `start`, by its form; raises RefusedError.

    `moments` says whether Adam's belong into it. WRONG_SHAPE for format, names, dtypes and shapes (the parameters'
    are those of `start`), WRONG_OUTPUTS for another step or a sink that moved, NOT_FINITE for NaN, infinity or a
    negative second moment.
    """
    size_bytes, largest = path.stat().st_size, state_bytes_max(adapter, geometry, moments=moments)
    if size_bytes > largest:
        raise RefusedError(
            ReasonCode.UPLOAD_TOO_LARGE, f"{path.name}: {size_bytes} bytes, at most {largest} expected"
        )
    try:
        file = TensorFile.open(path, _HEADER_BYTES_MAX)
    except InvalidError as error:
        raise RefusedError(ReasonCode.WRONG_SHAPE, str(error)) from None
    if file.metadata != {"format": STATE_FORMAT}:
        raise RefusedError(ReasonCode.WRONG_SHAPE, f"{path.name}: metadata: expected only format={STATE_FORMAT}")
    before = TensorFile.open(start, _HEADER_BYTES_MAX)
    _check_shapes(file, _expected(before, moments=moments), path.name)
    found = int(file.bits(STEP)[0])
    if found != step:
        raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"{path.name}: step {found}, expected {step}")
    _check_numbers(file, path.name)
    _check_kept(file, before, adapter, path.name)


def _expected(before: TensorFile, *, moments: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a state that follows from `before`."""
    groups = ("", FIRST_MOMENT, SECOND_MOMENT) if moments else ("",)
    names = parameter_names(before)
    found = {prefix + name: ("F32", before.tensors[name].shape) for prefix in groups for name in names}
    return {**found, STEP: ("I64", (1,))}


def _check_shapes(file: TensorFile, expected: dict[str, tuple[str, tuple[int, ...]]], what: str) -> None:
    for name in sorted(set(file.tensors) ^ set(expected)):
        fault = "is missing" if name in expected else "is not wanted"
        raise RefusedError(ReasonCode.WRONG_SHAPE, f"{what}: tensor {name[:200]} {fault}")
    for name, (dtype, shape) in expected.items():
        info = file.tensors[name]
        if (info.dtype, info.shape) != (dtype, shape):
            raise RefusedError(
                ReasonCode.WRONG_SHAPE,
                f"{what}: {name}: expected {dtype} {list(shape)}, found {info.dtype} {list(info.shape)}",
            )


def _check_numbers(file: TensorFile, what: str) -> None:
    for name in file.tensors:
        if name == STEP:
            continue
        if not file.is_finite(name):
            raise RefusedError(ReasonCode.NOT_FINITE, f"{what}: {name} contains NaN or infinity")
        if name.startswith(SECOND_MOMENT) and bool((file.float32(name) < 0).any()):
            raise RefusedError(ReasonCode.NOT_FINITE, f"{what}: {name} contains a negative square")


def _check_kept(file: TensorFile, before: TensorFile, adapter: AdapterSpec, what: str) -> None:
    if adapter.kind is AdapterKind.PREFIX:
        frozen = slice(0, adapter.frozen_tokens)
        if not np.array_equal(file.bits(PREFIX_TENSOR)[frozen], before.bits(PREFIX_TENSOR)[frozen]):
            raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"{what}: a frozen token was changed")
