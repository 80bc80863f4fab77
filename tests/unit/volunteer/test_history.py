"""What a volunteer remembers of its units: each with its end and its verdict, bounded, and never in the way."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memgrid_volunteer import history_rows
from memgrid_volunteer.done import DoneUnit, Fate, Outcome
from memgrid_volunteer.history import History
from memgrid_volunteer.page.credit import Span, credit_chart
from tests.volunteer_homes import GRID, KEYS, NOW

UNIT = DoneUnit(at=NOW, unit_key=KEYS[0], kind="prefill", work="512 tokens", grid=GRID, tokens=512, compute_s=4.0)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path)
    yield history
    history.close()


@pytest.fixture(params=["UTC", "America/St_Johns", "Pacific/Kiritimati"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The machine's own clock."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_a_unit_is_what_was_written(history: History) -> None:
    history.add(UNIT)
    assert history.units() == [replace(UNIT, number=1)]
    assert history.newest() == 1


def test_a_verdict_belongs_to_the_report_and_not_to_earlier_tries(history: History) -> None:
    history.add(replace(UNIT, outcome=Outcome.STOPPED, reason="you paused it"))
    history.add(UNIT)
    history.judge(KEYS[0], Outcome.ACCEPTED, "", 58 * 10**12, NOW, grid=GRID)
    history.judge(KEYS[0], Outcome.REJECTED, "late", 0, NOW, grid=GRID)
    newest, older = history.units()
    assert (newest.outcome, newest.credit_flops) == (Outcome.ACCEPTED, 58 * 10**12)
    assert (older.outcome, older.reason) == (Outcome.STOPPED, "you paused it")


def test_a_verdict_on_a_unit_of_before_counts_all_the_same(history: History) -> None:
    history.judge(KEYS[3], Outcome.ACCEPTED, "", 10**12, NOW, grid=GRID)
    assert history.units() == [] and history.days(NOW.date())[0].credit_flops == 10**12


@pytest.mark.parametrize("credit", [2**63, 10**30])
def test_no_grid_can_break_it_with_credit(history: History, credit: int) -> None:
    for number in (1, 2):
        history.add(replace(UNIT, unit_key=KEYS[number]))
        history.judge(KEYS[number], Outcome.ACCEPTED, "x" * 10_000, credit, NOW, grid=GRID)
    assert history.days(NOW.date())[0].credit_flops == pytest.approx(2 * credit)
    assert history.hours(NOW)[0].credit_flops == pytest.approx(2 * credit)
    assert len(history.units()[0].reason) == 500


def test_old_units_are_forgotten_and_days_are_not(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_rows, "UNITS_MAX", 150)
    long_ago = NOW - timedelta(days=91)
    history.add(replace(UNIT, at=long_ago))
    for number in range(350):
        history.add(replace(UNIT, at=NOW + timedelta(seconds=number)))
    kept = history.units(limit=1000)
    assert 150 <= len(kept) <= 250 and kept[0].at == NOW + timedelta(seconds=349)
    assert [day.units for day in history.days(long_ago.date())] == [1, 350]


def test_what_has_a_cube_is_not_asked_about_again(history: History) -> None:
    for number in range(4):
        history.add(replace(UNIT, unit_key=KEYS[number]))
    for number in range(3):
        history.judge(KEYS[number], Outcome.ACCEPTED, "", 1, NOW, grid=GRID)
    assert history.without_fate(GRID, NOW, 10) == [KEYS[2], KEYS[1], KEYS[0]]
    assert history.without_fate("https://another.example", NOW, 10) == []
    published = Fate(cube="a/b:1.0", campaign_id="c", campaign="C")
    history.tell_fate({KEYS[0]: [published], KEYS[1]: [replace(published, cube="")]}, KEYS[:3], NOW, grid=GRID)
    assert history.without_fate(GRID, NOW, 10) == [], "all of them were asked about just now"
    assert history.without_fate(GRID, NOW + timedelta(seconds=1), 10) == [KEYS[2], KEYS[1]]
    assert [unit.fate for unit in history.units()][::-1][:2] == [(published,), (replace(published, cube=""),)]


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(os.urandom(8192))
    history = History(tmp_path)
    history.add(UNIT)
    assert len(history.units()) == 1 and (tmp_path / "history.damaged").stat().st_size == 8192
    history.close()


def test_who_reads_does_not_hold_up_who_writes(history: History, tmp_path: Path) -> None:
    history.add(UNIT)
    reader = sqlite3.connect(tmp_path / "history.db")
    rows = reader.execute("SELECT * FROM units")
    history.add(UNIT)
    assert len(rows.fetchall()) == 1 and len(history.units()) == 2
    reader.close()


@settings(max_examples=25, deadline=None)
@given(
    hours_ago=st.lists(st.floats(0, 24 * 29), max_size=12),
    hour=st.integers(0, 23),
)
def test_every_plot_adds_up_to_what_was_credited(
    tmp_path_factory: pytest.TempPathFactory, hours_ago: list[float], hour: int
) -> None:
    """A mark's height is a share of the top tick, so that heights say how much was credited together."""
    history = History(tmp_path_factory.mktemp("history"))
    now = datetime(2026, 3, 30, hour, 30, tzinfo=UTC)
    for index, ago in enumerate(hours_ago):
        history.judge(KEYS[index], Outcome.ACCEPTED, "", 10**12, now - timedelta(hours=ago), grid=GRID)
    for span, width in ((Span.MONTH, 30), (Span.YEAR, 12)):
        chart = credit_chart(history, span, now)
        assert len(chart.marks) == width
        top = float(chart.ticks[0].split()[0]) * (1e12 if "T" in chart.ticks[0] else 1) if hours_ago else 0.0
        assert sum(mark.share for mark in chart.marks) * top == pytest.approx(
            len(hours_ago) * 1e12 if hours_ago else 0
        )
    history.close()


def test_days_and_hours_are_those_of_the_machines_clock(history: History, zone: str) -> None:
    at = datetime(2026, 3, 1, 23, 45, tzinfo=UTC)
    history.add(replace(UNIT, at=at))
    history.judge(KEYS[0], Outcome.ACCEPTED, "", 10**12, at, grid=GRID)
    local = at.astimezone()
    (day,) = history.days(local.date())
    assert (day.at.date(), day.accepted) == (local.date(), 1)
    marks = credit_chart(history, Span.DAY, at + timedelta(hours=3)).marks
    assert [mark.label for mark in marks if mark.share] == [f"{local:%H}:00"]
    assert len(marks) == 24
