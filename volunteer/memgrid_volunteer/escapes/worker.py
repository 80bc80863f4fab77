"""A hostile worker: every unit that it is given is an escape to try, and it says what became of it."""

from __future__ import annotations

import errno
import os
import sys
from typing import BinaryIO

from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.escapes.attempts import ATTEMPTS
from memgrid_volunteer.escapes.targets import Targets
from memgrid_volunteer.kinds.job import Hello, Job, Outcome, PaceLine

THROUGH = "got through"


def main() -> None:
    answers: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
    answers.write(Hello(devices=()).to_line())
    for line in sys.stdin.buffer:
        if PaceLine.from_line(line) is not None:
            continue
        job = Job.from_line(line)
        text = attempt(job)
        answers.write(Outcome(failure=Reason(code=ReasonCode.UNIT_FAILED, text=text)).to_line())


def attempt(job: Job) -> str:
    """The name of the error that stopped it, or THROUGH."""
    try:
        ATTEMPTS[job.kind].make(Targets.read(job.unit_dir), job)
    except MemoryError:
        return "ENOMEM"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return THROUGH


if __name__ == "__main__":
    main()
