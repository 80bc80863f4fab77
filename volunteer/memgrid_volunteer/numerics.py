"""What decides the rounding: device, dtypes, threads, and kernels that give the same bits twice."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    beside: tuple[torch.device, ...] = ()
    """Other devices of the same kind that a model is spread over together with this one."""

    @property
    def device_id(self) -> DeviceId:
        """Such as `cuda:0`, and `cuda:0,cuda:1` for two that work as one."""
        return ",".join(str(device) for device in (self.torch_device, *self.beside))

    def finish(self) -> None:
        """Wait until all work given to it is done; nothing to wait for on a CPU."""
        if self.torch_device.type == "cuda":
            for device in (self.torch_device, *self.beside):
                torch.cuda.synchronize(device)
        elif self.torch_device.type == "mps":
            torch.mps.synchronize()

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
    """The device of that name, or several as one: `cuda:0,cuda:1`.

    Raises InvalidError, naming those there are, when this machine has no such one, and when several are not GPUs that
    round alike.
    """
    devices = {device.device_id: device for device in find_devices()}
    names = device_id.split(",")
    for name in names:
        if name not in devices:
            raise InvalidError(f"device {name}: this machine has {', '.join(devices)}")
    return joined([devices[name] for name in names])


def joined(devices: Sequence[Device]) -> Device:
    """Several GPUs that hold one model together; raises InvalidError unless they round alike."""
    first, *others = devices
    if not others:
        return first
    names = ",".join(device.device_id for device in devices)
    if first.facts.kind != "cuda" or len({device.facts.numerics_class for device in devices}) > 1:
        raise InvalidError(f"device {names}: expected GPUs of one architecture")
    if len({device.torch_device for device in devices}) < len(devices):
        raise InvalidError(f"device {names}: expected each once")
    memory_bytes = sum(device.facts.memory_bytes for device in devices)
    facts = replace(first.facts, name=f"{len(devices)} × {first.facts.name}", memory_bytes=memory_bytes)
    return replace(first, facts=facts, beside=tuple(device.torch_device for device in others))


def limit_memory(device: Device, memory_bytes: int) -> None:
    """From now on torch takes no more of a GPU: what needs more runs out of memory, as it would on a smaller one."""
    share = min(1.0, memory_bytes / device.facts.memory_bytes)
    if device.facts.kind == "cuda":
        for each in (device.torch_device, *device.beside):
            torch.cuda.set_per_process_memory_fraction(share, each)
    elif device.facts.kind == "mps":
        torch.mps.set_per_process_memory_fraction(share)


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
