"""Every reason for which a device must not compute: what is looked for, what it is called, how long it holds on."""

from __future__ import annotations

from datetime import datetime

from memgrid.units import ReasonCode
from memgrid_volunteer.owner.decision import Action
from memgrid_volunteer.owner.hysteresis import Latch
from memgrid_volunteer.owner.preferences import InUse, Yield, spans_of
from memgrid_volunteer.owner.spans import inside, next_moment
from memgrid_volunteer.owner.view import Finding, Rule, View, in_use_text, is_idle, is_known_idle, use_of
from memgrid_volunteer.owner.words import moment_text

BATTERY_MARGIN = 0.05
LOAD_EASE_SHARE = 0.6
LOAD_RISE_S = 4.0
"""So long other programs may be busy before we stop: opening a page is no reason."""
DISK_MARGIN = 1.1
SQUEEZED_FREE_SHARE = 0.05
SQUEEZED_FOREIGN_SHARE = 0.10
SQUEEZED_RETRY_S = 600.0


def owner_pause(view: View, latch: Latch) -> Finding | None:
    if not view.pauses:
        return None
    ends = [pause.until for pause in view.pauses]
    until = None if None in ends else max(end for end in ends if end is not None)
    if until is not None:
        text = f"you paused it until {moment_text(until, view.now)}"
    elif any(pause.is_until_restart for pause in view.pauses):
        text = "you paused it until the volunteer starts again"
    else:
        text = "you paused it; `memgrid volunteer resume` goes on"
    return _released(ReasonCode.OWNER_PAUSED, text, until=until)


def disabled(view: View, latch: Latch) -> Finding | None:
    if view.own.enabled:
        return None
    return _released(ReasonCode.DEVICE_DISABLED, f"{view.device_id} is switched off", view.key("enabled"))


def out_of_hours(view: View, latch: Latch) -> Finding | None:
    hours, quiet = spans_of(view.preferences.when.hours), spans_of(view.preferences.when.quiet)

    def is_open(moment: datetime) -> bool:
        return (not hours or inside(hours, moment)) and not inside(quiet, moment)

    if is_open(view.now):
        return None
    is_quiet = inside(quiet, view.now)
    until = next_moment((*hours, *quiet), view.now, is_open)
    what = "these are quiet hours" if is_quiet else "these are not its hours"
    ends = "" if until is None else f"; goes on {moment_text(until, view.now)}"
    return _released(ReasonCode.OUT_OF_HOURS, what + ends, "when.quiet" if is_quiet else "when.hours", until=until)


def battery(view: View, latch: Latch) -> Finding | None:
    when, signals = view.preferences.when, view.signals
    if signals.on_battery is False:
        return None
    if not when.on_battery:
        if signals.on_battery is None:
            text = f"nobody can tell whether it runs on battery{view.why_unseen('power')}"
            return _released(ReasonCode.NOT_SEEN, text, "when.on_battery")
        text = "the machine runs on battery; goes on when it is plugged in"
        return _released(ReasonCode.ON_BATTERY, text, "when.on_battery")
    least = when.battery_min_percent / 100
    if not least:
        return None
    key = "when.battery_min_percent"
    if signals.battery_share is None:
        text = f"nobody can tell how full the battery is{view.why_unseen('power')}"
        return _released(ReasonCode.NOT_SEEN, text, key)
    if signals.battery_share >= least + (BATTERY_MARGIN if latch.is_on else 0.0):
        return None
    text = f"the battery is at {signals.battery_share:.0%}; goes on above {when.battery_min_percent} %"
    return _released(ReasonCode.ON_BATTERY, text, key)


def exclusive_program(view: View, latch: Latch) -> Finding | None:
    wanted = {name.casefold() for name in view.preferences.when.exclusive_programs}
    if not wanted:
        return None
    key = "when.exclusive_programs"
    if view.signals.programs is None:
        text = f"nobody can tell which programs run{view.why_unseen('programs')}"
        return _released(ReasonCode.NOT_SEEN, text, key)
    running = sorted(name for name in view.signals.programs if name.casefold() in wanted)
    if not running:
        return None
    return _released(ReasonCode.PROGRAM_RUNS, f"{running[0]} runs; goes on when it has ended", key)


def filled_screen(view: View, latch: Latch) -> Finding | None:
    program = view.signals.fullscreen_program
    if view.preferences.when.fullscreen is Yield.RUN or not program:
        return None
    text = f"{program} fills the screen; goes on when it is gone"
    return _released(ReasonCode.SCREEN_FILLED, text, "when.fullscreen")


def wanted_device(view: View, latch: Latch) -> Finding | None:
    if not view.is_gpu or view.preferences.when.foreign_gpu is Yield.RUN or not view.device.foreign_processes:
        return None
    names = ", ".join(view.device.foreign_processes[:3])
    text = f"{names} computes on {view.device_id}; goes on when it has ended"
    return _released(ReasonCode.DEVICE_WANTED, text, "when.foreign_gpu")


