"""One worker child behind walls: started when needed, killed when told, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from memgrid.errors import InternalError, InvalidError
from memgrid.log import get_logger
from memgrid.text import seconds_text
from memgrid.units import Reason, ReasonCode
from memgrid_volunteer import guard
from memgrid_volunteer.bounds import Bounds, default_bounds
from memgrid_volunteer.isolation import Folders, Isolation, command_for, probe
from memgrid_volunteer.kinds.job import DeviceId, Hello, Job, Outcome, PaceLine, Progress
from memgrid_volunteer.owner.preferences import CPU

WORKER_MODULE = "memgrid_volunteer.worker"
START_LIMIT_S = 180.0
_LAST_LINES = 20
_LINE_BYTES_MAX = 1 << 20
# Everything else stays outside: tokens, proxies, agents and sockets are none of a worker's business.
_PASSED_ON = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP")
_PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "PYTORCH_")

log = get_logger(__name__)


class Sandbox:
    """Starts and restarts the worker; `run` gives it one unit after another.

    The isolation is found out once, at the first start, unless it is given. Use from one event loop in the main
    thread: on Linux a child dies with the thread that made it.
    """

    def __init__(
        self,
        folders: Folders,
        *,
        threads: int,
        module: str = WORKER_MODULE,
        isolation: Isolation | None = None,
        device_id: DeviceId | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self._folders = folders
        self._module = module
        self._device_id = device_id
        self._duty = 1.0
        self._environment = environment(folders.scratch, threads)
        self._isolation = isolation
        self._bounds = bounds or default_bounds()
        self._memory_bytes: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._hello: Hello | None = None
        self._killed: asyncio.subprocess.Process | None = None
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._listener: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._excess: Reason | None = None

    @property
    def pid(self) -> int | None:
        """Of the running child; None between a death and the next start."""
        return self._process.pid if self._process is not None else None

    def allow(self, memory_bytes: int | None) -> bool:
        """How much memory of its device a worker may take from its next start on; False when nothing changes."""
        former, self._memory_bytes = self._memory_bytes, memory_bytes
        return memory_bytes != former

    def _bounds_now(self) -> Bounds:
        """The processor's memory is watched from outside; a GPU's is for the worker to keep to."""
        if self._memory_bytes is None or self._device_id != CPU:
            return self._bounds
        return replace(self._bounds, memory_bytes=min(self._bounds.memory_bytes, self._memory_bytes))

    def _arguments(self) -> tuple[str, ...]:
        if self._device_id is None:
            return ()
        is_limited = self._memory_bytes is not None and self._device_id != CPU
        limit = ("--memory-bytes", str(self._memory_bytes)) if is_limited else ()
        return ("--device", self._device_id, *limit)

    async def isolation(self) -> Isolation:
        if self._isolation is None:
            self._isolation = await probe(self._folders, self._environment)
        return self._isolation

    async def start(self) -> Hello:
        """Start the worker unless it runs; raises InternalError with its last words when it can't start."""
        if self._process is not None and self._hello is not None:
            return self._hello
        command = command_for(
            await self.isolation(), self._folders, self._module, self._arguments(), bounds=self._bounds_now()
        )
        self._folders.make()
        self._last_lines.clear()
        self._excess = None
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self._environment,
            cwd=self._folders.scratch,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            # A Ctrl-C at the terminal is for the supervisor, who then ends the worker.
            start_new_session=True,
        )
        self._process = process
        self._listener = asyncio.create_task(self._listen(process))
        self._guard = asyncio.create_task(self._watch(process))
        try:
            async with asyncio.timeout(START_LIMIT_S):
                hello = Hello.from_line(await _answer(process))
            if self._process is not process:
                raise _WorkerGone  # killed after it had spoken
        except (TimeoutError, InvalidError, _WorkerGone):
            await self.kill()
            last = self._last_lines[-1] if self._last_lines else "it said nothing"
            raise InternalError(f"the worker does not start: {last}") from None
        self._hello = hello
        log.info("worker started", pid=process.pid, isolation=str(self._isolation), device=self._device_id)
        if self._duty != 1.0:
            self._tell_pace()
        return hello

    async def run(self, job: Job, hear: Callable[[Progress], None] | None = None) -> Outcome:
        """Run one unit to its outcome; a worker that dies over it is an outcome too. `hear` is told how it goes."""
        try:
            await self.start()
        except InternalError as error:
            return _failed(ReasonCode.UNIT_FAILED, str(error))
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(job.to_line())
            await process.stdin.drain()
            async with asyncio.timeout(self._bounds.unit_s):
                while (progress := Progress.from_line(line := await _answer(process))) is not None:
                    if hear is not None:
                        hear(progress)
            outcome = Outcome.from_line(line)
            if outcome.failure is not None and outcome.failure.code is ReasonCode.DEVICE_FAILED:
                # It ends itself; the next unit is for a process with a new connection to the device.
                await self.kill()
            return outcome
        except TimeoutError:
            await self.kill()
            text = f"the unit did not end within {seconds_text(self._bounds.unit_s)}"
            return _failed(ReasonCode.UNIT_FAILED, text)
        except InvalidError as error:
            await self.kill()
            return _failed(ReasonCode.UNIT_FAILED, str(error))
        except (_WorkerGone, ConnectionError):
            return await self._post_mortem(process)
        except asyncio.CancelledError:
            # Its answer would otherwise be taken for that of the next unit.
            await self.kill()
            raise

    def bind(self, device_id: DeviceId | None) -> None:
        """Which device the next worker is to compute with, by torch's name; None: its best."""
        self._device_id = device_id

    def pace(self, duty: float) -> None:
        """Have the worker compute for `duty` of the time, the running one and those after it; 0 holds it."""
        if duty != self._duty:
            self._duty = duty
            if self._hello is not None:
                self._tell_pace()

    def _tell_pace(self) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            return
        process.stdin.write(PaceLine(duty=self._duty).to_line())

    async def kill(self) -> None:
        """End the worker and everything it started, now; returns when it is gone."""
        process, self._process, self._hello = self._process, None, None
        if process is not None:
            self._killed = process
            _kill_group(process)
            self._ending = asyncio.create_task(self._end(process))
        if self._ending is not None:
            # Whoever asked may be cancelled meanwhile: the next one who asks, at the latest when all ends, waits on.
            await asyncio.shield(self._ending)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        listener, guarding = self._listener, self._guard
        self._listener = self._guard = None
        await process.wait()
        if listener is not None:
            await listener
        if guarding is not None:
            guarding.cancel()
            await asyncio.wait([guarding])

    async def _post_mortem(self, process: asyncio.subprocess.Process) -> Outcome:
        wanted = self._killed is process
        await self.kill()
        if wanted:
            return _failed(ReasonCode.OWNER_PAUSED, "the worker was stopped")
        if self._excess is not None:
            return Outcome(failure=self._excess)
        status = process.returncode
        if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return _failed(ReasonCode.OUT_OF_MEMORY, "the system killed the worker, most likely for memory")
        last = self._last_lines[-1] if self._last_lines else "it said nothing"
        return _failed(ReasonCode.UNIT_FAILED, f"the worker died with status {status}: {last}")

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep the worker's last words; whatever it prints must not fill its pipe."""
        assert process.stderr is not None
        while block := await process.stderr.read(1 << 16):
            lines = block.decode(errors="replace").splitlines()
            self._last_lines.extend(line.strip()[:500] for line in lines if line.strip())

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """End a worker that takes more than it may; `run` then says what it was."""
        self._excess = await guard.watch(
            process.pid, (self._folders.outputs, self._folders.scratch), self._bounds_now()
        )
        if self._excess is not None:
            log.warning("worker ended", reason=self._excess.text)
            _kill_group(process)


async def _answer(process: asyncio.subprocess.Process) -> bytes:
    """The next line of a worker, which may be killed meanwhile."""
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
    except ValueError:
        raise InvalidError("worker: an answer of more than a megabyte") from None
    if not line.endswith(b"\n"):
        raise _WorkerGone
    return line


class _WorkerGone(Exception):  # noqa: N818 - a turn of events, not an error
    """The pipe from the worker has closed."""


def environment(scratch: Path, threads: int) -> dict[str, str]:
    """What a worker sees of the environment: nothing that could carry a secret."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    return passed | {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _failed(code: ReasonCode, text: str) -> Outcome:
    return Outcome(failure=Reason(code=code, text=text))
