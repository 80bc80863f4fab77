"""A worker that looks around and writes down what it could reach."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from memgrid.units import ComputeDtype, WorkFacts
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.worker import main


def look_around(job: Job) -> WorkFacts:
    question = json.loads((job.unit_dir / "question.json").read_bytes())
    found = {
        "network": can_connect(question["port"]),
        "secret": can_read(Path(question["secret"])),
        "cache": can_read(Path(question["cache"])),
        "cache_writable": can_write(Path(question["cache"]).parent / "new"),
        "environment": sorted(os.environ),
        "core_limit": core_limit(),
    }
    (job.out_dir / "found.json").write_text(json.dumps(found))
    return WorkFacts(
        tokens=0,
        compute_s=0,
        device_kind="cpu",
        numerics_class="none",
        compute_dtype=ComputeDtype.FLOAT32,
        torch_version="0",
    )


def hang(job: Job) -> WorkFacts:
    """Never answers, and has a child that would outlive it."""
    child = subprocess.Popen(["sleep", "1000"])
    (job.out_dir / "child.pid").write_text(str(child.pid))
    time.sleep(1000)
    raise AssertionError("unreachable")


def shout(job: Job) -> WorkFacts:
    sys.stdout.write("this is no answer\n")
    sys.stdout.flush()
    raise ValueError("the unit went wrong\nwith details")


def reset(job: Job) -> WorkFacts:
    import torch

    raise torch.AcceleratorError("CUDA error: unspecified launch failure", 719)


def die(job: Job) -> WorkFacts:
    os._exit(7)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def can_read(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def can_write(path: Path) -> bool:
    try:
        path.write_text("x")
    except OSError:
        return False
    return True


def core_limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_CORE)[0]


if __name__ == "__main__":
    main({"look": look_around, "hang": hang, "shout": shout, "die": die, "reset": reset})
