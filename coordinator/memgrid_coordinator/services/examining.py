"""Examine a grid: machine, folder, keys, database, content, and whether it answers as volunteers would ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy.exc import OperationalError

from memgrid.clock import Clock
from memgrid.errors import InvalidError, MemgridError
from memgrid.findings import Finding, Level
from memgrid_coordinator.certificates import Certificate
from memgrid_coordinator.policy import health
from memgrid_coordinator.services import examining_machine
from memgrid_coordinator.services.examining_service import answers
from memgrid_coordinator.services.gauging import ALIVE
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import copies, examination, schema
from memgrid_coordinator.store.blob_places import blobs_of
from memgrid_coordinator.store.dialects import open_engine
from memgrid_coordinator.store.examination import Condition
from memgrid_coordinator.store.upgrading import versions

_LOOKED_FOR = 5000
"""Blobs of the pool that are looked for: enough to see a disk that was not mounted."""


def examine(settings: Settings, clock: Clock, *, thoroughly: bool = False) -> Iterator[Finding]:
    """All findings, one after another; nothing is changed. What can't be looked at is a finding itself.

    `thoroughly` reads the whole database for damage.
    """
    parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("machine", examining_machine.machine),
        ("folder", lambda: examining_machine.folder(settings)),
        ("keys", lambda: examining_machine.keys(settings)),
        ("certificate", lambda: _certificate(settings, clock)),
        ("database", lambda: _database(settings, thoroughly=thoroughly)),
        ("grid", lambda: _condition(settings, clock)),
        ("content", lambda: _content(settings)),
        ("service", lambda: answers(settings)),
    ]
    for about, look in parts:
        try:
            yield from look()
        except (MemgridError, OSError, OperationalError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield Finding(level=Level.BAD, about=about, text=f"can't be looked at: {text}")


def _certificate(settings: Settings, clock: Clock) -> Iterator[Finding]:
    chain, key = settings.certificate, settings.certificate_key
    if chain is None or key is None:
        chain, key = settings.keys / "tls.crt", settings.keys / "tls.key"
    certificate = Certificate(chain=chain, key=key, fingerprint=None)
    yield health.certificate(certificate.expires_at(), clock.now())


def _database(settings: Settings, *, thoroughly: bool) -> Iterator[Finding]:
    version, newest = schema.version_at(settings.database_url), versions()[-1]
    if version is not None and version not in versions():
        text = f"schema {version} is of a newer memgrid; this one knows up to {newest}"
        yield Finding(level=Level.BAD, about="database", text=text, advice="update memgrid")
        raise InvalidError("the schema is unknown")
    steps = schema.pending(version)
    yield Finding(
        level=Level.WARNING if steps else Level.OK,
        about="database",
        text=f"schema {version}, {len(steps)} steps behind this release" if steps else f"schema {version}",
        advice="`memgrid coordinator migrate`, or the next start, brings it up to date" if steps else "",
    )
    engine = open_engine(settings.database_url)
    try:
        waited_s = examination.write_lock_s(engine)
        level = Level.WARNING if waited_s > 1 else Level.OK
        text = f"{engine.dialect.name} lets a writer in after {1000 * waited_s:.1f} ms"
        yield Finding(level=level, about="database", text=text)
    finally:
        engine.dispose()
    path = copies.file_of(settings.database_url)
    if path is not None:
        yield from examining_machine.database_file(path)
        if thoroughly:
            problems = copies.problems_of(path)
            text = f"{len(problems)} problems, the first: {problems[0]}" if problems else "every page is sound"
            advice = "stop the grid and restore a backup" if problems else ""
            level = Level.BAD if problems else Level.OK
            yield Finding(level=level, about="database", text=text, advice=advice)


def _condition(settings: Settings, clock: Clock) -> Iterator[Finding]:
    now, engine = clock.now(), open_engine(settings.database_url)
    try:
        with engine.connect() as connection:
            found = examination.condition(connection, now, ALIVE)
    finally:
        engine.dispose()
    yield health.clock(found.last_event_at, now)
    yield Finding(level=Level.FACT, about="units", text=_listed(found.units_by_state))
    yield Finding(level=Level.FACT, about="campaigns", text=_listed(found.campaigns_by_state))
    if found.failures_by_reason:
        advice = "`memgrid campaign results` says more, `memgrid campaign retry` tries them again"
        text = f"became no cube: {_listed(found.failures_by_reason)}"
        yield Finding(level=Level.WARNING, about="documents", text=text, advice=advice)
    yield _hosts(found)
    oldest = None if found.oldest_opened_at is None else now - found.oldest_opened_at
    waiting = found.units_by_state.get("open", 0)
    yield health.queue(open_units=waiting, hosts_alive=found.hosts_alive, oldest=oldest)
    if found.tokens_ending:
        text = f"{', '.join(found.tokens_ending)} will run out within a week"
        yield Finding(level=Level.WARNING, about="tokens", text=text, advice="`memgrid coordinator token create`")


def _hosts(found: Condition) -> Finding:
    text = (
        f"{found.hosts:,} known, {found.hosts_alive:,} alive, {found.hosts_resting:,} resting, "
        f"{found.accounts_banned:,} accounts banned"
    )
    if found.hosts_alive and 4 * found.hosts_resting > found.hosts_alive:
        advice = "many rest after rejected reports: `memgrid explain HOST` shows what they differed in"
        return Finding(level=Level.WARNING, about="hosts", text=text, advice=advice)
    return Finding(level=Level.FACT, about="hosts", text=text)


def _content(settings: Settings) -> Iterator[Finding]:
    blobs, engine = blobs_of(settings), open_engine(settings.database_url)
    try:
        with engine.connect() as connection:
            named = examination.named_content(connection, _LOOKED_FOR)
    finally:
        engine.dispose()
    missing = [digest for digest in named if not blobs.has(digest)]
    if missing:
        text = f"{len(missing)} of {len(named)} files of the pool are not there, the first: {missing[0]}"
        advice = "is the folder mounted, is --blobs right? Else restore them from a backup"
        yield Finding(level=Level.BAD, about="content", text=text, advice=advice)
    else:
        yield Finding(
            level=Level.OK, about="content", text=f"{len(named)} files of the pool were looked for and found"
        )
    if damaged := blobs.set_aside_count():
        text = f"{damaged} files were found damaged and set aside"
        yield Finding(level=Level.BAD, about="content", text=text, advice="restore them; and see to that disk")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"
