"""What an owner may rely on, in plain words, each with a check that knows nothing of how the policy is built."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise

from memgrid.units import ReasonCode
from memgrid_volunteer.owner.decision import Action
from memgrid_volunteer.owner.preferences import DevicePreferences, InUse, Yield
from tests.owner_histories import CALM_STEPS, Moment, Trace

Premise = Callable[[Moment], bool]
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """`holds` says of a moment of a trace whether the statement is true there; None where it says nothing."""

    text: str
    holds: Callable[[Trace, int], bool | None]


def breaches(trace: Trace) -> list[tuple[str, Moment]]:
    """Every statement that is untrue somewhere in a trace, with the moment."""
    return [
        (statement.text, trace[index])
        for statement in STATEMENTS
        for index in range(len(trace))
        if statement.holds(trace, index) is False
    ]


def _own(moment: Moment) -> DevicePreferences:
    return moment.preferences.devices.get(moment.device_id, DevicePreferences())


def _at(premise: Premise, conclusion: Premise) -> Callable[[Trace, int], bool | None]:
    """Whenever the one, then the other, at the same moment."""

    def holds(trace: Trace, index: int) -> bool | None:
        return conclusion(trace[index]) if premise(trace[index]) else None

    return holds


def _never(premise: Premise) -> Callable[[Trace, int], bool | None]:
    """Whenever this, the device does not compute."""
    return _at(premise, lambda moment: not moment.decision.may_compute)


def _is_away(moment: Moment, minutes: float) -> bool:
    idle_s = moment.signals.input_idle_s
    return moment.signals.is_locked is True or (idle_s is not None and idle_s >= minutes * 60)


def _somebody_there(moment: Moment) -> bool:
    minutes = moment.preferences.when.idle_minutes
    return minutes > 0 and not _is_away(moment, minutes)


def _known_idle(moment: Moment) -> bool:
    return _is_away(moment, max(moment.preferences.when.idle_minutes, 1))


def _in_use(moment: Moment) -> InUse:
    when = moment.preferences.when
    return when.gpu_while_in_use if moment.is_gpu else when.while_in_use


@lru_cache(maxsize=64)
def minutes_of_week(text: str) -> frozenset[int]:
    """Every minute of the week that a span covers, walked one by one; Monday 00:00 is 0."""
    found = re.fullmatch(r"([a-z,-]*?) ?(?:(\d\d):(\d\d)-(\d\d):(\d\d))?", text)
    assert found is not None
    covered = set()
    for day in _days(found[1]):
        begins = 24 * 60 * day + (int(found[2]) * 60 + int(found[3]) if found[2] else 0)
        ends = 24 * 60 * day + (int(found[4]) * 60 + int(found[5]) if found[2] else 24 * 60)
        minute = begins
        while minute != ends + (24 * 60 if ends <= begins else 0):
            covered.add(minute % (7 * 24 * 60))
            minute += 1
    return frozenset(covered)


def _days(text: str) -> set[int]:
    if not text:
        return set(range(7))
    days = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        day = DAYS.index(first)
        days.add(day)
        while DAYS[day] != (last or first):
            day = (day + 1) % 7
            days.add(day)
    return days


def _covers(texts: tuple[str, ...], moment: datetime) -> bool:
    minute = moment.weekday() * 24 * 60 + moment.hour * 60 + moment.minute
    return any(minute in minutes_of_week(text) for text in texts)


def _out_of_hours(moment: Moment) -> bool:
    when = moment.preferences.when
    return _covers(when.quiet, moment.now) or bool(when.hours and not _covers(when.hours, moment.now))


def _paused(moment: Moment) -> bool:
    return any(pause.device_id in (None, moment.device_id) for pause in moment.signals.pauses)


def _limit_c(moment: Moment) -> float:
    return _own(moment).temperature_max_c or (83.0 if moment.is_gpu else 90.0)


def _too_hot(moment: Moment) -> bool:
    return moment.device.temperature_c is not None and moment.device.temperature_c >= _limit_c(moment)


def _too_much_power(moment: Moment) -> bool:
    limit_w, power_w = _own(moment).power_max_w, moment.device.power_w
    return limit_w is not None and power_w is not None and power_w > limit_w


def _squeezed(moment: Moment) -> bool:
    device = moment.device
    used, total, foreign = device.memory_used_bytes, device.memory_total_bytes, device.foreign_memory_bytes
    if None in (used, total, foreign) or moment.preferences.when.foreign_gpu is Yield.RUN or not moment.is_gpu:
        return False
    assert used is not None and total is not None and foreign is not None
    return total - used < 0.05 * total and foreign >= 0.10 * total


def _has_waited(trace: Trace, index: int) -> bool | None:
    """More to do than the moment before: then the last change was long enough ago, or the owner has spoken."""
    moment = trace[index]
    if index == 0 or moment.decision.duty <= trace[index - 1].decision.duty:
        return None
    changes = [at for at in range(1, index) if _action(trace[at]) != _action(trace[at - 1])]
    changed_at = trace[changes[-1] if changes else 0].now
    is_clock_back = moment.now < changed_at
    return moment.is_owners_word or is_clock_back or moment.now - changed_at >= timedelta(seconds=10)


def _action(moment: Moment) -> tuple[Action, float]:
    return moment.decision.action, moment.decision.duty


def _no_keep_after_release(trace: Trace, index: int) -> bool | None:
    if index == 0 or trace[index - 1].decision.action is not Action.PAUSE_RELEASE:
        return None
    return trace[index].decision.action is not Action.PAUSE_KEEP


def _kept_shortly(trace: Trace, index: int) -> bool | None:
    if trace[index].decision.action is not Action.PAUSE_KEEP:
        return None
    computed = [moment.now for moment in trace[:index] if moment.decision.may_compute]
    return trace[index].now - (computed[-1] if computed else trace[0].now) < timedelta(minutes=5)


def _cooled_down(trace: Trace, index: int) -> bool | None:
    """From too hot to computing: it was five degrees cooler, and for a minute it computes a quarter of the time."""
    moment = trace[index]
    if not moment.decision.may_compute or moment.was_clock_put_back:
        return None
    hot = next((at for at in range(index - 1, -1, -1) if _too_hot(trace[at])), None)
    if hot is None or any(before.preferences != moment.preferences for before in trace[hot:index]):
        return None
    since = trace[hot + 1 : index + 1]
    if any(each.device.temperature_c is None for each in since):
        return None
    cool = [each.now for each in since if (each.device.temperature_c or 0) <= _limit_c(moment) - 5]
    if not cool:
        return False
    return moment.now - cool[0] >= timedelta(minutes=1) or moment.decision.duty <= 0.25


def _busy_long(trace: Trace, index: int) -> bool | None:
    """Others have kept the processor busy in every moment of at least four seconds."""
    moment = trace[index]
    most = moment.preferences.when.foreign_load_max_percent / 100
    if moment.is_gpu or most >= 1:
        return None
    begin = index
    while begin > 0 and _is_busy(trace[begin - 1], most) and trace[begin - 1].preferences == moment.preferences:
        begin -= 1
    if not _is_busy(moment, most) or moment.now - trace[begin].now < timedelta(seconds=4):
        return None
    return not moment.decision.may_compute


def _is_busy(moment: Moment, most: float) -> bool:
    share = moment.signals.foreign_load_share
    return share is not None and share > most


def _calm_computes(trace: Trace, index: int) -> bool | None:
    """After twenty minutes in which nothing stood against it, a device computes for as long as it may."""
    moment = trace[index]
    if index != len(trace) - 1 or not _own(moment).enabled:
        return None
    if any(_out_of_hours(each) for each in trace[-CALM_STEPS:]):
        return None
    return moment.decision.duty == _own(moment).duty_percent / 100


def _resumes_seldom(trace: Trace, index: int) -> bool | None:
    """The whole trace: at most one resumption for every ten seconds, and one for each of the owner's words."""
    if index != len(trace) - 1:
        return None
    if trace[index].was_clock_put_back:
        return None
    resumed = sum(
        later.decision.may_compute and not earlier.decision.may_compute for earlier, later in pairwise(trace)
    )
    words = sum(moment.is_owners_word for moment in trace)
    return resumed <= 1 + (trace[-1].now - trace[0].now).total_seconds() / 10 + words


