"""What decides the rounding: device, dtypes, threads, and kernels that give the same bits twice."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from memgrid.errors import InvalidError
from memgrid.units import ComputeDtype, DeviceFacts, StoreDtype
from memgrid_volunteer.kinds.job import DeviceId, WorkerDevice

TORCH_DTYPE: dict[ComputeDtype | StoreDtype, torch.dtype] = {
    ComputeDtype.FLOAT32: torch.float32,
    ComputeDtype.FLOAT16: torch.float16,
    ComputeDtype.BFLOAT16: torch.bfloat16,
    StoreDtype.FLOAT32: torch.float32,
    StoreDtype.FLOAT16: torch.float16,
    StoreDtype.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where tensors live, and how that device rounds."""

    torch_device: torch.device
    facts: DeviceFacts
    uuid: str = ""
    """The maker's name of this very piece, such as `GPU-5a1b…`; "" when it has none."""

    @property
    def device_id(self) -> DeviceId:
        return str(self.torch_device)

    def told(self) -> WorkerDevice:
        """As the supervisor hears of it."""
        return WorkerDevice(device_id=self.device_id, uuid=self.uuid, facts=self.facts)

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 products run in hardware; on a CPU they may, but float32 is the safer class."""
        return self.facts.kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def make_deterministic() -> None:
    """Equal inputs give equal bits on one machine; float32 means float32, not TF32."""
    # cuBLAS reads this when it is first used; without it, it may pick another algorithm each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    torch.set_grad_enabled(False)


def find_devices() -> tuple[Device, ...]:
    """Every device a unit could run on, the best first; the CPU always comes last."""
    found = [_cuda_device(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(_mps_device())
    return (*found, _cpu_device())


def find_device(device_id: DeviceId) -> Device:
    """The device of that name; raises InvalidError, naming those there are, when this machine has no such one."""
    devices = find_devices()
    for device in devices:
        if device.device_id == device_id:
            return device
    there = ", ".join(device.device_id for device in devices)
    raise InvalidError(f"device {device_id}: this machine has {there}")


def resolve(wanted: ComputeDtype, device: Device) -> ComputeDtype:
    """The dtype AUTO stands for on this device; any other stands for itself."""
    if wanted is not ComputeDtype.AUTO:
        return wanted
    return ComputeDtype.BFLOAT16 if device.has_bfloat16 else ComputeDtype.FLOAT32


def torch_version() -> str:
    """`2.13.0`, without the build it came as."""
    return str(torch.__version__).partition("+")[0]


def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    vendor = "rocm" if torch.version.hip else "cuda"
    architecture = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    architecture = architecture or f"sm{properties.major}{properties.minor}"
    facts = DeviceFacts(
        kind="cuda",
        name=properties.name,
        memory_bytes=properties.total_memory,
        numerics_class=f"{vendor}-{architecture}/torch-{torch_version()}",
    )
    uuid = str(getattr(properties, "uuid", ""))
    return Device(
        torch_device=torch.device("cuda", index), facts=facts, uuid=f"GPU-{uuid.removeprefix('GPU-')}" if uuid else ""
    )


def _mps_device() -> Device:
    facts = DeviceFacts(
        kind="mps",
        name=platform.processor() or "Apple GPU",
        memory_bytes=torch.mps.recommended_max_memory(),
        numerics_class=f"mps-{platform.machine()}/torch-{torch_version()}",
    )
    return Device(torch_device=torch.device("mps"), facts=facts)


def _cpu_device() -> Device:
    capability = torch.backends.cpu.get_cpu_capability().lower()
    facts = DeviceFacts(
        kind="cpu",
        name=_cpu_name(),
        memory_bytes=_memory_bytes(),
        numerics_class=f"cpu-{platform.machine().lower()}-{capability}/torch-{torch_version()}",
    )
    return Device(torch_device=torch.device("cpu"), facts=facts)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)
