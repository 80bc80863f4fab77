"""Run one target so many times on spoilt input, and note what broke its contract."""

from __future__ import annotations

import random
import re
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fuzzing.mutation import CONTENT_BYTES_MAX, Mutator, spoil_bytes
from memgrid.errors import MemgridError

_CORPUS_MAX = 400
_FAILURES_MAX = 20
_REASON_MAX = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser of bytes from outside.

    Its contract: `run` returns, or raises MemgridError (or one of `allowed`, where a library above it catches those);
    never anything else, and never after more than bounded time and memory. `run` also uses what it got, the way the
    program would: a value that explodes later is no value.
    """

    name: str
    about: str
    """Whose bytes, for people."""
    seeds: Callable[[], Sequence[bytes]]
    """Input that is well-formed, made by the program's own writers."""
    run: Callable[[bytes], object]
    mutators: tuple[Mutator, ...] = ()
    allowed: tuple[type[Exception], ...] = ()
    executions: int = 100_000
    """How many a full run makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Input that broke the contract, and how."""

    content: bytes
    fault: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a run."""

    executions: int = 0
    accepted: int = 0
    refusals: set[str] = field(default_factory=set)
    """The different ways in which input was turned down."""
    slowest_s: float = 0.0
    grown_bytes: int = 0
    """By how much the process's largest size grew."""
    failures: list[Failure] = field(default_factory=list)


def fuzz(target: Target, *, executions: int, seed: int) -> Outcome:
    """Equal seeds give equal input. Input that was turned down in a new way is spoilt further."""
    rng = random.Random(f"{target.name} {seed}")
    outcome, before = Outcome(), _peak_bytes()
    corpus = list(target.seeds())
    for content in _inputs(target, corpus, executions, rng):
        started = time.process_time()  # others may be using the machine
        way, failure = execute(target, content)
        outcome.slowest_s = max(outcome.slowest_s, time.process_time() - started)
        outcome.executions += 1
        outcome.accepted += way == ""
        if failure is not None and way not in outcome.refusals and len(outcome.failures) < _FAILURES_MAX:
            outcome.failures.append(failure)
        if way and way not in outcome.refusals:
            outcome.refusals.add(way)
            if len(corpus) < _CORPUS_MAX:
                corpus.append(content)
    outcome.grown_bytes = _peak_bytes() - before
    return outcome


def execute(target: Target, content: bytes) -> tuple[str, Failure | None]:
    """How the input was turned down ("" when it was not), and the failure, if it was one."""
    try:
        target.run(content)
    except (MemgridError, *target.allowed) as error:
        return _way(error), _unfit(content, error)
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        trace = "".join(traceback.format_exception(error)[-3:])
        return _way(error), Failure(content=content, fault=f"{type(error).__name__}: {error}\n{trace}"[:1500])
    return "", None


def _unfit(content: bytes, error: Exception) -> Failure | None:
    """A reason is sent, stored and shown: it has to be short, encodable text without NUL."""
    reason = str(error)
    try:
        fault = "holds NUL" if b"\0" in reason.encode() else "is too long" if len(reason) > _REASON_MAX else None
    except UnicodeEncodeError:
        fault = "is no text"
    return None if fault is None else Failure(content=content, fault=f"the reason {fault}: {reason[:200]!a}")


def _inputs(target: Target, corpus: Sequence[bytes], executions: int, rng: random.Random) -> Iterator[bytes]:
    mutators = (*target.mutators, spoil_bytes) if target.mutators else (spoil_bytes,)
    seeds = corpus[:executions]
    yield from seeds
    for _ in range(executions - len(seeds)):
        content = rng.choice(corpus)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
            content = rng.choice(mutators)(rng, content)[:CONTENT_BYTES_MAX]
        yield content


def _way(error: Exception) -> str:
    """An error without what differs from input to input."""
    words = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+|[^\x20-\x7e]", "", str(error)[:200])
    return f"{type(error).__name__}: {words[:80]}"


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
