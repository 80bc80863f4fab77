"""A worker without torch: it answers at once, so that tests of the supervisor need not wait for one.

The tokens of a unit say what it does: the first one 6 tells how far it is, 7 fails, 8 dies, 9 hangs, anything else
succeeds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save_file

from memgrid.digest import token_ids
from memgrid.units import ComputeDtype, DeviceFacts, Reason, ReasonCode, WorkFacts
from memgrid_volunteer.kinds.job import Hello, Job, Outcome, PaceLine, Progress, WorkerDevice

DEVICE = DeviceFacts(kind="cpu", name="a test", memory_bytes=1, numerics_class="test/none")


def run(job: Job, answers: BinaryIO) -> Outcome:
    tokens = token_ids((job.unit_dir / "tokens.bin").read_bytes())
    log = os.environ.get("LD_LIBRARY_PATH")
    if log is not None:
        # The one variable of a test's choice that reaches a worker: where to write down what was run.
        with Path(log).open("a") as lines:
            lines.write(f"{job.unit_dir.name}\n")
    if tokens[0] == 6:
        for step in (1, 2, 3):
            answers.write(Progress(done=step / 4, text=f"step {step} of 4, loss 1.23").to_line())
    if tokens[0] == 7:
        return Outcome(failure=Reason(code=ReasonCode.UNIT_FAILED, text="it does not add up"))
    if tokens[0] == 8:
        os._exit(3)
    if tokens[0] == 9:
        time.sleep(1000)
    k = np.full((2, len(tokens), 4), float(tokens[0]), dtype=np.float32)
    contents = {"tokens": np.array(tokens, dtype=np.int32), "l0.k": k, "l0.v": k}
    save_file(contents, job.out_dir / "kv.safetensors", metadata={"format": "memgrid.kv.v1"})
    (job.out_dir / "sketch.safetensors").write_bytes(f"sketch of {tokens}".encode())
    facts = WorkFacts(
        tokens=len(tokens),
        compute_s=0.001,
        device_kind="cpu",
        numerics_class="test/none",
        compute_dtype=ComputeDtype.FLOAT32,
        torch_version="0",
    )
    return Outcome(facts=facts)


def main() -> None:
    answers: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
    answers.write(Hello(devices=(WorkerDevice(device_id="cpu", uuid="", facts=DEVICE),)).to_line())
    for line in sys.stdin.buffer:
        if PaceLine.from_line(line) is not None:
            continue
        answers.write(run(Job.from_line(line), answers).to_line())


if __name__ == "__main__":
    main()
