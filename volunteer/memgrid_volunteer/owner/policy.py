"""May each device compute now? One pure decision over what the owner wants and what the machine is doing.

Every reason against it is a rule (`rules.py`); the strictest that holds decides. Pauses come at once. Going on waits
until the reason has been gone for a while, so that decisions do not flap; only the owner's own word, a pause taken
back or a preference changed, is obeyed at once in both directions. What can't be seen counts as the worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import RUN, Action, Decision
from memgrid_volunteer.owner.hysteresis import PAUSED_STEP, Latch, Steps, by_power, by_temperature, elapsed_s
from memgrid_volunteer.owner.preferences import InUse, Preferences, Yield
from memgrid_volunteer.owner.rules import RULES
from memgrid_volunteer.owner.signals import Pause, Signals, holds
from memgrid_volunteer.owner.view import Finding, Rule, View, in_use_text, is_idle, is_known_idle, use_of

RELEASE_AFTER_S = 300.0
"""A pause that kept its memory so long gives it back."""
RESUME_HOLD_S = 10.0
"""A device gets no more to do within so long of its last change, unless its owner says so."""
GPU_LIMIT_C = 83.0
CPU_LIMIT_C = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFormer:
    """What the next decision about a device has to know of the last ones."""

    decision: Decision
    changed_at: datetime
    computed_at: datetime
    """When it was last allowed to."""
    latches: Mapping[str, Latch]
    findings: Mapping[str, Finding]
    heat: Steps
    power: Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """What `decide` remembers from one call to the next; begin with `Former()`."""

    preferences: Preferences | None = None
    pauses: tuple[Pause, ...] = ()
    devices: Mapping[DeviceId, DeviceFormer] = field(default_factory=dict)


def decide(
    signals: Signals, preferences: Preferences, now: datetime, former: Former
) -> tuple[dict[DeviceId, Decision], Former]:
    """What each device of `signals` may do; call it as often as you like, with what it gave the last time.

    `now` is aware, and its zone is the owner's: hours and days are read in it.

    >>> from memgrid_volunteer.owner.preferences import preferences_of
    >>> from memgrid_volunteer.owner.signals import DeviceSignals
    >>> signals = Signals(devices={"cpu": DeviceSignals()}, pauses=(Pause(),))
    >>> at = datetime.fromisoformat("2026-03-02T12:00:00+01:00")
    >>> decisions, former = decide(signals, preferences_of({}), at, Former())
    >>> decisions["cpu"].action, decisions["cpu"].reason.text
    (<Action.PAUSE_RELEASE: 'pause_release'>, 'you paused it; `memgrid volunteer resume` goes on')
    """
    is_changed = former.preferences is not None and former.preferences != preferences
    devices = {}
    for device_id, device in signals.devices.items():
        view = View(device_id=device_id, device=device, signals=signals, preferences=preferences, now=now)
        before = former.devices.get(device_id)
        # What other preferences had made hold on does not hold on any more.
        before = None if before is None else _forgetful(before) if is_changed else before
        is_owners_word = is_changed or _pauses_of(former, device_id) != view.pauses
        devices[device_id] = _decide_device(view, before, is_owners_word)
    decisions = {device_id: each.decision for device_id, each in devices.items()}
    return decisions, Former(preferences=preferences, pauses=signals.pauses, devices=devices)


def _pauses_of(former: Former, device_id: DeviceId) -> tuple[Pause, ...]:
    return tuple(pause for pause in former.pauses if holds(pause, device_id))


def _forgetful(before: DeviceFormer) -> DeviceFormer:
    return replace(before, latches={}, findings={}, heat=Steps(), power=Steps())


def _decide_device(view: View, before: DeviceFormer | None, is_owners_word: bool) -> DeviceFormer:
    now = view.now
    was_computing = before is not None and before.decision.may_compute
    latches, findings = _look(view, before)
    heat = _heat(view, Steps() if before is None else before.heat)
    power = _power(view, Steps() if before is None else before.power, was_computing)
    against = [findings[rule.name] for rule in RULES if latches[rule.name].is_on]
    against += _paused_by_limits(view, heat, power)
    decision = _strictest(against) or _duty(view, heat, power)
    if before is not None:
        decision = _settled(decision, before, now, is_owners_word)
    is_new = before is None or _differs(decision, before.decision)
    return DeviceFormer(
        decision=decision,
        changed_at=now if before is None or is_new else before.changed_at,
        computed_at=now if before is None or decision.may_compute else before.computed_at,
        latches=latches,
        findings=findings,
        heat=heat,
        power=power,
    )


def _look(view: View, before: DeviceFormer | None) -> tuple[dict[str, Latch], dict[str, Finding]]:
    """Every rule's latch after this look, and what each that holds has found."""
    latches, findings = {}, {}
    for rule in RULES:
        latch = Latch() if before is None else before.latches.get(rule.name, Latch())
        found = rule.look(view, latch)
        rise_s = 0.0 if found is None else found.rise_s
        latches[rule.name] = latch.seen(found is not None, view.now, rise_s=rise_s, fall_s=rule.fall_s)
        if found is not None:
            findings[rule.name] = found
        elif before is not None and latches[rule.name].is_on:
            findings[rule.name] = _falling(before.findings[rule.name], latches[rule.name], rule)
    return latches, findings


