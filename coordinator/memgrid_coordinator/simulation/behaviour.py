"""What kinds of hosts there are: who errs, who cheats, and when."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """How a population behaves."""

    HONEST = "honest"
    FLAKY = "flaky"
    """Honest, on a machine that now and then computes wrongly."""
    BUGGY = "buggy"
    """Honest, with software that computes wrongly on this device."""
    INDEPENDENT = "independent"
    """Cheats from the first result on, each host with its own wrong answers."""
    COLLUDING = "colluding"
    """Cheats from the first result on; a group agrees on its wrong answers."""
    SLEEPER = "sleeper"
    """Honest until it is trusted, then cheats; so again after a fault. A group agrees on its wrong answers."""
    WHITEWASHING = "whitewashing"
    """A sleeper that comes back under a new name after a fault."""
    SYBIL = "sybil"
    """One person's many accounts, from one network, enrolled at once; a group that comes back after a fault."""
    COPIER = "copier"
    """Answers what another of its group answered; where none has, something it once computed, which is wrong."""


CHEATS = frozenset(Kind) - {Kind.HONEST, Kind.FLAKY, Kind.BUGGY}
WAIT_FOR_TRUST = frozenset({Kind.SLEEPER, Kind.WHITEWASHING})
COME_BACK_NEW = frozenset({Kind.WHITEWASHING, Kind.SYBIL})
