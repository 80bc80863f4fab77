"""What the walls around a worker promise, tried from the inside; and that no child is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from memgrid.errors import InternalError
from memgrid.units import ReasonCode
from memgrid_volunteer import landlock
from memgrid_volunteer.isolation import Folders, Isolation, probe, try_all
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.sandbox import Sandbox, environment

ROOT = Path(__file__).resolve().parents[2]
NOSY = "tests.workers.nosy"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MEMGRID_TOKEN", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy.example")
    folders = Folders(cache=tmp_path / "state" / "cache", work=tmp_path / "state" / "work")
    folders.make()
    return folders


@contextlib.asynccontextmanager
async def sandbox(folders: Folders, isolation: Isolation, module: str = NOSY) -> AsyncIterator[Sandbox]:
    made = Sandbox(folders, threads=1, module=module, isolation=isolation)
    try:
        yield made
    finally:
        await made.kill()


def job(folders: Folders, kind: str) -> Job:
    made = Job(
        kind=kind, unit_dir=folders.inputs / "lease", model_dir=folders.cache, out_dir=folders.outputs / "lease"
    )
    for folder in (made.unit_dir, made.out_dir):
        folder.mkdir(exist_ok=True)
    return made


async def holding(folders: Folders) -> Isolation:
    return await probe(folders, environment(folders.scratch, 1))


async def look_around(folders: Folders, isolation: Isolation) -> dict[str, Any]:
    secret = folders.cache.parent / "volunteer.key"
    secret.write_bytes(b"private")
    (folders.cache / "weights").write_bytes(b"w")
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    question = {
        "port": server.sockets[0].getsockname()[1],
        "secret": str(secret),
        "cache": str(folders.cache / "weights"),
    }
    wanted = job(folders, "look")
    (wanted.unit_dir / "question.json").write_text(json.dumps(question))
    async with server, sandbox(folders, isolation) as worker:
        outcome = await worker.run(wanted)
    assert outcome.failure is None
    found: dict[str, Any] = json.loads((wanted.out_dir / "found.json").read_bytes())
    return found


@pytest.mark.parametrize("isolation", Isolation)
async def test_each_isolation_keeps_its_promise(folders: Folders, isolation: Isolation) -> None:
    await require(folders, isolation)
    found = await look_around(folders, isolation)
    assert found["network"] is (isolation is Isolation.NONE)
    assert found["cache"] is True
    if isolation is Isolation.BUBBLEWRAP or landlock.version():
        assert found["secret"] is found["cache_writable"] is (isolation is Isolation.NONE)
    assert found["core_limit"] == 0
    assert not [name for name in found["environment"] if name in ("MEMGRID_TOKEN", "HTTPS_PROXY")]


async def require(folders: Folders, isolation: Isolation) -> None:
    if isolation is not Isolation.NONE and isolation not in await working(folders):
        pytest.skip(f"{isolation} is not to be had on this machine")


async def working(folders: Folders) -> list[Isolation]:
    tried = [each async for each in try_all(folders, environment(folders.scratch, 1))]
    return [each.isolation for each in tried if not each.reason]


async def test_the_probe_takes_the_strongest_that_works(folders: Folders) -> None:
    assert await holding(folders) is [*await working(folders), Isolation.NONE][0]


async def test_without_the_tools_the_kernel_alone_is_asked(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folders.work))
    tried = [each async for each in try_all(folders, environment(folders.scratch, 1))]
    assert [each.reason for each in tried[:2]] == ["bwrap is not installed", "unshare is not installed"]
    assert await holding(folders) is (Isolation.NONE if tried[2].reason else Isolation.FILTERS)


async def test_a_unit_that_fails_leaves_the_worker_running(folders: Folders) -> None:
    async with sandbox(folders, await holding(folders)) as worker:
        outcome = await worker.run(job(folders, "shout"))
        pid = worker.pid
        assert outcome.failure is not None
        assert outcome.failure.code is ReasonCode.UNIT_FAILED
        assert outcome.failure.text == "ValueError: the unit went wrong"
        await worker.run(job(folders, "shout"))
        assert worker.pid == pid


async def test_a_worker_that_dies_is_replaced(folders: Folders) -> None:
    async with sandbox(folders, await holding(folders)) as worker:
        outcome = await worker.run(job(folders, "die"))
        assert outcome.failure is not None and outcome.failure.code is ReasonCode.UNIT_FAILED
        assert "status 7" in outcome.failure.text
        outcome = await worker.run(job(folders, "shout"))
        assert outcome.failure is not None and outcome.failure.text == "ValueError: the unit went wrong"


async def test_a_killed_worker_takes_its_children_along(folders: Folders) -> None:
    # Behind any other walls it has none.
    async with sandbox(folders, Isolation.NONE) as worker:
        running = asyncio.create_task(worker.run(job(folders, "hang")))
        family = await family_of(worker)
        await worker.kill()
        outcome = await running
        assert outcome.failure is not None and outcome.failure.code is ReasonCode.OWNER_PAUSED
    await gone(family)


async def family_of(worker: Sandbox) -> list[psutil.Process]:
    """The worker, its walls and the child of its unit, once that has been started."""
    async with asyncio.timeout(60):
        while True:
            if worker.pid is not None:
                parent = psutil.Process(worker.pid)
                family = [parent, *parent.children(recursive=True)]
                if any(member.name() == "sleep" for member in family):
                    return family
            await asyncio.sleep(0.05)


async def gone(family: list[psutil.Process]) -> None:
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=10)
    assert not alive


async def test_a_module_that_does_not_start_says_why(folders: Folders) -> None:
    async with sandbox(folders, Isolation.NONE, "tests.workers.missing") as worker:
        with pytest.raises(InternalError, match=r"does not start: .*No module named tests.workers.missing"):
            await worker.start()


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from memgrid.log import configure_logging
from memgrid_volunteer.isolation import Folders, Isolation
from memgrid_volunteer.sandbox import Sandbox

async def main():
    configure_logging()
    sandbox = Sandbox(Folders(cache=Path(sys.argv[1]), work=Path(sys.argv[2])), threads=1,
        isolation=Isolation(sys.argv[3]))
    await sandbox.start()
    print(sandbox.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("isolation", Isolation)
async def test_no_worker_outlives_a_supervisor_killed_hard(folders: Folders, isolation: Isolation) -> None:
    await require(folders, isolation)
    arguments = [str(folders.cache), str(folders.work), isolation.value]
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISOR, *arguments, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert supervisor.stdout is not None
    worker = psutil.Process(int(await supervisor.stdout.readline()))
    family = [worker, *worker.children(recursive=True)]
    os.kill(supervisor.pid, signal.SIGKILL)
    await supervisor.wait()
    await gone(family)