def _falling(finding: Finding, latch: Latch, rule: Rule) -> Finding:
    """The reason has gone, and is waited out."""
    assert latch.raw_since is not None
    return replace(finding, until=latch.raw_since + timedelta(seconds=rule.fall_s))


def _heat(view: View, steps: Steps) -> Steps:
    limit_c = view.own.temperature_max_c
    if limit_c is None:
        limit_c = GPU_LIMIT_C if view.is_gpu else CPU_LIMIT_C
    return by_temperature(steps, view.device.temperature_c, limit_c, view.now)


def _power(view: View, steps: Steps, is_computing: bool) -> Steps:
    limit_w = view.own.power_max_w
    if limit_w is None:
        return Steps()
    return by_power(steps, view.device.power_w, limit_w, view.now, is_computing=is_computing)


def _paused_by_limits(view: View, heat: Steps, power: Steps) -> list[Finding]:
    found = []
    if heat.step == PAUSED_STEP:
        found.append(_finding(Action.PAUSE_KEEP, _too_hot(view), view.key("temperature_max_c")))
    if power.step == PAUSED_STEP:
        found.append(_finding(Action.PAUSE_KEEP, _too_much_power(view), view.key("power_max_w")))
    return found


def _strictest(against: list[Finding]) -> Decision | None:
    """The first that gives memory back, else the first at all."""
    for action in (Action.PAUSE_RELEASE, Action.PAUSE_KEEP):
        for finding in against:
            if finding.action is action:
                reason = Reason(code=finding.code, text=finding.text)
                return Decision(
                    action=action, duty=0.0, reason=reason, until=finding.until, preference=finding.preference
                )
    return None


def _duty(view: View, heat: Steps, power: Steps) -> Decision:
    """Nothing stands against computing: for how much of the time?"""
    duty, decision = view.own.duty_percent / 100, RUN
    if duty < 1:
        text = f"{view.device_id} computes for {view.own.duty_percent} % of the time, as you said"
        reason = Reason(code=ReasonCode.DUTY_LIMITED, text=text)
        decision = _throttled(duty, reason, view.key("duty_percent"))
    in_use = view.preferences.when.in_use_duty_percent / 100
    if in_use < duty and (shared := _shared_with_somebody(view, in_use)) is not None:
        duty, decision = in_use, shared
    if heat.step and heat.duty <= power.duty:
        decision = _throttled(duty * heat.duty, _too_hot(view), view.key("temperature_max_c"))
    elif power.step:
        decision = _throttled(duty * power.duty, _too_much_power(view), view.key("power_max_w"))
    return decision


def _shared_with_somebody(view: View, duty: float) -> Decision | None:
    if not is_idle(view) and use_of(view) is InUse.THROTTLE:
        text, until = in_use_text(view)
        key = "when.gpu_while_in_use" if view.is_gpu else "when.while_in_use"
        reason = Reason(code=ReasonCode.MACHINE_IN_USE, text=text)
        return replace(_throttled(duty, reason, key), until=until)
    is_blind = view.preferences.when.fullscreen is Yield.PAUSE and view.signals.fullscreen_program is None
    if is_blind and not is_known_idle(view):
        text = f"nobody can tell what fills the screen{view.why_unseen('screen')}"
        return _throttled(duty, Reason(code=ReasonCode.NOT_SEEN, text=text), "when.fullscreen")
    return None


def _settled(decision: Decision, before: DeviceFormer, now: datetime, is_owners_word: bool) -> Decision:
    """No more than before within the hold; and memory that is back, or was kept too long, is not kept."""
    held_s = elapsed_s(before.changed_at, now)
    if decision.duty > before.decision.duty and held_s < RESUME_HOLD_S and not is_owners_word:
        return replace(before.decision, until=before.changed_at + timedelta(seconds=RESUME_HOLD_S))
    if decision.action is Action.PAUSE_KEEP:
        is_back = before.decision.action is Action.PAUSE_RELEASE
        if is_back or elapsed_s(before.computed_at, now) >= RELEASE_AFTER_S:
            return replace(decision, action=Action.PAUSE_RELEASE)
    return decision


def _differs(one: Decision, other: Decision) -> bool:
    return (one.action, one.duty) != (other.action, other.duty)


def _throttled(duty: float, reason: Reason, preference: str) -> Decision:
    return Decision(action=Action.THROTTLE, duty=duty, reason=reason, preference=preference)


def _finding(action: Action, reason: Reason, preference: str) -> Finding:
    return Finding(action=action, code=reason.code, text=reason.text, preference=preference)


def _too_hot(view: View) -> Reason:
    text = f"{view.device_id} is at {view.device.temperature_c or 0:.0f} °C; goes on as it cools down"
    return Reason(code=ReasonCode.TOO_HOT, text=text)


def _too_much_power(view: View) -> Reason:
    text = f"{view.device_id} draws {view.device.power_w or 0:.0f} W, more than you allow"
    return Reason(code=ReasonCode.TOO_MUCH_POWER, text=text)
