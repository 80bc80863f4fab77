"""The volunteer at work: whether it runs, what holds it back, how it ended, what it can't see."""

from __future__ import annotations

from collections.abc import Iterator

from memgrid.errors import MemgridError
from memgrid.findings import Finding, Level
from memgrid_volunteer.home import Home, Place
from memgrid_volunteer.service import installing
from memgrid_volunteer.service.crashes import Starts
from memgrid_volunteer.service.keeping import WHY_WAITING_FILE
from memgrid_volunteer.status import VolunteerStatus


def running(home: Home) -> Iterator[Finding]:
    """The process, and why it does nothing if it does nothing."""
    status = VolunteerStatus.from_json(home.status())
    if not home.is_running:
        text = "not running" if status.state == "stopped" else f"not running; it was {status.state} when it ended"
        advice = "memgrid volunteer run, or memgrid volunteer install"
        yield Finding(level=Level.WARNING, about="volunteer", text=text, advice=advice)
        return
    idle = status.idle_reason
    why = f": {idle.text or idle.code.value}" if idle is not None else ""
    yield Finding(level=Level.OK, about="volunteer", text=f"{status.state}{why}")
    for device in status.devices:
        reason = "" if device.reason is None else f": {device.reason.text or device.reason.code.value}"
        preference = f" ({device.preference})" if device.preference else ""
        text = f"{device.device_id} {device.action.value}{reason}{preference}"
        yield Finding(level=Level.FACT, about="now", text=text)


def owner(home: Home) -> Iterator[Finding]:
    """What the probes see, and what would follow from it."""
    from memgrid_volunteer.owner.looking import look_once

    look = look_once(home)
    for name, sight in sorted(look.sights.items()):
        if sight.reading is None:
            advice = "`memgrid volunteer probe` shows all; what can't be seen counts as a reason to wait"
            text = f"{name} can't be seen: {sight.why_unseen}"
            yield Finding(level=Level.WARNING, about="probe", text=text, advice=advice)
    if all(sight.reading is not None for sight in look.sights.values()):
        yield Finding(level=Level.OK, about="probe", text=f"all {len(look.sights)} see something")
    if not home.is_running:
        for device_id, decision in look.decisions.items():
            reason = "" if decision.reason is None else f": {decision.reason.text or decision.reason.code.value}"
            text = f"{device_id} would {decision.action.value}{reason}"
            yield Finding(level=Level.FACT, about="now", text=text)


def ends(home: Home) -> Iterator[Finding]:
    """How the last starts as a service ended."""
    starts = Starts(home.folder).all()
    past = starts[:-1] if home.is_running else starts
    bad = [start for start in past if start.is_bad]
    if bad:
        last = f"{bad[-1].at:%Y-%m-%d %H:%M} UTC: {bad[-1].reason}"
        text = f"{len(bad)} of the last {len(past)} ended badly, last the one of {last}"
        yield Finding(level=Level.WARNING, about="starts", text=text, advice="the log says more")
    elif past:
        yield Finding(level=Level.OK, about="starts", text=f"the last {len(past)} ended well")
    waiting = home.folder / WHY_WAITING_FILE
    if waiting.is_file():
        text = waiting.read_text(errors="replace").splitlines()[-1]
        advice = "mend what is bad above; then start it anew"
        yield Finding(level=Level.BAD, about="starts", text=text, advice=advice)


def service(home: Home) -> Iterator[Finding]:
    """What the service manager knows of it."""
    try:
        plan = installing.plan_for(installing.manager_here(), home)
    except MemgridError as error:
        yield Finding(level=Level.FACT, about="service", text=str(error))
        return
    state = installing.state(plan)["state"]
    if state == "failed":
        advice = (
            f"see why: journalctl --user -u {plan.service.name}; then systemctl --user restart {plan.service.name}"
        )
        yield Finding(level=Level.BAD, about="service", text=f"{plan.service.name}: {state}", advice=advice)
    else:
        yield Finding(level=Level.FACT, about="service", text=f"{plan.service.name}: {state}")


def undelivered(place: Place) -> Iterator[Finding]:
    """Finished work that its grid has not judged."""
    waiting = [path for path in place.outbox.glob("*") if path.is_dir()] if place.outbox.is_dir() else []
    yield Finding(level=Level.FACT, about="outbox", text=f"{len(waiting)} results await their verdict")
