"""GPUs that only exist in a file or a dictionary, for tests of what watches GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class FakeNvml:
    """Stands in for NVIDIA's management library, with GPUs as they are described at that moment.

    `{"gpus": [{"uuid": "GPU-1", "name": "…", "temperature_c": 60, "power_w": 120, "power_limit_w": 300,
    "memory_used_bytes": 0, "memory_total_bytes": 8000000000, "load_share": 0.5, "processes": [{"pid": 1, "name": "…",
    "memory_bytes": 0, "kind": "computing", "load_share": 0.9}]}]}`; `kind` is computing or drawing. What is left out
    is what the driver does not tell. `{"error": "…"}` is a driver that fails altogether.

    >>> nvml = FakeNvml({"gpus": [{"uuid": "GPU-1", "temperature_c": 60}]})
    >>> nvml.temperature_c(0)
    60.0
    >>> nvml.power_w(0)
    Traceback (most recent call last):
    OSError: Not Supported
    """

    def __init__(self, described: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        self._described = described

    @classmethod
    def from_file(cls, path: Path | str) -> FakeNvml:
        """Read anew for every question, so that a test can change it under a running process."""
        return cls(lambda: _read(Path(path)))

    def count(self) -> int:
        return len(self._gpus())

    def uuid(self, index: int) -> str:
        return str(self._told(index, "uuid"))

    def name(self, index: int) -> str:
        return str(self._told(index, "name"))

    def temperature_c(self, index: int) -> float:
        return float(self._told(index, "temperature_c"))

    def power_w(self, index: int) -> float:
        return float(self._told(index, "power_w"))

    def power_limit_w(self, index: int) -> float:
        return float(self._told(index, "power_limit_w"))

    def memory_bytes(self, index: int) -> tuple[int, int]:
        return int(self._told(index, "memory_used_bytes")), int(self._told(index, "memory_total_bytes"))

    def load_share(self, index: int) -> float:
        return float(self._told(index, "load_share"))

    def computing(self, index: int) -> Mapping[int, int | None]:
        return self._memory_by_pid(index, "computing")

    def drawing(self, index: int) -> Mapping[int, int | None]:
        return self._memory_by_pid(index, "drawing")

    def process_load(self, index: int) -> Mapping[int, float]:
        return {one["pid"]: float(one["load_share"]) for one in self._processes(index) if "load_share" in one}

    def process_name(self, pid: int) -> str:
        for index in range(self.count()):
            for one in self._processes(index):
                if one["pid"] == pid and "name" in one:
                    return str(one["name"])
        raise OSError("Not Found")

    def _memory_by_pid(self, index: int, kind: str) -> Mapping[int, int | None]:
        chosen = [one for one in self._processes(index) if one.get("kind", "computing") == kind]
        return {one["pid"]: one.get("memory_bytes") for one in chosen}

    def _processes(self, index: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._told(index, "processes")
        return found

    def _told(self, index: int, name: str) -> Any:
        gpus = self._gpus()
        if index >= len(gpus):
            raise OSError("Invalid Argument")
        if name not in gpus[index]:
            raise OSError("Not Supported")
        return gpus[index][name]

    def _gpus(self) -> list[dict[str, Any]]:
        described = self._described() if callable(self._described) else self._described
        if "error" in described:
            raise OSError(described["error"])
        gpus: list[dict[str, Any]] = described["gpus"]
        return gpus


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value: Mapping[str, Any] = json.loads(path.read_bytes())
    except ValueError:
        raise OSError(f"{path}: no JSON") from None
    return value
