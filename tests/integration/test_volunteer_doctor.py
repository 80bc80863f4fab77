"""What `memgrid volunteer doctor` finds in a volunteer that is well, in one that is not, and what it never tells."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from memgrid.clock import ManualClock, SystemClock
from memgrid.digest import digest_of
from memgrid.endpoint import GridEndpoint
from memgrid.findings import Finding, Level
from memgrid_coordinator.app import Coordinator
from memgrid_volunteer import doctor, running
from memgrid_volunteer.cli import app
from memgrid_volunteer.examining import grid as grid_part
from memgrid_volunteer.examining import place
from memgrid_volunteer.examining.redacting import HIDDEN, Redactor
from memgrid_volunteer.home import Home
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.page.key import new_key, write_key
from memgrid_volunteer.service.crashes import Starts

ROOT = Path(__file__).resolve().parents[2]
QUICK = "tests.workers.quick"
INVITE = "inv-Zk3_9qLw7dPx2T"
TOKEN = "access." + "5a" * 24
CODE = "team-code-8Kq2"

Found = dict[str, list[tuple[str, str]]]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with a name, a home, and secrets in the surroundings."""
    home = tmp_path / "homes" / "rosalind"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "rosalind")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MEMGRID_TOKEN", TOKEN)
    monkeypatch.setenv("MEMGRID_HOME", str(tmp_path / "settings"))
    return home


@pytest.fixture
async def home(grid: tuple[Coordinator, GridEndpoint], user: Path) -> Home:
    """A volunteer that has joined, in the user's home."""
    made = Home(user / "volunteer")
    options = running.Options(threads=1, worker_module=QUICK, isolation=Isolation.NONE)
    url = grid[0].address.url
    await running.join(url, made, label="attic", invite_code=INVITE, options=options, tell=lambda line: None)
    made.keep_join_code(url, "Early Birds", CODE)
    return made


async def examined(home: Home) -> tuple[int, Found, str]:
    """Exit code, what was found about each thing, and the report as machines get it."""
    result = await asyncio.to_thread(doctored, home, "--json")
    found: Found = {}
    for finding in json.loads(result.stdout):
        found.setdefault(finding["about"], []).append((finding["level"], finding["text"]))
    return result.exit_code, found, result.output


def doctored(home: Home, *words: str) -> Result:
    arguments = ["doctor", "--home", str(home.folder), "--worker-module", QUICK, *words]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


async def test_a_volunteer_that_is_well_and_its_report_without_secrets(home: Home) -> None:
    key = (home.folder / "volunteer.key").read_bytes()
    starts = Starts(home.folder)
    # Errors quote what they were given: whatever gets into one must not get out.
    starts.begin(SystemClock().now())
    error = f"bad --invite {INVITE} for {key.hex()} in {home.folder}, Bearer {TOKEN}, http://rosalind:pw12345@proxy"
    starts.end(SystemClock().now(), error)
    code, found, report = await examined(home)
    assert code == 0, found
    assert found["key"] == [("ok", "there, and readable by its owner only")]
    assert found["data plane"][0][0] == found["control plane"][0][0] == found["clock"][0][0] == "ok"
    assert found["certificate"][0][1].startswith("the pinned one, sha256=")
    assert found["device"][0][1].startswith("cpu: a test")
    assert found["volunteer"] == [("warning", "not running")]
    assert ("ok", "preset polite") in found["preferences"]
    assert found["isolation"][0][1].startswith(("bubblewrap", "namespaces", "filters"))
    assert HIDDEN in found["starts"][0][1] and "~/volunteer" in found["starts"][0][1]
    plain = await asyncio.to_thread(doctored, home)
    assert plain.exit_code == 0 and "ok      clock        as the grid's" in plain.output
    secrets = {
        INVITE,
        TOKEN,
        CODE,
        "pw12345",
        "rosalind",
        str(Path.home()),
        key.hex(),
        base64.b64encode(key).decode(),
    }
    assert not [secret for secret in secrets if secret in report + plain.output]
    leftovers = [path.name for path in home.folder.iterdir() if path.name.startswith(".")]
    assert not [name for name in leftovers if "doctor" in name]


