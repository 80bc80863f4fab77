"""The child that computes: units in on standard input, outcomes out on standard output, nothing else."""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from memgrid.clock import SystemClock
from memgrid.errors import InvalidError
from memgrid.units import ReasonCode, WorkFacts
from memgrid_volunteer.kinds.committed import COMMIT_EVERY_S
from memgrid_volunteer.kinds.evaluate import Evaluate
from memgrid_volunteer.kinds.failing import reason_of
from memgrid_volunteer.kinds.job import Hello, Job, Outcome, PaceLine, Progress
from memgrid_volunteer.kinds.pace import Pace
from memgrid_volunteer.kinds.prefill import Prefill
from memgrid_volunteer.kinds.study import Study
from memgrid_volunteer.kinds.telling import Tell
from memgrid_volunteer.kinds.train import Train
from memgrid_volunteer.kinds.utilisation import Utilisation
from memgrid_volunteer.numerics import Device, find_device, find_devices, limit_memory, make_deterministic

RunUnit = Callable[[Job], Outcome]
_DEVICE_FAILED_STATUS = 75


def main(kinds: Mapping[str, Callable[[Job], WorkFacts]] | None = None) -> None:
    """Serve until standard input ends; `kinds` replaces the built-in ways to run a unit.

    Computes on the device that `--device ID` names; without it on the best, and greets with all that there are.
    """
    options = _options(sys.argv[1:])
    answers = _keep_answers_apart()
    make_deterministic()
    devices = _chosen_devices(options.device)
    if options.memory_bytes is not None:
        limit_memory(devices[0], options.memory_bytes)
    pace = Pace(SystemClock())

    def tell(progress: Progress) -> None:
        _send(answers, progress.to_line())

    if kinds is None:
        runners = _runners(devices[0], tell, pace, options.commit_every)
    else:
        runners = {name: _unmeasured(run) for name, run in kinds.items()}
    _send(answers, Hello(devices=tuple(device.told() for device in devices)).to_line())
    for line in _lines(pace):
        outcome = _run(runners, line)
        _send(answers, outcome.to_line())
        if outcome.failure is not None and outcome.failure.code is ReasonCode.DEVICE_FAILED:
            # Nothing this process asks of its device will work again; another process may find it well.
            os._exit(_DEVICE_FAILED_STATUS)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="memgrid_volunteer.worker")
    parser.add_argument("--device", metavar="ID", help="such as cuda:0, cpu")
    parser.add_argument("--memory-bytes", type=int, metavar="BYTES", help="the most to take of a GPU's memory")
    parser.add_argument("--commit-every", type=float, metavar="SECONDS", default=COMMIT_EVERY_S)
    return parser.parse_args(arguments)


def _chosen_devices(chosen: str | None) -> tuple[Device, ...]:
    try:
        return find_devices() if chosen is None else (find_device(chosen),)
    except InvalidError as error:
        sys.exit(f"{error}")


def _runners(device: Device, tell: Tell, pace: Pace, commit_every_s: float) -> dict[str, RunUnit]:
    clock, utilisation = SystemClock(), Utilisation(device)
    kinds = {"prefill": Prefill, "study": Study, "train": Train, "evaluate": Evaluate}

    def measured(run: Callable[[Job], WorkFacts]) -> RunUnit:
        def run_and_measure(job: Job) -> Outcome:
            facts = run(job)
            share = utilisation.of(job, facts.compute_dtype, pace.computed_s)
            return Outcome(facts=facts, utilisation=share)

        return run_and_measure

    return {
        name: measured(kind(device, clock, tell, pace, commit_every_s=commit_every_s).run)
        for name, kind in kinds.items()
    }


def _unmeasured(run: Callable[[Job], WorkFacts]) -> RunUnit:
    return lambda job: Outcome(facts=run(job))


def _run(runners: Mapping[str, RunUnit], line: bytes) -> Outcome:
    try:
        job = Job.from_line(line)
        return runners[job.kind](job)
    except Exception as error:  # noqa: BLE001 - a unit that fails, however it does, must not end the worker
        return Outcome(failure=reason_of(error))


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
