"""What an owner reads: one headline, and for each device what it does, why not, and how long it still takes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.owner.decision import Action, Decision
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.status import DeviceStatus, VolunteerStatus
from memgrid_volunteer.view import Tone, View, device_lines, left_text, share_of, view_of, why_text
from tests.volunteer_homes import NOW, at_work

IN_USE = Decision(
    action=Action.PAUSE_RELEASE,
    duty=0.0,
    reason=Reason(
        code=ReasonCode.MACHINE_IN_USE, text="somebody is at the machine; goes on after 5 min without input"
    ),
    preference="when.gpu_while_in_use",
)
NIGHT = NOW.replace(hour=22)


def seen(status: VolunteerStatus, *pauses: Pause, is_running: bool = True) -> View:
    return view_of(status, pauses, NOW, is_running=is_running)


def every(status: VolunteerStatus, decision: Decision) -> VolunteerStatus:
    return replace(status, devices=tuple(device.decided(decision) for device in status.devices))


def idle(**changed: object) -> VolunteerStatus:
    still = tuple(device.without_unit() for device in at_work().devices)
    return replace(at_work(), state="idle", devices=still, **changed)  # type: ignore[arg-type]


NO_WORK = Reason(code=ReasonCode.NO_WORK, text="no campaign has work for this host")


@pytest.mark.parametrize(
    ("view", "state", "why", "tone"),
    [
        (seen(at_work()), "Computing", "On A Fine GPU", Tone.GOOD),
        (seen(replace(at_work(), state="away")), "Computing", "On A Fine GPU; the grid can't be reached", Tone.GOOD),
        (
            seen(every(at_work(), Decision(action=Action.THROTTLE, duty=0.25))),
            "Computing",
            "On A Fine GPU",
            Tone.BUSY,
        ),
        (seen(idle(idle_reason=NO_WORK)), "Waiting for work", "No campaign has work for this host", Tone.QUIET),
        (seen(idle(idle_reason=Reason(code=ReasonCode.ALL_SEEN))), "Waiting for work", "All seen", Tone.QUIET),
        (seen(every(idle(), IN_USE)), "Paused", "Somebody is at the machine; goes on after", Tone.QUIET),
        (seen(replace(idle(), state="away")), "The grid can't be reached", "It is tried again", Tone.BAD),
        (seen(replace(idle(), state="starting")), "Starting", "", Tone.QUIET),
        (seen(at_work(), Pause(until=NIGHT)), "Paused by you", "Until 22:00", Tone.QUIET),
        (seen(at_work(), Pause()), "Paused by you", "Until you resume", Tone.QUIET),
        (seen(at_work(), is_running=False), "Not running", "memgrid volunteer run starts it", Tone.QUIET),
    ],
)
def test_the_headline_says_what_matters_most(view: View, state: str, why: str, tone: Tone) -> None:
    assert (view.state, view.tone) == (state, tone) and view.why.startswith(why)


def test_a_pause_of_one_device_is_told_and_is_no_headline() -> None:
    view = seen(at_work(), Pause(device_id="cuda:1", is_until_restart=True))
    assert view.state == "Computing" and not view.is_paused
    assert view.pauses == ("cuda:1 paused until the volunteer starts again",)
    assert [device.is_paused_alone for device in view.devices] == [False, True, False]


def test_a_stopped_volunteer_shows_nothing_that_was() -> None:
    """A killed process leaves its last words."""
    for device in seen(at_work(), is_running=False).devices:
        assert (device.state, device.unit, device.share, device.facts) == ("stopped", "", None, ())


def test_a_device_says_what_decided() -> None:
    paused, *_ = seen(every(at_work(), IN_USE)).devices
    assert (paused.state, paused.decided_by) == ("paused", "when.gpu_while_in_use")
    assert paused.left == "about 7 min of computing left"
    held = every(at_work(), replace(IN_USE, action=Action.PAUSE_KEEP))
    assert [device.state for device in seen(held).devices] == ["paused, its memory kept", "paused", "paused"]
    slow = every(at_work(), Decision(action=Action.THROTTLE, duty=0.25))
    assert [device.state for device in seen(slow).devices][:2] == [
        "computing 25% of the time",
        "ready, for 25% of the time",
    ]


def test_when_it_goes_on_is_told_once() -> None:
    device = DeviceStatus(device_id="cpu").decided(replace(IN_USE, until=NIGHT))
    assert why_text(device, NOW).endswith("without input, until 22:00")
    told = Reason(code=ReasonCode.OUT_OF_HOURS, text="it is not yet time; goes on 22:00")
    assert why_text(replace(device, reason=told), NOW) == told.text
    assert why_text(device, NIGHT) == IN_USE.reason.text if IN_USE.reason else False


def test_what_is_left_counts_down_and_never_below_nothing() -> None:
    gpu = at_work().devices[0]
    told = [left_text(gpu, NOW + timedelta(seconds=seconds)) for seconds in (0, 300, 400, 1000)]
    assert told == [
        "about 7 min left, done at 12:07",
        "about 2 min left, done at 12:07",
        "under a minute left",
        "any moment now",
    ]


def test_without_a_word_from_the_worker_its_share_is_guessed() -> None:
    gpu = replace(at_work().devices[0], progress_share=None, began_at=NOW, heard_at=NOW, estimate_s=100.0)
    shares = [share_of(gpu, NOW + timedelta(seconds=seconds)) for seconds in (0, 50, 1000)]
    assert shares == [0.0, 0.5, 0.95]
    assert share_of(gpu.decided(IN_USE), NOW + timedelta(seconds=50)) == 0.0
    assert share_of(replace(gpu, estimate_s=None), NOW) is None


def test_machines_that_are_left_out_are_named_while_it_runs() -> None:
    status = replace(at_work(), left_out={"gpu-8": "has memgrid 0.0.9, this volunteer 0.1.0"})
    view = seen(status)
    assert device_lines(view)[-1] == "gpu-8 is left out: has memgrid 0.0.9, this volunteer 0.1.0"
    assert device_lines(view)[0].startswith("cuda:0 A Fine GPU: computing")
    assert device_lines(seen(status, is_running=False)) == [", ".join(each.name for each in status.devices)]
