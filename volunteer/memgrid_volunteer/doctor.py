"""Examine a volunteer: everything that a support thread would ask for, in one report that can be pasted anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from memgrid.clock import Clock
from memgrid.errors import MemgridError
from memgrid.findings import Finding, Level
from memgrid_volunteer.examining import grid, machine, place, working
from memgrid_volunteer.examining.redacting import Redactor
from memgrid_volunteer.home import Home
from memgrid_volunteer.sandbox import WORKER_MODULE

Part = tuple[str, Callable[[], Iterator[Finding]]]


def examine(home: Home, clock: Clock, rng: random.Random, *, worker_module: str = WORKER_MODULE) -> Iterator[Finding]:
    """All findings, one after another, without secrets; nothing is changed. What can't be looked at is one itself."""
    redactor = Redactor(home)
    for about, look in _parts(home, clock, rng, worker_module):
        try:
            for finding in look():
                yield redactor.cleaned(finding)
        except (MemgridError, OSError, ValueError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield redactor.cleaned(Finding(level=Level.BAD, about=about, text=f"can't be looked at: {text}"))


def _parts(home: Home, clock: Clock, rng: random.Random, worker_module: str) -> list[Part]:
    before_joining: list[Part] = [("machine", machine.machine)]
    if not home.folder.is_dir():
        return [*before_joining, ("home", lambda: _missing(home))]
    return [
        *before_joining,
        ("isolation", lambda: machine.walls(home)),
        ("worker", lambda: machine.worker(home, worker_module)),
        ("key", lambda: place.key(home)),
        ("disk", lambda: place.room(home)),
        ("cache", lambda: place.cache(home, rng)),
        ("preferences", lambda: place.preferences(home)),
        ("grid", lambda: grid.grid(home.membership(), clock)),
        ("volunteer", lambda: working.running(home)),
        ("probe", lambda: working.owner(home)),
        ("outbox", lambda: working.undelivered(home)),
        ("starts", lambda: working.ends(home)),
        ("service", lambda: working.service(home)),
    ]


def _missing(home: Home) -> Iterator[Finding]:
    text = f"{home.folder}: no volunteer lives here"
    advice = "begin with: memgrid volunteer join URL; or name another folder with --home"
    yield Finding(level=Level.BAD, about="home", text=text, advice=advice)
