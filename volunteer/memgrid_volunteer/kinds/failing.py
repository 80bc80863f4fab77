"""What a unit's failure is called: whose fault it may be, and whether the device can be used after it."""

from __future__ import annotations

import torch

from memgrid.errors import InvalidError
from memgrid.kinds.refusal import RefusedError
from memgrid.units import Reason, ReasonCode

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""torch's CPU allocator knows no class of its own for it, and CUDA says so in more than one way."""
_DEVICE = ("CUDA error", "HIP error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS", "NCCL error")


def reason_of(error: BaseException) -> Reason:
    """Why a unit failed.

    >>> reason_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).code
    <ReasonCode.OUT_OF_MEMORY: 'out_of_memory'>
    >>> reason_of(RuntimeError("CUDA error: an illegal memory access was encountered")).code
    <ReasonCode.DEVICE_FAILED: 'device_failed'>
    """
    if isinstance(error, RefusedError):
        return error.reason
    text = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    return Reason(code=_code(error), text=text)


def _code(error: BaseException) -> ReasonCode:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ReasonCode.OUT_OF_MEMORY
    if isinstance(error, InvalidError | OSError):
        return ReasonCode.INPUT_UNAVAILABLE
    if any(words in str(error) for words in _OUT_OF_MEMORY):
        return ReasonCode.OUT_OF_MEMORY
    if isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in _DEVICE):
        return ReasonCode.DEVICE_FAILED
    return ReasonCode.UNIT_FAILED
