"""How far a unit has got, from the worker's mouth to coordinator and owner."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memgrid.clock import ManualClock
from memgrid.digest import token_bytes
from memgrid.units import HostFacts, LeaseId, UnitKey
from memgrid_volunteer.desk import Desk, Stage
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.grid_diary import REPEAT_PROGRESS_S, GridDiary
from memgrid_volunteer.isolation import Folders, Isolation
from memgrid_volunteer.kinds.job import Job, Outcome, Progress
from memgrid_volunteer.sandbox import Sandbox
from tests.scripted_grid import ScriptedGrid
from tests.training import make_spec
from tests.unit.volunteer.test_desk import MODEL, offer
from tests.volunteer_homes import make_home

ROOT = Path(__file__).resolve().parents[3]
FACTS = HostFacts(os="", arch="", cpu_count=1, memory_bytes=0, devices=(), client_version="", isolation="none")
KEY = UnitKey("ab" * 32)


async def test_a_worker_may_tell_before_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folders = Folders(cache=tmp_path / "cache", work=tmp_path / "work")
    for folder in (folders.cache, folders.work / "in", folders.work / "out"):
        folder.mkdir(parents=True)
    sandbox = Sandbox(folders, threads=1, module="tests.workers.quick", isolation=Isolation.NONE)
    heard: list[Progress] = []
    (folders.work / "in" / "tokens.bin").write_bytes(token_bytes([6, 1]))
    (folders.work / "in" / "spec.json").write_bytes(ScriptedGrid().offer("one", 6, 1).spec)
    job = Job(kind="prefill", unit_dir=folders.work / "in", model_dir=tmp_path, out_dir=folders.work / "out")
    outcomes = [await sandbox.run(job, heard.append), await sandbox.run(job)]
    await sandbox.kill()
    assert [outcome.facts is not None for outcome in outcomes] == [True, True]
    assert [progress.done for progress in heard] == [0.25, 0.5, 0.75]
    assert heard[2].text == "step 3 of 4, loss 1.23"


@pytest.mark.parametrize(
    "line",
    [
        Outcome().to_line(),
        b"not json\n",
        b'{"progress": 1}\n',
        b'{"progress": {"done": NaN, "text": "x"}}\n',
        b"[]\n",
    ],
)
def test_other_lines_are_no_progress(line: bytes) -> None:
    assert Progress.from_line(line) is None


def test_the_workers_word_beats_the_guess() -> None:
    desk = Desk()
    desk.take(offer("a", estimate_s=10), MODEL)
    held = desk.find(LeaseId("a"))
    assert held is not None
    held.stage, held.began_s = Stage.RUNNING, 0.0
    assert desk.held(5.0)[0].progress == 0.5
    held.told = 0.125
    assert desk.held(5.0)[0].progress == 0.125


def test_the_owner_hears_of_it_now_and_then_and_status_always_knows(tmp_path: Path) -> None:
    home, clock, lines = make_home(tmp_path), ManualClock(datetime(2026, 1, 1, tzinfo=UTC)), list[str]()
    whole = Diary(home, FACTS, clock, lines.append)
    diary = GridDiary(whole, home.membership())
    diary.unit_started("cpu", KEY, make_spec())
    for step in range(1, 25):
        clock.advance(timedelta(seconds=1))
        diary.unit_goes_on("cpu", KEY, Progress(done=step / 32, text=f"step {step} of 32, loss 1.23"))
    assert lines[1:] == [
        f"unit {KEY[:12]}: step {step} of 32, loss 1.23" for step in range(1, 25) if step % REPEAT_PROGRESS_S == 0
    ]
    assert home.status()["progress"] == "step 24 of 32, loss 1.23"
    diary.unit_done("cpu", KEY, 100, 24.0)
    assert home.status()["progress"] == ""
    whole.stands("stopped")
