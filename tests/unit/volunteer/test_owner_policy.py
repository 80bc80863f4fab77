"""The owner policy: plain statements over made-up histories, and the cases an owner would ask about by name."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memgrid.units import ReasonCode
from memgrid_volunteer.owner.decision import Action, Decision
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.owner.policy import Former, decide
from memgrid_volunteer.owner.preferences import Preferences, preferences_of
from memgrid_volunteer.owner.signals import DeviceSignals, Pause, Signals
from memgrid_volunteer.owner.spans import inside, next_moment, parse_span
from memgrid_volunteer.owner.words import decision_text
from tests.owner_histories import CALM_DEVICE, histories
from tests.owner_statements import STATEMENTS, breaches, minutes_of_week

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=ZoneInfo("Europe/Berlin"))
HISTORIES = 60


def calm(**seen: Any) -> Signals:
    """Nothing stands against computing, but for what is said."""
    device = seen.pop("device", CALM_DEVICE)
    usual: dict[str, Any] = {
        "devices": {"cuda:0": device, "cpu": CALM_DEVICE},
        "input_idle_s": 1e6,
        "is_locked": False,
        "foreign_load_share": 0.0,
        "on_battery": False,
        "fullscreen_program": "",
        "programs": frozenset(),
        "disk_free_bytes": 10**12,
    }
    return Signals(**{**usual, **seen})


class Owner:
    """Lets time pass and asks what follows."""

    def __init__(self, **said: Any) -> None:
        self.preferences: Preferences = preferences_of(said)
        self.now = NOON
        self.former = Former()
        self.decisions: dict[str, Decision] = {}

    def sees(self, signals: Signals, after_s: float = 1.0) -> Decision:
        """What the GPU does, `after_s` later."""
        self.now += timedelta(seconds=after_s)
        self.decisions, self.former = decide(signals, self.preferences, self.now, self.former)
        return self.decisions["cuda:0"]


def test_every_statement_holds_over_made_up_histories_and_is_put_to_the_test() -> None:
    tried = Counter[str]()
    for seed in range(HISTORIES):
        for trace in histories(random.Random(seed)):
            assert breaches(trace) == [], f"seed {seed}"
            for statement in STATEMENTS:
                tried[statement.text] += sum(statement.holds(trace, at) is not None for at in range(len(trace)))
    # One charge is unknown on a battery with a least charge: the rarest of all.
    assert len(STATEMENTS) >= 25
    assert [statement.text for statement in STATEMENTS if not tried[statement.text]] == []


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60))
def test_every_statement_holds_over_histories_that_hypothesis_chooses(seed: int, steps: int) -> None:
    for trace in histories(random.Random(seed), steps):
        assert breaches(trace) == []


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_device_is_decided_about_by_itself_and_the_same_every_time(seed: int) -> None:
    for trace in histories(random.Random(seed)):
        former = Former()
        for moment in trace:
            alone = replace(moment.signals, devices={moment.device_id: moment.device})
            decisions, former = decide(alone, moment.preferences, moment.now, former)
            assert decisions == {moment.device_id: moment.decision}


def test_the_words_say_what_is_the_matter_and_when_it_goes_on() -> None:
    owner = Owner()
    assert decision_text(owner.sees(calm())) == "computes"
    decision = owner.sees(calm(fullscreen_program="Steam"))
    assert decision_text(decision) == "paused: Steam fills the screen; goes on when it is gone"
    assert (decision.reason and decision.reason.code, decision.preference) == (
        ReasonCode.SCREEN_FILLED,
        "when.fullscreen",
    )
    until = owner.now + timedelta(hours=1)
    decision = owner.sees(calm(pauses=(Pause(until=until),)))
    assert decision_text(decision) == "paused: you paused it until 13:00" and decision.until == until


def test_a_grid_hears_nothing_of_what_runs_on_the_machine() -> None:
    decision = Owner().sees(calm(fullscreen_program="Secret Game"))
    assert decision.reason is not None and "Secret Game" in decision.reason.text
    assert "Secret" not in decision.reason_for_grid.text
    assert decision.reason_for_grid.code is ReasonCode.OWNER_PAUSED


def test_the_owners_pause_and_resume_hold_at_once_and_for_the_device_that_was_meant() -> None:
    owner = Owner()
    assert owner.sees(calm()).action is Action.RUN
    assert owner.sees(calm(pauses=(Pause(device_id="cuda:0"),)), 0.1).action is Action.PAUSE_RELEASE
    assert owner.decisions["cpu"].action is Action.RUN
    assert owner.sees(calm(), 0.1).action is Action.RUN
    assert owner.sees(calm(pauses=(Pause(device_id="cuda:7"),)), 0.1).action is Action.RUN


def test_a_change_of_preferences_holds_at_once_in_both_directions() -> None:
    owner = Owner()
    assert owner.sees(calm(on_battery=True, battery_share=0.9)).action is Action.PAUSE_RELEASE
    owner.preferences = preferences_of({"when": {"on_battery": True}})
    assert owner.sees(calm(on_battery=True, battery_share=0.9), 0.1).action is Action.RUN
    owner.preferences = preferences_of({"when": {"on_battery": True}, "devices": {"cuda:0": {"duty_percent": 40}}})
    assert owner.sees(calm(), 0.1).duty == 0.4


def test_input_pauses_at_once_and_minutes_without_it_resume() -> None:
    owner = Owner(when={"idle_minutes": 3})
    assert owner.sees(calm()).action is Action.RUN
    decision = owner.sees(calm(input_idle_s=0.0))
    assert decision.action is Action.PAUSE_RELEASE and decision.until == owner.now + timedelta(minutes=3)
    assert owner.decisions["cpu"].action is Action.THROTTLE and owner.decisions["cpu"].duty == 0.25
    assert owner.sees(calm(input_idle_s=179.0), 179).action is Action.PAUSE_RELEASE
    assert owner.sees(calm(input_idle_s=180.5), 1.5).action is Action.RUN


def test_a_locked_screen_has_nobody_before_it() -> None:
    owner = Owner()
    assert owner.sees(calm(input_idle_s=0.0, is_locked=True)).action is Action.RUN


def test_where_nobody_can_tell_who_is_there_the_polite_behave_as_if_somebody_was() -> None:
    owner = Owner()
    decision = owner.sees(calm(input_idle_s=None, is_locked=None, unseen={"idle": "no desktop"}))
    assert decision.action is Action.PAUSE_RELEASE
    assert decision.reason is not None and "(no desktop)" in decision.reason.text
    assert owner.decisions["cpu"].duty == 0.25


def test_the_preset_always_computes_whatever_else_the_machine_does() -> None:
    owner = Owner(preset="always")
    blind = Signals(devices={"cuda:0": DeviceSignals(), "cpu": DeviceSignals()}, disk_free_bytes=10**12)
    assert owner.sees(replace(blind, on_battery=False)).action is Action.RUN
    assert owner.decisions["cpu"].action is Action.RUN


def test_a_busy_processor_is_left_to_others_and_its_memory_after_five_minutes_too() -> None:
    owner = Owner()
    owner.sees(calm())
    busy = calm(foreign_load_share=0.6)

    def cpu(signals: Signals, after_s: float) -> Action:
        owner.sees(signals, after_s)
        return owner.decisions["cpu"].action

    assert cpu(busy, 1) is Action.RUN and cpu(busy, 2) is Action.RUN
    assert cpu(busy, 2) is Action.PAUSE_KEEP
    # Less than the limit is not yet little enough, and little has to last.
    assert cpu(calm(foreign_load_share=0.2), 30) is Action.PAUSE_KEEP
    assert cpu(calm(foreign_load_share=0.2), 30) is Action.PAUSE_KEEP
    assert cpu(calm(foreign_load_share=0.1), 5) is Action.PAUSE_KEEP
    assert cpu(calm(foreign_load_share=0.1), 21) is Action.RUN
    assert cpu(busy, 1) is Action.RUN and cpu(busy, 5) is Action.PAUSE_KEEP
    assert cpu(busy, 280) is Action.PAUSE_KEEP and cpu(busy, 20) is Action.PAUSE_RELEASE
    assert owner.decisions["cuda:0"].action is Action.RUN


def test_heat_takes_duty_away_step_by_step_and_pauses_at_the_limit() -> None:
    owner = Owner(devices={"cuda:0": {"temperature_max_c": 80}})

    def at(temperature_c: float, after_s: float) -> tuple[Action, float]:
        decision = owner.sees(calm(device=replace(CALM_DEVICE, temperature_c=temperature_c)), after_s)
        return decision.action, decision.duty

    assert at(76, 1) == (Action.RUN, 1.0)
    assert at(77, 1) == (Action.THROTTLE, 0.75)
    assert at(78, 10) == (Action.THROTTLE, 0.75)
    assert at(78, 11) == (Action.THROTTLE, 0.5)
    assert at(78, 21) == (Action.THROTTLE, 0.25)
    assert at(79, 60) == (Action.THROTTLE, 0.25)
    assert at(80, 1) == (Action.PAUSE_KEEP, 0.0)
    assert at(74, 30) == (Action.PAUSE_KEEP, 0.0)
    assert at(76, 60) == (Action.PAUSE_KEEP, 0.0)
    assert at(75, 1) == (Action.THROTTLE, 0.25)
    assert at(60, 61) == (Action.THROTTLE, 0.5)
    assert at(60, 61) == (Action.THROTTLE, 0.75)
    assert at(60, 61) == (Action.RUN, 1.0)


def test_a_limit_that_nobody_wrote_is_watched_where_it_can_be() -> None:
    owner = Owner()
    assert owner.sees(calm(device=replace(CALM_DEVICE, temperature_c=83.0))).action is Action.PAUSE_KEEP
    assert Owner().sees(calm(device=replace(CALM_DEVICE, temperature_c=None))).action is Action.RUN


def test_power_above_the_cap_takes_duty_until_it_fits_and_does_not_swing() -> None:
    owner = Owner(devices={"cuda:0": {"power_max_w": 200}})
    duties = []
    power_w = 300.0
    for _ in range(200):
        decision = owner.sees(calm(device=replace(CALM_DEVICE, power_w=power_w)), 5)
        duties.append(decision.duty)
        power_w = 20 + 280 * decision.duty
    assert duties[0] == 0.75 and duties[-1] == 0.5
    assert sum(one != other for one, other in pairwise(duties)) == 1


def test_power_above_the_cap_is_never_drawn_for_all_of_the_time_not_even_for_seconds() -> None:
    owner = Owner(devices={"cuda:0": {"power_max_w": 200}})

    def at(power_w: float, after_s: float) -> float:
        return owner.sees(calm(device=replace(CALM_DEVICE, power_w=power_w)), after_s).duty

    assert [at(300, 1), at(100, 30), at(100, 31), at(300, 2)] == [0.75, 0.75, 1.0, 0.75]


def test_memory_that_others_need_is_given_back_and_tried_again_after_ten_minutes() -> None:
    owner = Owner()
    total = 8_000_000_000
    full = replace(CALM_DEVICE, memory_used_bytes=total - 1, foreign_memory_bytes=2_000_000_000)
    after = replace(CALM_DEVICE, memory_used_bytes=2_000_000_000, foreign_memory_bytes=2_000_000_000)
    assert owner.sees(calm()).action is Action.RUN
    assert owner.sees(calm(device=full)).action is Action.PAUSE_RELEASE
    assert owner.sees(calm(device=after), 300).action is Action.PAUSE_RELEASE
    assert owner.sees(calm(device=after), 301).action is Action.PAUSE_RELEASE
    assert owner.sees(calm(device=after), 61).action is Action.RUN
    # Who lets go of it need not be waited for.
    assert owner.sees(calm(device=full), 60).action is Action.PAUSE_RELEASE
    assert owner.sees(calm(), 1).action is Action.PAUSE_RELEASE
    assert owner.sees(calm(), 61).action is Action.RUN


def test_quiet_hours_say_when_they_end_also_when_the_clocks_change_meanwhile() -> None:
    owner = Owner(when={"quiet": ["22:00-07:00"]})
    owner.now = datetime(2026, 3, 28, 23, 0, tzinfo=ZoneInfo("Europe/Berlin"))
    decision = owner.sees(calm())
    assert decision.action is Action.PAUSE_RELEASE
    assert decision.until == datetime(2026, 3, 29, 5, 0, tzinfo=UTC)
    assert decision_text(decision) == "paused: these are quiet hours; goes on sun 07:00"


def test_a_clock_that_is_put_back_holds_nothing_up() -> None:
    owner = Owner()
    owner.sees(calm())
    owner.sees(calm(fullscreen_program="Steam"))
    assert owner.sees(calm()).action is Action.PAUSE_RELEASE
    owner.now -= timedelta(days=1)
    assert owner.sees(calm()).action is Action.RUN


SPAN_TEXTS = st.builds(
    lambda days, hours: f"{days} {hours}".strip(),
    st.sampled_from(("", "mon", "mon-fri", "sat-sun", "fri-mon", "tue,thu", "mon-wed,sun")),
    st.builds(
        lambda begin, end: f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}",
        st.integers(0, 1439),
        st.integers(0, 1439),
    ),
)


@settings(max_examples=300, deadline=None)
@given(text=SPAN_TEXTS, minute=st.integers(0, 7 * 24 * 60 - 1))
def test_a_span_covers_the_minutes_that_one_counts_by_hand(text: str, minute: int) -> None:
    wall = datetime(2026, 6, 1, tzinfo=UTC) + timedelta(minutes=minute)
    assert parse_span(text).contains(wall) == (minute in minutes_of_week(text))


@settings(max_examples=150, deadline=None)
@given(
    text=SPAN_TEXTS,
    zone=st.sampled_from(("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")),
    start=st.sampled_from(("2026-03-28T20:00Z", "2026-10-24T20:00Z", "2026-10-31T23:00Z", "2026-04-04T10:00Z")),
    minutes=st.integers(0, 900),
)
@example(text="02:30-05:00", zone="Europe/Berlin", start="2026-03-28T20:00Z", minutes=0)
@example(text="02:30-05:00", zone="Europe/Berlin", start="2026-10-24T20:00Z", minutes=290)
def test_the_next_change_is_the_one_that_one_waits_for_minute_by_minute(
    text: str, zone: str, start: str, minutes: int
) -> None:
    spans = [parse_span(text)]
    now = (datetime.fromisoformat(start) + timedelta(minutes=minutes)).astimezone(ZoneInfo(zone))
    was_inside = inside(spans, now)
    found = next_moment(spans, now, lambda then: inside(spans, then) != was_inside)
    instant = now.astimezone(UTC)
    for step in range(1, 26 * 60):
        then = (instant + timedelta(minutes=step)).astimezone(now.tzinfo)
        if inside(spans, then) != was_inside:
            assert found == then.astimezone(UTC)
            return
    assert found is None or found > instant + timedelta(hours=25)


@pytest.mark.parametrize("text", ["", "noon", "mon-fri 9:00-18:00", "25:00-26:00", "mon 10:00", "monday"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a span such as"):
        parse_span(text)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ZoneInfo]:
    """The operating system's zone, for this process."""
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield ZoneInfo("Europe/Berlin")
    monkeypatch.undo()
    time.tzset()


def test_the_operating_systems_clock_is_read_as_zones_are(berlin: ZoneInfo) -> None:
    begin = datetime(2026, 10, 24, 22, 0, tzinfo=UTC)
    for minutes in range(0, 8 * 60, 15):
        moment = begin + timedelta(minutes=minutes)
        ours, theirs = moment.astimezone(LOCAL), moment.astimezone(berlin)
        assert (ours.replace(tzinfo=None), ours.fold, ours.utcoffset()) == (
            theirs.replace(tzinfo=None),
            theirs.fold,
            theirs.utcoffset(),
        )
        assert ours.astimezone(UTC) == moment