def squeezed_memory(view: View, latch: Latch) -> Finding | None:
    device = view.device
    if not view.is_gpu or view.preferences.when.foreign_gpu is Yield.RUN:
        return None
    used, total, foreign = device.memory_used_bytes, device.memory_total_bytes, device.foreign_memory_bytes
    if used is None or foreign is None or not total:
        return None
    # What is free then is free because we went: only another try, after a while, says whether there is room for us.
    is_short = 0 < latch.on_s(view.now) < SQUEEZED_RETRY_S or total - used < SQUEEZED_FREE_SHARE * total
    if not is_short or foreign < SQUEEZED_FOREIGN_SHARE * total:
        return None
    text = f"other programs need the memory of {view.device_id}"
    return _released(ReasonCode.DEVICE_WANTED, text, "when.foreign_gpu")


def unwatched_gpu(view: View, latch: Latch) -> Finding | None:
    """Where a program on the GPU or on the screen would not be seen, only somebody's absence is safe."""
    when = view.preferences.when
    if not view.is_gpu or is_known_idle(view):
        return None
    if when.foreign_gpu is Yield.PAUSE and view.device.foreign_processes is None:
        what, why, key = (
            f"other programs on {view.device_id} can't be seen",
            view.why_unseen("gpu"),
            "when.foreign_gpu",
        )
    elif when.fullscreen is Yield.PAUSE and view.signals.fullscreen_program is None:
        what, why, key = "nobody can tell what fills the screen", view.why_unseen("screen"), "when.fullscreen"
    else:
        return None
    text = f"{what}{why}; goes on when nobody is at the machine"
    return _released(ReasonCode.NOT_SEEN, text, key)


def unseen_cap(view: View, latch: Latch) -> Finding | None:
    """A cap that the owner wrote and nobody can watch."""
    own, device = view.own, view.device
    probe = "gpu" if view.is_gpu else "thermal"
    if own.temperature_max_c is not None and device.temperature_c is None:
        text = f"the temperature of {view.device_id} can't be seen{view.why_unseen(probe)}, and has a limit"
        return _released(ReasonCode.NOT_SEEN, text, view.key("temperature_max_c"))
    if own.power_max_w is not None and device.power_w is None:
        text = f"what {view.device_id} draws can't be seen{view.why_unseen(probe)}, and has a limit"
        return _released(ReasonCode.NOT_SEEN, text, view.key("power_max_w"))
    return None


def machine_in_use(view: View, latch: Latch) -> Finding | None:
    """Somebody is there; where nobody can tell, somebody is."""
    if is_idle(view) or use_of(view) is not InUse.PAUSE:
        return None
    text, until = in_use_text(view)
    # A processor goes on where it was; the memory of a GPU is what its owner came for.
    action = Action.PAUSE_RELEASE if view.is_gpu else Action.PAUSE_KEEP
    return Finding(
        action=action,
        code=ReasonCode.MACHINE_IN_USE,
        text=text,
        preference="when.gpu_while_in_use" if view.is_gpu else "when.while_in_use",
        until=until,
    )


def busy_machine(view: View, latch: Latch) -> Finding | None:
    most = view.preferences.when.foreign_load_max_percent / 100
    if view.is_gpu or most >= 1:
        return None
    share, key = view.signals.foreign_load_share, "when.foreign_load_max_percent"
    if share is None:
        text = f"nobody can tell what other programs do{view.why_unseen('load')}"
        return Finding(action=Action.PAUSE_KEEP, code=ReasonCode.NOT_SEEN, text=text, preference=key)
    if share <= most * (LOAD_EASE_SHARE if latch.is_on else 1.0):
        return None
    text = f"other programs keep {share:.0%} of the processor busy; goes on when they are done"
    return Finding(
        action=Action.PAUSE_KEEP, code=ReasonCode.MACHINE_BUSY, text=text, preference=key, rise_s=LOAD_RISE_S
    )


def full_disk(view: View, latch: Latch) -> Finding | None:
    least, key = view.preferences.disk.free_min_gb * 1e9, "disk.free_min_gb"
    free = view.signals.disk_free_bytes
    if not least:
        return None
    if free is None:
        text = f"nobody can tell how much of the disk is free{view.why_unseen('disk')}"
        return Finding(action=Action.PAUSE_KEEP, code=ReasonCode.NOT_SEEN, text=text, preference=key)
    if free >= least * (DISK_MARGIN if latch.is_on else 1.0):
        return None
    text = f"only {free / 1e9:.1f} GB of the disk are free"
    return Finding(action=Action.PAUSE_KEEP, code=ReasonCode.DISK_FULL, text=text, preference=key)


RULES = (
    Rule(name="owner", look=owner_pause),
    Rule(name="disabled", look=disabled),
    Rule(name="hours", look=out_of_hours),
    Rule(name="battery", look=battery, fall_s=30),
    Rule(name="program", look=exclusive_program, fall_s=15),
    Rule(name="screen", look=filled_screen, fall_s=30),
    Rule(name="wanted", look=wanted_device, fall_s=30),
    Rule(name="memory", look=squeezed_memory, fall_s=60),
    Rule(name="unwatched", look=unwatched_gpu),
    Rule(name="cap", look=unseen_cap, fall_s=10),
    Rule(name="use", look=machine_in_use),
    Rule(name="load", look=busy_machine, fall_s=20),
    Rule(name="disk", look=full_disk, fall_s=30),
)
"""In the order in which they are told: the owner's own word first."""


def _released(code: ReasonCode, text: str, preference: str = "", until: datetime | None = None) -> Finding:
    return Finding(action=Action.PAUSE_RELEASE, code=code, text=text, preference=preference, until=until)
