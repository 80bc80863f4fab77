"""The child that computes: units in on standard input, outcomes out on standard output, nothing else."""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

import torch

from memgrid.clock import SystemClock
from memgrid.errors import InvalidError
from memgrid.kinds.refusal import RefusedError
from memgrid.units import Reason, ReasonCode, WorkFacts
from memgrid_volunteer.kinds.evaluate import Evaluate
from memgrid_volunteer.kinds.job import Hello, Job, Outcome, PaceLine, Progress
from memgrid_volunteer.kinds.pace import Pace
from memgrid_volunteer.kinds.prefill import Prefill
from memgrid_volunteer.kinds.study import Study
from memgrid_volunteer.kinds.train import Train
from memgrid_volunteer.numerics import Device, find_device, find_devices, make_deterministic

RunUnit = Callable[[Job], WorkFacts]


def main(kinds: Mapping[str, RunUnit] | None = None) -> None:
    """Serve until standard input ends; `kinds` replaces the built-in ways to run a unit.

    Computes on the device that `--device ID` names; without it on the best, and greets with all that there are.
    """
    answers = _keep_answers_apart()
    make_deterministic()
    devices = _chosen_devices(sys.argv[1:])
    pace = Pace(SystemClock())

    def tell(progress: Progress) -> None:
        _send(answers, progress.to_line())

    runners = _runners(devices[0], tell, pace) if kinds is None else kinds
    _send(answers, Hello(devices=tuple(device.told() for device in devices)).to_line())
    for line in _lines(pace):
        _send(answers, _run(runners, line).to_line())


def _chosen_devices(arguments: Sequence[str]) -> tuple[Device, ...]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", metavar="ID")
    chosen = parser.parse_args(arguments).device
    try:
        return find_devices() if chosen is None else (find_device(chosen),)
    except InvalidError as error:
        sys.exit(f"{error}")


def _runners(device: Device, tell: Callable[[Progress], None], pace: Pace) -> dict[str, RunUnit]:
    clock = SystemClock()
    return {
        "prefill": Prefill(device, clock).run,
        "study": Study(device, clock, tell).run,
        "train": Train(device, clock, tell).run,
        "evaluate": Evaluate(device, clock, tell).run,
    }


def _run(runners: Mapping[str, RunUnit], line: bytes) -> Outcome:
    try:
        job = Job.from_line(line)
        return Outcome(facts=runners[job.kind](job))
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _failure(ReasonCode.OUT_OF_MEMORY, error)
    except RefusedError as error:
        return Outcome(failure=error.reason)
    except (InvalidError, OSError) as error:
        return _failure(ReasonCode.INPUT_UNAVAILABLE, error)
    except Exception as error:  # noqa: BLE001 - a unit that fails, however it does, must not end the worker
        # torch's CPU allocator knows no class of its own for "no memory left".
        out_of_memory = "can't allocate memory" in str(error) or "not enough memory" in str(error)
        code = ReasonCode.OUT_OF_MEMORY if out_of_memory else ReasonCode.UNIT_FAILED
        return _failure(code, error)


def _failure(code: ReasonCode, error: BaseException) -> Outcome:
    text = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    return Outcome(failure=Reason(code=code, text=text))


def _keep_answers_apart() -> BinaryIO:
    """Standard output for answers alone: whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return answers


def _send(answers: BinaryIO, line: bytes) -> None:
    answers.write(line)


def _lines(pace: Pace) -> Iterator[bytes]:
    """Each job on standard input; its end ends this process at once, even in the middle of a unit or of a rest."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(waiting, pace), daemon=True).start()
    while True:
        yield waiting.get()


def _read_lines(waiting: queue.SimpleQueue[bytes], pace: Pace) -> None:
    for line in sys.stdin.buffer:
        if (told := PaceLine.from_line(line)) is not None:
            pace.set(told.duty)
        else:
            waiting.put(line)
    # The supervisor is gone when its pipe is: nobody is left to want an answer.
    os._exit(0)


if __name__ == "__main__":
    main()