def _knows_key(moment: Moment) -> bool:
    """The preference that is named is one that the owner could change."""
    key = moment.decision.preference
    if key.startswith("devices."):
        device_id, _, name = key.removeprefix("devices.").rpartition(".")
        return device_id.strip('"') == moment.device_id and name in DevicePreferences.model_fields
    table, _, name = key.partition(".")
    return hasattr(getattr(moment.preferences, table), name)


def _is_unwatched(moment: Moment) -> bool:
    pause = moment.preferences.when.foreign_gpu is Yield.PAUSE
    return moment.is_gpu and pause and moment.device.foreign_processes is None


def _is_screen_unseen(moment: Moment) -> bool:
    return moment.preferences.when.fullscreen is Yield.PAUSE and moment.signals.fullscreen_program is None


def _battery_counts(moment: Moment) -> bool:
    when = moment.preferences.when
    return when.on_battery and when.battery_min_percent > 0 and moment.signals.on_battery is not False


def _exclusive(moment: Moment) -> set[str]:
    return {name.casefold() for name in moment.preferences.when.exclusive_programs}


STATEMENTS = (
    Statement(
        text="a pause of the owner always wins, and gives all memory back",
        holds=_at(
            _paused,
            lambda moment: (
                moment.decision.action is Action.PAUSE_RELEASE
                and moment.decision.reason is not None
                and moment.decision.reason.code is ReasonCode.OWNER_PAUSED
            ),
        ),
    ),
    Statement(
        text="a device that is switched off never computes, and holds no memory",
        holds=_at(
            lambda moment: not _own(moment).enabled,
            lambda moment: moment.decision.action is Action.PAUSE_RELEASE,
        ),
    ),
    Statement(
        text="never computes in quiet hours",
        holds=_never(lambda moment: _covers(moment.preferences.when.quiet, moment.now)),
    ),
    Statement(
        text="never computes outside its hours",
        holds=_never(
            lambda moment: bool(
                moment.preferences.when.hours and not _covers(moment.preferences.when.hours, moment.now)
            )
        ),
    ),
    Statement(
        text="never runs on battery when told not to",
        holds=_never(lambda moment: moment.signals.on_battery is True and not moment.preferences.when.on_battery),
    ),
    Statement(
        text="never runs where nobody can tell whether it is on battery, when told not to run on battery",
        holds=_never(lambda moment: moment.signals.on_battery is None and not moment.preferences.when.on_battery),
    ),
    Statement(
        text="never runs on a battery below its least charge",
        holds=_never(
            lambda moment: (
                _battery_counts(moment)
                and moment.signals.battery_share is not None
                and moment.signals.battery_share < moment.preferences.when.battery_min_percent / 100
            )
        ),
    ),
    Statement(
        text="never runs on a battery whose charge is unknown, when it has a least charge",
        holds=_never(lambda moment: _battery_counts(moment) and moment.signals.battery_share is None),
    ),
    Statement(
        text="never computes while a program runs that wants the machine for itself",
        holds=_never(
            lambda moment: any(name.casefold() in _exclusive(moment) for name in moment.signals.programs or ())
        ),
    ),
    Statement(
        text="never computes where nobody can tell whether such a program runs",
        holds=_never(lambda moment: bool(_exclusive(moment)) and moment.signals.programs is None),
    ),
    Statement(
        text="never computes while a program fills the screen, and gives memory back",
        holds=_at(
            lambda moment: (
                moment.preferences.when.fullscreen is Yield.PAUSE and bool(moment.signals.fullscreen_program)
            ),
            lambda moment: moment.decision.action is Action.PAUSE_RELEASE,
        ),
    ),
    Statement(
        text="a GPU on which another program computes is given back, memory and all",
        holds=_at(
            lambda moment: (
                moment.is_gpu
                and moment.preferences.when.foreign_gpu is Yield.PAUSE
                and bool(moment.device.foreign_processes)
            ),
            lambda moment: moment.decision.action is Action.PAUSE_RELEASE,
        ),
    ),
    Statement(
        text="a GPU whose memory others need is given back, memory and all",
        holds=_at(_squeezed, lambda moment: moment.decision.action is Action.PAUSE_RELEASE),
    ),
    Statement(
        text="a GPU whose other programs can't be seen computes only while nobody is known to be there",
        holds=_never(lambda moment: _is_unwatched(moment) and not _known_idle(moment)),
    ),
    Statement(
        text="where the screen can't be seen a GPU computes only while nobody is known to be there",
        holds=_never(lambda moment: moment.is_gpu and _is_screen_unseen(moment) and not _known_idle(moment)),
    ),
    Statement(
        text="where the screen can't be seen the processor computes no more than beside somebody",
        holds=_at(
            lambda moment: not moment.is_gpu and _is_screen_unseen(moment) and not _known_idle(moment),
            lambda moment: moment.decision.duty <= moment.preferences.when.in_use_duty_percent / 100,
        ),
    ),
    Statement(
        text="never computes while somebody is there, or may be, when it has to pause then",
        holds=_never(lambda moment: _somebody_there(moment) and _in_use(moment) is InUse.PAUSE),
    ),
    Statement(
        text="somebody who comes back finds the GPU's memory free",
        holds=_at(
            lambda moment: moment.is_gpu and _somebody_there(moment) and _in_use(moment) is InUse.PAUSE,
            lambda moment: moment.decision.action is Action.PAUSE_RELEASE,
        ),
    ),
    Statement(
        text="beside somebody who is there, or may be, it computes no more than it may",
        holds=_at(
            lambda moment: _somebody_there(moment) and _in_use(moment) is InUse.THROTTLE,
            lambda moment: moment.decision.duty <= moment.preferences.when.in_use_duty_percent / 100,
        ),
    ),
    Statement(
        text="where nobody can tell whether somebody is there, it behaves as if",
        holds=_at(
            lambda moment: (
                moment.signals.input_idle_s is None
                and moment.signals.is_locked is not True
                and moment.preferences.when.idle_minutes > 0
                and _in_use(moment) is not InUse.RUN
            ),
            lambda moment: moment.decision.duty <= moment.preferences.when.in_use_duty_percent / 100,
        ),
    ),
    Statement(text="never computes at its limit of heat, or above", holds=_never(_too_hot)),
    Statement(
        text="after too much heat it begins again only once it has cooled down, with a quarter of the time",
        holds=_cooled_down,
    ),
    Statement(
        text="never computes where a limit of heat that was set can't be watched",
        holds=_never(
            lambda moment: _own(moment).temperature_max_c is not None and moment.device.temperature_c is None
        ),
    ),
    Statement(
        text="above its limit of power it never computes for all of its time",
        holds=_at(_too_much_power, lambda moment: moment.decision.duty < _own(moment).duty_percent / 100),
    ),
    Statement(
        text="never computes where a limit of power that was set can't be watched",
        holds=_never(lambda moment: _own(moment).power_max_w is not None and moment.device.power_w is None),
    ),
    Statement(
        text="never computes for more of the time than its device may",
        holds=_at(lambda moment: True, lambda moment: moment.decision.duty <= _own(moment).duty_percent / 100),
    ),
    Statement(
        text="never computes while less of the disk is free than wanted",
        holds=_never(
            lambda moment: (
                moment.signals.disk_free_bytes is not None
                and moment.signals.disk_free_bytes < moment.preferences.disk.free_min_gb * 1e9
            )
        ),
    ),
    Statement(
        text="never computes where nobody can tell what of the disk is free, when some of it has to be",
        holds=_never(
            lambda moment: moment.signals.disk_free_bytes is None and moment.preferences.disk.free_min_gb > 0
        ),
    ),
    Statement(
        text="the processor stops when others keep it busy for more than a moment",
        holds=_busy_long,
    ),
    Statement(
        text="the processor never computes where nobody can tell what others do with it",
        holds=_never(
            lambda moment: (
                not moment.is_gpu
                and moment.signals.foreign_load_share is None
                and moment.preferences.when.foreign_load_max_percent < 100
            )
        ),
    ),
    Statement(text="no more to do within ten seconds of a change, unless the owner says so", holds=_has_waited),
    Statement(
        text="it resumes at most once in ten seconds, and once at each of the owner's words", holds=_resumes_seldom
    ),
    Statement(text="memory that was given back is not said to be kept", holds=_no_keep_after_release),
    Statement(text="a pause that keeps its memory gives it back within five minutes", holds=_kept_shortly),
    Statement(
        text="whatever is less than computing all the time has its reason in words",
        holds=_at(
            lambda moment: moment.decision.action is not Action.RUN,
            lambda moment: moment.decision.reason is not None and len(moment.decision.reason.text) > 10,
        ),
    ),
    Statement(
        text="a preference that has decided is one that can be changed",
        holds=_at(lambda moment: bool(moment.decision.preference), _knows_key),
    ),
    Statement(
        text="a moment at which it goes on is still to come",
        holds=_at(
            lambda moment: moment.decision.until is not None,
            lambda moment: moment.decision.until is not None and moment.decision.until >= moment.now,
        ),
    ),
    Statement(
        text="duty and action say the same",
        holds=_at(
            lambda moment: True,
            lambda moment: {
                Action.RUN: moment.decision.duty == 1,
                Action.THROTTLE: 0 < moment.decision.duty < 1,
                Action.PAUSE_KEEP: moment.decision.duty == 0,
                Action.PAUSE_RELEASE: moment.decision.duty == 0,
            }[moment.decision.action],
        ),
    ),
    Statement(text="what nothing stands against computes, after twenty minutes at the latest", holds=_calm_computes),
)
