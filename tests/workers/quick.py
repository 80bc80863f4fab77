"""A worker without torch: it answers at once, so that tests of the supervisor need not wait for one.

The tokens of a unit say what it does: the first one 4 says that its device failed, 5 takes as many steps of two
hundredths of a second as the second token says, keeping its pace and committing every step, 6 tells how far it is, 7
fails, 8 dies, 9 hangs, 10 takes as many milliseconds as the second token says, 11 runs out of memory, anything else
succeeds. Inputs have to be what the spec names. NVIDIA_QUICK_DEVICES names a file that says which devices there are,
`cuda:0=GPU-a cpu=`.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save_file

from memgrid.clock import SystemClock
from memgrid.digest import digest_of, token_ids
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, DeviceFacts, Reason, ReasonCode, WorkFacts
from memgrid_volunteer.kinds.committed import Checkpoint
from memgrid_volunteer.kinds.job import Hello, Job, Outcome, PaceLine, Progress, WorkerDevice
from memgrid_volunteer.kinds.pace import Pace

STEP_S = 0.02


def run(job: Job, device: WorkerDevice, answers: BinaryIO, pace: Pace) -> Outcome:
    content = (job.unit_dir / "tokens.bin").read_bytes()
    spec = PrefillSpec.from_bytes((job.unit_dir / "spec.json").read_bytes())
    tokens = token_ids(content)
    log = os.environ.get("LD_LIBRARY_PATH")
    if log is not None:
        # The one variable of a test's choice that reaches a worker: where to write down what was run, and where.
        with Path(log).open("a") as lines:
            lines.write(f"{job.unit_dir.name} {device.device_id} {device.uuid or '-'}\n")
    began_s = time.perf_counter()
    if digest_of(content) != spec.tokens:
        return _failed(ReasonCode.INPUT_UNAVAILABLE, "tokens.bin is not what the unit's spec names")
    match tokens[0]:
        case 4:
            return _failed(ReasonCode.DEVICE_FAILED, "CUDA error: it fell off the bus")
        case 5:
            _work(job, spec, tokens[1], answers, pace)
        case 6:
            for step in (1, 2, 3):
                answers.write(Progress(done=step / 4, text=f"step {step} of 4, loss 1.23").to_line())
        case 7:
            return _failed(ReasonCode.UNIT_FAILED, "it does not add up")
        case 8:
            os._exit(3)
        case 9:
            time.sleep(1000)
        case 10:
            time.sleep(tokens[1] / 1000)
        case 11:
            return _failed(ReasonCode.OUT_OF_MEMORY, "CUDA out of memory")
    k = np.full((2, len(tokens), 4), float(tokens[0]), dtype=np.float32)
    contents = {"tokens": np.array(tokens, dtype=np.int32), "l0.k": k, "l0.v": k}
    save_file(contents, job.out_dir / "kv.safetensors", metadata={"format": "memgrid.kv.v1"})
    (job.out_dir / "sketch.safetensors").write_bytes(f"sketch of {tokens}".encode())
    facts = WorkFacts(
        tokens=len(tokens),
        compute_s=time.perf_counter() - began_s,
        device_kind=device.facts.kind,
        numerics_class=device.facts.numerics_class,
        compute_dtype=ComputeDtype.FLOAT32,
        torch_version="0",
    )
    return Outcome(facts=facts)


def _work(job: Job, spec: PrefillSpec, steps: int, answers: BinaryIO, pace: Pace) -> None:
    point = Checkpoint(job.out_dir, spec.key, wanted=spec.compute_dtype, resolved=ComputeDtype.FLOAT32)
    files = point.whole()
    begin = int(files[0].read_text()) if files else 0
    point.go_on_from(files)
    answers.write(Progress(done=begin / steps, text=f"begins at step {begin}").to_line())
    pace.begin()
    for step in range(begin, steps):
        time.sleep(STEP_S)
        # As if every step took a minute: that is worth sending.
        point.replace_parts([str(step + 1).encode()], 60.0 * (step + 1), done=(step + 1) / steps)
        answers.write(Progress(done=(step + 1) / steps, text=f"step {step + 1} of {steps}").to_line())
        pace.rest()


def _failed(code: ReasonCode, text: str) -> Outcome:
    return Outcome(failure=Reason(code=code, text=text))


def _devices() -> dict[str, WorkerDevice]:
    place = Path(os.environ.get("NVIDIA_QUICK_DEVICES", os.devnull))
    found = {}
    for device_id, _, uuid in (word.partition("=") for word in (place.read_text() or "cpu=").split()):
        kind = device_id.partition(":")[0]
        facts = DeviceFacts(kind=kind, name="a test", memory_bytes=1, numerics_class="test/none")
        found[device_id] = WorkerDevice(device_id=device_id, uuid=uuid, facts=facts)
    return found


def _read(waiting: queue.SimpleQueue[bytes], pace: Pace) -> None:
    for line in sys.stdin.buffer:
        told = PaceLine.from_line(line)
        if told is None:
            waiting.put(line)
        else:
            pace.set(told.duty)
    os._exit(0)


def main() -> None:
    answers: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
    devices, pace = _devices(), Pace(SystemClock())
    if sys.argv[1:2] == ["--device"]:
        if sys.argv[2] not in devices:
            sys.exit(f"device {sys.argv[2]}: not found; there are {', '.join(devices)}")
        devices = {sys.argv[2]: devices[sys.argv[2]]}
    answers.write(Hello(devices=tuple(devices.values())).to_line())
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(waiting, pace), daemon=True).start()
    while True:
        answers.write(run(Job.from_line(waiting.get()), next(iter(devices.values())), answers, pace).to_line())


if __name__ == "__main__":
    main()
