"""A hostile worker in the real sandbox: each escape is tried behind each wall, and refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from memgrid.units import Reason, ReasonCode
from memgrid_volunteer import landlock
from memgrid_volunteer.bounds import Bounds
from memgrid_volunteer.escapes import trial
from memgrid_volunteer.escapes.attempts import ATTEMPTS
from memgrid_volunteer.escapes.worker import THROUGH
from memgrid_volunteer.guard import Usage, excess
from memgrid_volunteer.isolation import Folders, Isolation, command_for
from memgrid_volunteer.kinds.job import Job, Outcome
from memgrid_volunteer.sandbox import environment

ROOT = Path(__file__).resolve().parents[2]

BY_THE_FILTER = [
    "connect_tcp",
    "send_by_fast_open",
    "listen_tcp",
    "send_udp",
    "ask_nameserver",
    "connect_unix",
    "connect_abstract",
    "send_unix",
    "send_past_a_pair",
    "open_packets",
    "open_netlink",
    "set_up_io_uring",
    "signal_other",
    "trace_other",
    "limit_other",
    "start_process",
    "fork_bomb",
    "start_program",
    "become_program",
    "start_setuid",
    "mount",
    "make_namespaces",
    "read_keyring",
    "load_bpf",
    "open_perf",
    "open_userfaultfd",
    "load_kernel",
    "load_module",
    "make_device",
]
FILES = [
    "read_key",
    "read_ssh_key",
    "read_home",
    "read_shadow",
    "read_through_link",
    "write_inputs",
    "write_cache",
    "write_outside",
    "change_program",
    "open_disk",
    "open_memory",
]
OTHERS = ["see_others", "read_environment", "read_through_root", "read_memory"]
LIMITS = {
    "reserve_memory": "ENOMEM",
    "fill_memory": "ended: memory",
    "fill_shared_memory": "ended: memory",
    "fill_disk": "ended: disk",
    "write_endless_file": "EFBIG",
    "make_files": "ended: files",
    "open_files": "EMFILE",
    "run_for_ever": "ended: time",
}


def require(isolation: Isolation) -> None:
    """Skips only where the tool itself is missing or useless; that the walls hold is what is tested."""
    tools = {
        Isolation.BUBBLEWRAP: ["bwrap", "--ro-bind", "/", "/", "--unshare-net", "--unshare-pid", "true"],
        Isolation.NAMESPACES: ["unshare", "--user", "--net", "--pid", "--fork", "true"],
    }
    command = tools.get(isolation)
    if command and (shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode):
        pytest.skip(f"{command[0]} does not work here")
    if isolation is not Isolation.BUBBLEWRAP and not landlock.version():
        pytest.skip("this kernel has no Landlock")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("escapes")


async def answers(isolation: Isolation, folder: Path, attempts: list[str] | None = None) -> dict[str, str]:
    return {each.attempt: each.answer async for each in trial.try_escapes([isolation], folder, attempts)}


@pytest.mark.parametrize("isolation", [Isolation.BUBBLEWRAP, Isolation.NAMESPACES, Isolation.FILTERS])
async def test_every_escape_is_refused(isolation: Isolation, place: Path) -> None:
    require(isolation)
    found = await answers(isolation, place / isolation.value)
    assert set(found) == set(trial.refused_here())
    assert {name: found[name] for name in BY_THE_FILTER} == dict.fromkeys(BY_THE_FILTER, "EPERM")
    own_view = isolation is Isolation.BUBBLEWRAP
    unseen, fixed = ("ENOENT", "EROFS") if own_view else ("EACCES", "EACCES")
    for name in FILES:
        expected = fixed if name in ("write_inputs", "write_cache", "change_program") else unseen
        # What a machine has none of is not there behind any wall.
        missing = {"ENOENT"} if name in ("open_disk", "open_memory", "read_home") else set()
        assert found[name] in {expected, *missing}, name
    hidden = "EACCES" if isolation is Isolation.FILTERS else "ENOENT"
    assert {name: found[name] for name in OTHERS} == dict.fromkeys(OTHERS, hidden)
    assert found["call_as_32_bit"] == "SIGSYS"
    assert found["make_memory_file"] == found["start_process_otherwise"] == "ENOSYS"
    assert {name: found[name] for name in LIMITS if name in found} == {
        name: answer for name, answer in LIMITS.items() if name in found
    }
    # Root may start as many as it likes, until somebody sees it.
    assert found["start_threads"] in {"ended: threads", "EAGAIN"}


async def test_with_limits_alone_only_the_limits_hold(place: Path) -> None:
    """Which shows that the attempts are real: without a wall they get through."""
    through = [
        "connect_tcp",
        "send_udp",
        "connect_unix",
        "connect_abstract",
        "send_unix",
        "send_past_a_pair",
        "read_key",
        "read_ssh_key",
        "read_through_link",
        "write_inputs",
        "write_cache",
        "write_outside",
        "see_others",
        "signal_other",
        "limit_other",
        "start_process",
        "start_process_otherwise",
        "start_program",
        "make_memory_file",
        "listen_tcp",
        "send_by_fast_open",
    ]
    bounded = ["fill_memory", "fill_disk", "open_files"]
    found = await answers(
        Isolation.NONE, place / "none", [*through, *bounded, "start_threads", "fork_bomb", "mount", "make_device"]
    )
    assert {name: found[name] for name in through} == dict.fromkeys(through, THROUGH)
    assert {name: found[name] for name in bounded} == {name: LIMITS[name] for name in bounded}
    assert found["start_threads"] == "ended: threads"
    assert found["fork_bomb"] in {"ended: threads", "ended: memory"}
    # Whatever rights the user has, the worker has none of them.
    assert found["mount"] == found["make_device"] == "EPERM"


@pytest.mark.parametrize("isolation", [Isolation.BUBBLEWRAP, Isolation.NAMESPACES])
async def test_namespaces_hold_by_themselves(isolation: Isolation, place: Path) -> None:
    require(isolation)
    names = ["connect_tcp", "connect_abstract", "see_others", "signal_other", "limit_other", "trace_other"]
    found = await behind(isolation, place / f"{isolation.value}-alone", names, is_filtered=False, is_sighted=True)
    # In a network of its own nobody listens, and there is no process of that number.
    assert found["connect_tcp"] in {"ECONNREFUSED", "ENETUNREACH"} and found["connect_abstract"] == "ECONNREFUSED"
    assert found["see_others"] == "ENOENT"
    assert found["signal_other"] == found["limit_other"] == found["trace_other"] == "ESRCH"


@pytest.mark.parametrize("isolation", [Isolation.NAMESPACES, Isolation.FILTERS])
async def test_landlock_holds_by_itself(isolation: Isolation, place: Path) -> None:
    require(isolation)
    names = [*FILES[:9], "connect_abstract", "signal_other"]
    found = await behind(isolation, place / f"{isolation.value}-landlock", names, is_filtered=False)
    assert {found[name] for name in FILES[:9]} <= {"EACCES", "ENOENT"}
    assert found["read_key"] == found["write_inputs"] == found["write_outside"] == "EACCES"
    if isolation is Isolation.FILTERS and landlock.version() >= 6:
        assert found["connect_abstract"] == found["signal_other"] == "EPERM"


async def behind(isolation: Isolation, folder: Path, names: list[str], **changed: bool) -> dict[str, str]:
    """What becomes of attempts where some of the walls are missing."""
    folders = Folders(cache=folder / "cache", work=folder / "work")
    folders.make()
    command = command_for(isolation, folders, trial._MODULE)
    told = next(place for place, word in enumerate(command) if word.startswith('{"is_filtered"'))
    command[told] = json.dumps({**json.loads(command[told]), **changed})
    found = {}
    async with trial._targets(folder) as targets:
        worker = await asyncio.create_subprocess_exec(
            *command,
            env=environment(folders.scratch, 1),
            cwd=folders.scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert worker.stdin is not None and worker.stdout is not None
        await worker.stdout.readline()
        for name in names:
            job: Job = trial._job(folders, name)
            targets.write(job.unit_dir)
            worker.stdin.write(job.to_line())
            outcome = Outcome.from_line(await worker.stdout.readline())
            assert outcome.failure is not None
            found[name] = outcome.failure.text
        worker.stdin.close()
        await worker.wait()
    return found


async def test_python_started_in_the_home_does_not_show_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(Isolation.BUBBLEWRAP)
    folder = place / "started"
    monkeypatch.setattr(sys, "path", [str(folder), str(place), *sys.path])
    assert (await answers(Isolation.BUBBLEWRAP, folder, ["read_key"])) == {"read_key": "ENOENT"}


def test_what_is_mapped_and_can_be_dropped_is_no_excess() -> None:
    bounds = Bounds(memory_bytes=1 << 30, disk_bytes=1 << 30, tasks=10, files=10)
    fine = {"memory_bytes": 1 << 30, "tasks": 10, "disk_bytes": 1 << 30, "files": 10, "disk_free_bytes": 64 << 20}
    assert excess(Usage(**fine), bounds) is None
    for name in ("memory_bytes", "tasks", "disk_bytes", "files"):
        reason = excess(Usage(**{**fine, name: fine[name] + 1}), bounds)
        assert isinstance(reason, Reason)
        assert (reason.code is ReasonCode.OUT_OF_MEMORY) is (name == "memory_bytes")
    full = excess(Usage(**{**fine, "disk_free_bytes": (64 << 20) - 1}), bounds)
    assert full is not None and "only" in full.text


async def test_the_guard_does_not_count_mapped_files(tmp_path: Path) -> None:
    """A model that is only read stays the system's to drop."""
    from memgrid_volunteer.guard import _memory_bytes

    file = tmp_path / "model"
    file.write_bytes(bytes(64 << 20))
    code = "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); sum(m[::4096]);"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"{code} print('.', flush=True); sys.stdin.read()",
        str(file),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    await process.stdout.readline()
    counted, resident = _memory_bytes(psutil.Process(process.pid)), psutil.Process(process.pid).memory_info().rss
    process.stdin.close()
    await process.wait()
    assert resident > 64 << 20 > counted


def test_the_page_shows_every_escape() -> None:
    page = (ROOT / "docs" / "service.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith(tuple(each.title for each in ATTEMPTS.values()))]
    shown = {each.title for each in ATTEMPTS.values() if any(line.startswith(f"{each.title}  ") for line in lines)}
    assert shown == {each.title for each in ATTEMPTS.values()}
    for line in lines:
        # The last column is that of no walls at all.
        assert THROUGH not in line.rsplit("  ", 1)[0]
