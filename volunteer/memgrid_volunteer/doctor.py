"""Examine a volunteer: everything that a support thread would ask for, in one report that can be pasted anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from memgrid.clock import Clock
from memgrid.errors import MemgridError
from memgrid.findings import Finding, Level
from memgrid_volunteer.examining import grid, machine, place, working
from memgrid_volunteer.examining.redacting import Redactor
from memgrid_volunteer.home import Home, Place
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
    places = home.places() or (home,)
    return [
        *before_joining,
        ("isolation", lambda: machine.walls(home)),
        ("worker", lambda: machine.worker(home, worker_module)),
        *(("key", partial(_of, each, place.key, len(places))) for each in places),
        ("disk", lambda: place.room(home)),
        ("cache", lambda: place.cache(home, rng)),
        ("preferences", lambda: place.preferences(home)),
        *(("grid", partial(_grid, each, clock)) for each in places),
        ("volunteer", lambda: working.running(home)),
        ("probe", lambda: working.owner(home)),
        *(("outbox", partial(_of, each, working.undelivered, len(places))) for each in places),
        ("starts", lambda: working.ends(home)),
        ("service", lambda: working.service(home)),
    ]


def _of(joined: Place, look: Callable[[Place], Iterator[Finding]], grids: int) -> Iterator[Finding]:
    """What is found of one grid, with its name when there are others."""
    for finding in look(joined):
        yield replace(finding, text=f"{joined.membership().name}: {finding.text}") if grids > 1 else finding


def _grid(joined: Place, clock: Clock) -> Iterator[Finding]:
    yield from grid.grid(joined.membership(), clock)


def _missing(home: Home) -> Iterator[Finding]:
    text = f"{home.folder}: no volunteer lives here"
    advice = "begin with: memgrid volunteer join URL; or name another folder with --home"
    yield Finding(level=Level.BAD, about="home", text=text, advice=advice)
