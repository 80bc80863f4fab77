"""The real NVML, through NVIDIA's own bindings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

import psutil
import pynvml

from memgrid_volunteer.owner.probes.gpu import Nvml

STAND_IN_VARIABLE = "MEMGRID_NVML_STAND_IN"
"""Names a file that says what GPUs there are, for tests of whole processes on machines without any."""

Value = TypeVar("Value")


class RealNvml:
    """Loaded when it is first asked, and again after the driver was reset. Every method raises OSError."""

    def __init__(self) -> None:
        self._is_ready = False
        self._last_sample_us: dict[int, int] = {}

    def count(self) -> int:
        # The first question of every reading: after an update of the driver the library has to be loaded anew.
        return int(self._ask(pynvml.nvmlDeviceGetCount))

    def uuid(self, index: int) -> str:
        return _text(self._of(index, pynvml.nvmlDeviceGetUUID))

    def name(self, index: int) -> str:
        return _text(self._of(index, pynvml.nvmlDeviceGetName))

    def temperature_c(self, index: int) -> float:
        return float(self._of(index, lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)))

    def power_w(self, index: int) -> float:
        return float(self._of(index, pynvml.nvmlDeviceGetPowerUsage)) / 1000

    def power_limit_w(self, index: int) -> float:
        return float(self._of(index, pynvml.nvmlDeviceGetEnforcedPowerLimit)) / 1000

    def memory_bytes(self, index: int) -> tuple[int, int]:
        found = self._of(index, pynvml.nvmlDeviceGetMemoryInfo)
        return int(found.used), int(found.total)

    def load_share(self, index: int) -> float:
        return float(self._of(index, pynvml.nvmlDeviceGetUtilizationRates).gpu) / 100

    def computing(self, index: int) -> Mapping[int, int | None]:
        return _memory_by_pid(self._of(index, pynvml.nvmlDeviceGetComputeRunningProcesses))

    def drawing(self, index: int) -> Mapping[int, int | None]:
        return _memory_by_pid(self._of(index, pynvml.nvmlDeviceGetGraphicsRunningProcesses))

    def process_load(self, index: int) -> Mapping[int, float]:
        last_us = self._last_sample_us.get(index, 0)
        samples = self._of(index, lambda gpu: pynvml.nvmlDeviceGetProcessUtilization(gpu, last_us))
        self._last_sample_us[index] = max((sample.timeStamp for sample in samples), default=last_us)
        return {int(sample.pid): sample.smUtil / 100 for sample in samples}

    def process_name(self, pid: int) -> str:
        try:
            return psutil.Process(pid).name()
        except psutil.Error:
            return PurePath(_text(self._ask(lambda: pynvml.nvmlSystemGetProcessName(pid)))).name

    def _of(self, index: int, ask: Callable[[Any], Value]) -> Value:
        return self._ask(lambda: ask(pynvml.nvmlDeviceGetHandleByIndex(index)))

    def _ask(self, ask: Callable[[], Value]) -> Value:
        try:
            if not self._is_ready:
                pynvml.nvmlInit()
                self._is_ready = True
            return ask()
        except pynvml.NVMLError as error:
            if error.value in _LOST:
                self._is_ready = False
            raise OSError(str(error)) from None


_LOST = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_UNKNOWN,
)


def nvml_here() -> Nvml:
    """The machine's own, unless the environment names a file that stands in for it."""
    stand_in = os.environ.get(STAND_IN_VARIABLE)
    if stand_in is None:
        return RealNvml()
    from memgrid.testing_gpu import FakeNvml

    return FakeNvml.from_file(stand_in)


def _memory_by_pid(processes: list[Any]) -> dict[int, int | None]:
    return {int(one.pid): None if one.usedGpuMemory is None else int(one.usedGpuMemory) for one in processes}


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