async def test_each_thing_that_is_wrong_is_found(home: Home) -> None:
    home.folder.chmod(0o755)
    (home.folder / "volunteer.key").chmod(0o644)
    (home.folder / "volunteer.toml").write_text('preset = "loud"\n')
    blobs = home.cache / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    good, bad = digest_of(b"good").removeprefix("sha256:"), "ab" * 32
    (blobs / good).write_bytes(b"good")
    (blobs / bad).write_bytes(b"rotten")
    (home.folder / "why-waiting.txt").write_text("It failed.\nIt waits 8 min 0 s before the next try.\n")
    membership = home.membership()
    pin = membership.url.partition("#sha256=")[2]
    changed = {**json.loads((home.folder / "grid.json").read_text())}
    changed["url"] = membership.url.replace(pin, "0" * 64)
    (home.folder / "grid.json").write_text(json.dumps(changed))
    code, found, _ = await examined(home)
    assert code == 1
    assert found["key"] == [("bad", "others on this machine can read it")]
    assert found["preferences"][0][0] == "bad" and "loud" in found["preferences"][0][1]
    assert found["cache"][1] == ("bad", f"1 of 2 files are not what their names say, the first: {bad}")
    assert found["certificate"][0][0] == "bad" and "not the pinned" in found["certificate"][0][1]
    assert ("bad", "It waits 8 min 0 s before the next try.") in found["starts"]


async def test_what_runs_says_why_it_idles(home: Home) -> None:
    with home.lock():
        home.write_status(
            {
                "state": "idle",
                "idle_reason": {"code": "no_work", "text": "no campaign has open units"},
                "devices": [
                    {
                        "device_id": "cuda:0",
                        "name": "A card",
                        "action": "pause_release",
                        "reason": {"code": "owner_paused", "text": "it is 84 °C hot"},
                        "preference": "devices.temperature_max_c",
                    }
                ],
            }
        )
        _, found, _ = await examined(home)
    assert found["volunteer"] == [("ok", "idle: no campaign has open units")]
    assert found["device"] == [("ok", "cuda:0: A card, 0 B, ")]
    assert found["now"] == [("fact", "cuda:0 pause_release: it is 84 °C hot (devices.temperature_max_c)")]


async def test_a_worker_that_does_not_start_is_shown_with_its_last_words(home: Home) -> None:
    findings = await asyncio.to_thread(
        lambda: list(doctor.examine(home, SystemClock(), random.Random(1), worker_module="no.such.module"))
    )
    worker = next(finding for finding in findings if finding.about == "worker")
    assert worker.level is Level.BAD and "No module named" in worker.text


def test_before_joining_it_says_how_to_begin(user: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--home", str(user / "nothing")])
    assert result.exit_code == 1 and "begin with: memgrid volunteer join URL" in result.output
    assert not (user / "nothing").exists()


def test_a_key_of_another_size_is_damaged(tmp_path: Path) -> None:
    home = Home(tmp_path / "v")
    home.make()
    (home.folder / "volunteer.key").write_bytes(b"x" * 31)
    assert [finding.level for finding in place.key(home)] == [Level.BAD]


async def test_a_grid_that_is_away_is_a_finding(home: Home) -> None:
    membership = home.membership()
    away = "https://127.0.0.1:1#" + membership.url.partition("#")[2]
    findings = await asyncio.to_thread(
        lambda: list(grid_part.grid(replace(membership, url=away), ManualClock(datetime.now(UTC))))
    )
    assert [finding.about for finding in findings if finding.level is Level.BAD] == ["data plane"]


async def test_a_clock_that_is_off_is_told_from_the_grids(home: Home) -> None:
    membership = home.membership()
    for off, words in ((timedelta(hours=2), "ahead of"), (timedelta(hours=-2), "behind")):
        clock = ManualClock(datetime.now(UTC) + off)
        findings = await asyncio.to_thread(lambda at: list(grid_part.grid(membership, at)), clock)
        (found,) = [finding for finding in findings if finding.about == "clock"]
        assert found.level is Level.BAD and words in found.text


@given(off_s=st.floats(-5, 5), took_s=st.floats(0, 5))
def test_a_slow_answer_is_no_wrong_clock(off_s: float, took_s: float) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    told = (noon + timedelta(seconds=took_s / 2)).replace(microsecond=0)
    sent = noon + timedelta(seconds=off_s)
    assert grid_part.skew(told, sent, sent + timedelta(seconds=took_s)).level is Level.OK


@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_secret_is_hidden_wherever_it_stands(
    before: str, after: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Home(tmp_path_factory.getbasetemp() / "redacted")
    home.make()
    key = home.folder / "volunteer.key"
    if not key.exists():
        key.write_bytes(os.urandom(32))
    page = new_key(7072)
    write_key(home.folder, page)
    redactor = Redactor(home, {"SOME_API_KEY": "hush-hush", "HARMLESS": "word"})
    for secret in (key.read_bytes().hex(), "hush-hush", page.secret, page.cookie):
        cleaned = redactor.cleaned(Finding(level=Level.OK, about="x", text=f"{before}{secret}{after}", advice=secret))
        assert secret not in cleaned.text and cleaned.advice == HIDDEN
    # A token is known by its shape, so it has to begin as a word does.
    assert redactor.clean(f"{before} {TOKEN} {after}").count(TOKEN) == 0
    shutil.rmtree(home.folder)
