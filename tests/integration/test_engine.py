"""Heavy functions run in other processes, come back with their own errors, and leave no process behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from memgrid.cube.identity import identity_of_folder
from memgrid.cube.manifest import LayoutKind, Wrap
from memgrid.digest import digest_of, digest_of_file
from memgrid.errors import DigestMismatchError, DrainingError, InvalidError, UnavailableError
from memgrid.kinds.refusal import RefusedError
from memgrid.units import ComputeDtype, ReasonCode, StoreDtype
from memgrid_coordinator.heavy.chunks import PlanParameters
from memgrid_coordinator.heavy.measured import MeasuredEngine
from memgrid_coordinator.heavy.plan import plan_activation
from memgrid_coordinator.heavy.ray_engine import RayEngine
from memgrid_coordinator.heavy.runner import Engine, InlineEngine
from memgrid_coordinator.heavy.slots import Load
from memgrid_coordinator.heavy.sources import SourceFile, SourceFormat
from tests.integration import heavy_functions

DRAIN = timedelta(seconds=20)
NO_DRAIN = timedelta(0)
PATIENCE_S = 60.0
FOR_EVER_S = 100_000.0


@pytest.fixture(scope="module")
def ray_engine(ray_surroundings: Path) -> Iterator[RayEngine]:
    """A real Ray with one CPU."""
    engine = RayEngine("local", cpus=1)
    yield engine
    asyncio.run(engine.close(DRAIN))


@pytest.fixture(scope="module")
def inline_engine() -> Iterator[InlineEngine]:
    engine = InlineEngine(processes=1)
    yield engine
    asyncio.run(engine.close(DRAIN))


@pytest.fixture(params=["inline", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    return found


async def test_a_function_runs_in_another_process(engine: Engine) -> None:
    assert await engine.run(heavy_functions.pid) != os.getpid()
    assert await engine.run(heavy_functions.add, 1, other=2) == 3


async def test_files_are_passed_by_path(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"content")
    assert await engine.run(digest_of_file, path) == digest_of(b"content")


async def test_a_plan_made_elsewhere_is_the_one_made_here(
    engine: Engine, tmp_path: Path, tiny_model_folder: Path
) -> None:
    path = tmp_path / "blob"
    path.write_text("The valve opens at three bar. " * 40)
    source = SourceFile(
        path=path, uri="a.txt", digest=digest_of_file(path), format=SourceFormat.TXT, licence="CC0-1.0"
    )
    parameters = PlanParameters(
        layout=LayoutKind.CHAINED,
        wrap=Wrap.CHAT,
        chunk_tokens=64,
        target_unit_s=20,
        flops_per_s=1e9,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=StoreDtype.BFLOAT16,
        sink_tokens=1,
    )
    model = await engine.run(identity_of_folder, tiny_model_folder)
    planned = await engine.run(plan_activation, [source], tiny_model_folder, model, parameters)
    assert planned == plan_activation([source], tiny_model_folder, model, parameters)
    assert len(planned.chunks) > 3


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (heavy_functions.raise_mismatch, DigestMismatchError),
        (heavy_functions.raise_refusal, RefusedError),
        (heavy_functions.raise_bug, ZeroDivisionError),
    ],
)
async def test_an_error_comes_back_as_it_was_raised(
    engine: Engine, function: Callable[[], None], expected: type[Exception]
) -> None:
    with pytest.raises(expected) as caught:
        await engine.run(function)
    assert type(caught.value) is expected
    if isinstance(caught.value, RefusedError):
        assert caught.value.reason.code is ReasonCode.WRONG_SHAPE


async def test_a_process_that_dies_once_costs_nothing(engine: Engine, tmp_path: Path) -> None:
    assert await engine.run(heavy_functions.die_the_first_time, tmp_path / "mark") == "second"


async def test_a_function_that_always_dies_is_reported_and_the_engine_goes_on(engine: Engine) -> None:
    with pytest.raises(UnavailableError, match="die"):
        await engine.run(heavy_functions.die)
    assert await engine.run(heavy_functions.add, 1, other=1) == 2


async def test_a_function_that_dies_twice_is_not_given_a_third_process(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="its process died 2 times"):
        await engine.run(heavy_functions.note_and_die, tmp_path / "log")
    assert (tmp_path / "log").read_text() == ".."


async def test_a_function_that_fails_is_not_called_again(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="a server did not answer"):
        await engine.run(heavy_functions.note_and_fail, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "."


async def test_what_waits_is_neither_pickled_nor_sent(engine: Engine, tmp_path: Path) -> None:
    running = asyncio.create_task(engine.run(heavy_functions.mark_and_wait, tmp_path / "running", FOR_EVER_S))
    await until(tmp_path.joinpath("running").exists)
    heavy_functions.Packed.times = 0
    contents = [heavy_functions.Packed(bytes(100_000 + number)) for number in range(50)]
    calls = [asyncio.create_task(engine.run(heavy_functions.measure, content)) for content in contents]
    await asyncio.sleep(0)
    assert (engine.load, heavy_functions.Packed.times) == (Load(running=1, waiting=50, slots=1), 0)
    running.cancel()
    assert await asyncio.gather(*calls) == [100_000 + number for number in range(50)]
    assert engine.load == Load(running=0, waiting=0, slots=1)


async def test_who_waits_and_is_cancelled_is_never_begun(engine: Engine, tmp_path: Path) -> None:
    running = asyncio.create_task(engine.run(heavy_functions.mark_and_wait, tmp_path / "running", FOR_EVER_S))
    await until(tmp_path.joinpath("running").exists)
    waiting = asyncio.create_task(engine.run(heavy_functions.mark_and_wait, tmp_path / "waiting", 0.0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled() and engine.load.waiting == 0
    running.cancel()
    assert await engine.run(heavy_functions.add, 1, other=1) == 2
    assert not (tmp_path / "waiting").exists()


async def test_who_runs_and_is_cancelled_is_interrupted(engine: Engine, tmp_path: Path) -> None:
    call = asyncio.create_task(engine.run(heavy_functions.mark_and_wait, tmp_path / "mark", FOR_EVER_S))
    await until(tmp_path.joinpath("mark").exists)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    # There is room for one call at a time: if the first one went on, no other would ever be done.
    assert await engine.run(heavy_functions.add, 1, other=1) == 2


async def test_an_interrupted_process_keeps_what_it_has_loaded(inline_engine: InlineEngine, tmp_path: Path) -> None:
    call = asyncio.create_task(inline_engine.run(heavy_functions.mark_and_wait, tmp_path / "pid", FOR_EVER_S))
    await until(tmp_path.joinpath("pid").exists)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert await inline_engine.run(heavy_functions.pid) == int((tmp_path / "pid").read_text())


async def test_a_death_concerns_nobody_else(tmp_path: Path) -> None:
    engine, gate = InlineEngine(processes=2), tmp_path / "gate"
    neighbour = asyncio.create_task(engine.run(heavy_functions.mark_and_wait_for, tmp_path, "neighbour", gate))

    def begun() -> int:
        return len(list(tmp_path.glob("neighbour-*[0-9]")))

    await until(lambda: begun() == 1)
    with pytest.raises(UnavailableError, match="die: its process died 2 times"):
        await engine.run(heavy_functions.die)
    gate.touch()
    assert await neighbour == "neighbour"
    assert begun() == 1, "it was begun again"
    await engine.close(DRAIN)


@pytest.mark.parametrize(
    ("function", "is_failure"),
    [
        (heavy_functions.pid, False),
        (heavy_functions.raise_mismatch, False),
        (heavy_functions.raise_bug, True),
        (heavy_functions.die, True),
    ],
)
async def test_deaths_and_bugs_count_as_failures_of_the_engine(
    inline_engine: InlineEngine, function: Callable[[], object], is_failure: bool
) -> None:
    seen: list[tuple[str, bool]] = []
    measured = MeasuredEngine(inline_engine, lambda name, _, failed: seen.append((name, failed)))
    await asyncio.gather(measured.run(function), return_exceptions=True)
    assert seen == [(function.__name__, is_failure)]


async def test_the_inline_engine_ends_what_takes_too_long(tmp_path: Path) -> None:
    engine = InlineEngine(processes=1, limit=timedelta(seconds=0.3))
    with pytest.raises(UnavailableError, match=r"mark_and_wait: took longer than 0\.3 s"):
        await engine.run(heavy_functions.mark_and_wait, tmp_path / "mark", PATIENCE_S)
    assert await engine.run(heavy_functions.add, 1, other=1) == 2
    await engine.close(DRAIN)


async def test_close_lets_running_work_finish_and_refuses_queued_and_new(tmp_path: Path) -> None:
    engine = InlineEngine(processes=1)
    running = asyncio.create_task(engine.run(heavy_functions.mark_and_wait, tmp_path / "running", 0.3))
    await until(tmp_path.joinpath("running").exists)
    queued = [asyncio.create_task(engine.run(heavy_functions.mark_and_wait, tmp_path / "q", 0.0)) for _ in range(3)]
    await asyncio.sleep(0)
    await engine.close(DRAIN)
    assert await running == "done"
    for call in queued:
        with pytest.raises(DrainingError):
            await call
    assert not (tmp_path / "q").exists()
    with pytest.raises(DrainingError):
        await engine.run(heavy_functions.pid)


async def test_close_ends_what_does_not_finish_in_time(tmp_path: Path) -> None:
    engine = InlineEngine(processes=1)
    running = asyncio.create_task(engine.run(heavy_functions.mark_and_wait, tmp_path / "pid", PATIENCE_S))
    await until(tmp_path.joinpath("pid").exists)
    await engine.close(NO_DRAIN)
    with pytest.raises(DrainingError):
        await running
    await until(lambda: not is_running(int((tmp_path / "pid").read_text())))


def test_processes_do_not_outlive_a_killed_coordinator(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from memgrid_coordinator.heavy.runner import InlineEngine\n"
        "from tests.integration.heavy_functions import mark_and_wait\n"
        "if __name__ == '__main__':\n"
        f"    asyncio.run(InlineEngine().run(mark_and_wait, Path(sys.argv[1]), {PATIENCE_S}))\n"
    )
    (tmp_path / "parent.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    mark = tmp_path / "pid"
    with subprocess.Popen([sys.executable, tmp_path / "parent.py", mark], env=environment) as parent:
        wait_until(mark.exists)
        child = int(mark.read_text())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(child))


def test_ray_leaves_the_termination_signal_to_the_coordinator(ray_engine: RayEngine) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("address", ["ray-of-nobody", "http://127.0.0.1/x", "127.0.0.1:port"])
def test_what_is_no_address_of_a_ray_is_refused(address: str) -> None:
    with pytest.raises(InvalidError, match="ray: expected auto, local or HOST:PORT, found"):
        RayEngine(address)


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"ray: 127.0.0.1:{port}: nobody answers"):
            RayEngine(f"127.0.0.1:{port}")


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(process_id: int) -> bool:
    """Whether a process lives; one that ended but was not waited for does not."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
