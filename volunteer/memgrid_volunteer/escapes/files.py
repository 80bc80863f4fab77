"""Ways at files that are none of a worker's business."""

from __future__ import annotations

import errno
from pathlib import Path

import memgrid_volunteer
from memgrid_volunteer.escapes.targets import Targets
from memgrid_volunteer.kinds.job import Job


def read_key(targets: Targets, job: Job) -> None:
    Path(targets.key_file).read_bytes()


def read_ssh_key(targets: Targets, job: Job) -> None:
    Path(targets.ssh_key).read_bytes()


def read_home(targets: Targets, job: Job) -> None:
    if not targets.home_file:
        raise OSError(errno.ENOENT, "there is none")
    Path(targets.home_file).open("rb").close()


def read_shadow(targets: Targets, job: Job) -> None:
    Path("/etc/shadow").open("rb").close()


def read_through_link(targets: Targets, job: Job) -> None:
    link = job.out_dir / "innocent"
    link.unlink(missing_ok=True)
    link.symlink_to(targets.key_file)
    try:
        link.read_bytes()
    finally:
        link.unlink()


def write_inputs(targets: Targets, job: Job) -> None:
    (job.unit_dir / "new").write_bytes(b"x")


def write_cache(targets: Targets, job: Job) -> None:
    with Path(targets.model_file).open("r+b") as file:
        file.write(b"x")


def write_outside(targets: Targets, job: Job) -> None:
    (Path(targets.outside) / "new").write_bytes(b"x")


def change_program(targets: Targets, job: Job) -> None:
    # Opened, and left as it is: where it is allowed, the program is wanted afterwards.
    Path(memgrid_volunteer.__file__).open("r+b").close()
