"""The owner's word: pauses of all devices or of one, until a time, a restart, or forever."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memgrid.clock import ManualClock
from memgrid.errors import InvalidError
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.durations import parse_duration
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.owner.traffic import Traffic

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_pauses_are_seen_by_every_process_at_once(tmp_path: Path) -> None:
    ours, theirs = Control(tmp_path), Control(tmp_path)
    assert ours.pauses(NOW) == ()
    theirs.pause(NOW, device_id="cuda:0")
    assert ours.pauses(NOW) == (Pause(device_id="cuda:0"),)
    theirs.pause(NOW, until=NOW + HOUR)
    assert ours.pauses(NOW) == (Pause(device_id="cuda:0"), Pause(until=NOW + HOUR))
    ours.resume(NOW, device_id="cuda:0")
    assert theirs.pauses(NOW) == (Pause(until=NOW + HOUR),)
    theirs.resume(NOW)
    assert ours.pauses(NOW) == ()


def test_a_pause_that_has_ended_is_gone_and_another_takes_its_place(tmp_path: Path) -> None:
    control = Control(tmp_path)
    control.pause(NOW, until=NOW + HOUR)
    assert control.pauses(NOW + HOUR - timedelta(seconds=1)) and not control.pauses(NOW + HOUR)
    control.pause(NOW, device_id="cpu", until=NOW + HOUR)
    control.pause(NOW, device_id="cpu")
    assert control.pauses(NOW + 2 * HOUR) == (Pause(device_id="cpu"),)
    assert json.loads(control.path.read_text())["pauses"][0]["device_id"] is None


def test_a_restart_ends_only_what_was_to_last_until_then(tmp_path: Path) -> None:
    control = Control(tmp_path)
    control.pause(NOW, device_id="cuda:9", is_until_restart=True)
    control.pause(NOW, device_id="cpu")
    control.restarted(NOW)
    assert control.pauses(NOW) == (Pause(device_id="cpu"),)


@pytest.mark.parametrize("content", ["", "[]", '{"pauses": [{}]}', '{"pauses": [{"until": 3}]}', "x" * 100_000])
def test_a_damaged_file_is_no_permission_and_the_owners_word_mends_it(tmp_path: Path, content: str) -> None:
    control = Control(tmp_path)
    control.path.write_text(content)
    with pytest.raises(InvalidError, match=r"control.json: damaged; .*resume"):
        control.pauses(NOW)
    with pytest.raises(InvalidError, match=r"control.json: damaged"):
        control.pause(NOW, device_id="cpu")
    control.pause(NOW)
    assert control.pauses(NOW) == (Pause(),)
    control.path.write_text(content)
    control.resume(NOW)
    assert control.pauses(NOW) == ()


@settings(max_examples=50, deadline=None)
@given(
    pauses=st.lists(
        st.tuples(
            st.sampled_from([None, "cpu", "cuda:0", "mps"]),
            st.one_of(st.none(), st.integers(1, 10**6)),
            st.booleans(),
        ),
        max_size=6,
    ),
    later_s=st.integers(0, 10**6),
)
def test_what_was_paused_last_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    pauses: list[tuple[str | None, int | None, bool]],
    later_s: int,
) -> None:
    folder = tmp_path_factory.mktemp("control")
    expected = {}
    for device_id, seconds, is_until_restart in pauses:
        until = None if seconds is None else NOW + timedelta(seconds=seconds)
        expected[device_id] = Control(folder).pause(
            NOW, device_id=device_id, until=until, is_until_restart=is_until_restart
        )
    later = NOW + timedelta(seconds=later_s)
    holding = {pause for pause in expected.values() if pause.until is None or later < pause.until}
    assert set(Control(folder).pauses(later)) == holding


@pytest.mark.parametrize(("text", "seconds"), [("45m", 2700), ("1h", 3600), ("1h30m", 5400), ("2 d", 172_800)])
def test_durations_as_people_type_them(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "0s", "-1h", "1w", "9999999d", "1h nonsense"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="expected a time"):
        parse_duration(text)


def test_a_months_traffic_is_counted_across_runs_and_begins_anew_with_the_next(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 6, 15, tzinfo=UTC))
    traffic = Traffic(tmp_path, clock)
    traffic.add(1_000)
    assert traffic.read() == {"month_bytes": 1_000}
    clock.advance(timedelta(seconds=31))
    traffic.read()
    again = Traffic(tmp_path, clock)
    again.add(20 << 20)
    assert Traffic(tmp_path, clock).month_bytes == 1_000 + (20 << 20)
    clock.advance(timedelta(days=31))
    assert again.month_bytes == 0 and Traffic(tmp_path, clock).month_bytes == 0
