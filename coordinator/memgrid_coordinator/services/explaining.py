"""The story of anything that has an id, from the event log."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from memgrid.digest import Digest
from memgrid.errors import AmbiguousIdError, InvalidError, UnknownIdError
from memgrid.units import HostId
from memgrid_coordinator.records import Campaign, Event, Host, Lease, Unit
from memgrid_coordinator.services.vouching import retraction_of, vouched
from memgrid_coordinator.store import campaigns, events, hosts, leases, pool, retractions, trust_records, units
from memgrid_coordinator.store.engine import Store

PREFIX_MIN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event in plain words."""

    event: Event
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    kind: str
    id: str
    summary: str
    lines: tuple[Line, ...]


class Explaining:
    """Answers `memgrid explain ID`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def explain(self, name: str) -> Story:
        """The story of a campaign, unit, lease, host or cube; a unique beginning of its id is enough."""
        prefix = name.strip().removeprefix("sha256:")
        if len(prefix) < PREFIX_MIN:
            raise InvalidError(f"explain {name!r}: expected at least {PREFIX_MIN} characters of an id")
        return await self._store.read(lambda connection: _explain(connection, prefix))


def _explain(connection: Connection, prefix: str) -> Story:
    found: list[Story] = []
    found += [
        _campaign(connection, campaigns.get(connection, one)) for one in campaigns.beginning_with(connection, prefix)
    ]
    found += [_unit(connection, unit) for unit in units.beginning_with(connection, prefix)]
    found += [_lease(connection, lease) for lease in leases.beginning_with(connection, prefix)]
    found += [_host(connection, hosts.get_host(connection, one)) for one in hosts.beginning_with(connection, prefix)]
    named = {
        **dict(retractions.cubes_beginning_with(connection, prefix)),
        **dict(pool.cubes_beginning_with(connection, prefix)),
    }
    found += [_cube(connection, digest, title) for digest, title in named.items()]
    if not found:
        raise UnknownIdError(f"nothing here has an id that begins with {prefix[:80]!r}")
    if len(found) > 1:
        matches = ", ".join(f"{story.kind} {story.id[:16]}" for story in found)
        raise AmbiguousIdError(f"{prefix[:80]!r} is the beginning of several ids: {matches}; give more of it")
    return found[0]


def _campaign(connection: Connection, campaign: Campaign) -> Story:
    done = campaign.units_by_state.get("accepted", 0)
    total = sum(campaign.units_by_state.values())
    rejected = sum(campaign.rejections_by_reason.values())
    summary = (
        f"Campaign {campaign.name} is {campaign.state}: {done} of {total} units accepted, "
        f"{rejected} reports rejected, {sum(1 for d in campaign.documents if d.cube)} cubes published."
    )
    happened = events.of_campaign(connection, campaign.campaign_id)
    return Story(kind="campaign", id=campaign.campaign_id, summary=summary, lines=_tell(connection, happened))


def _unit(connection: Connection, unit: Unit) -> Story:
    held = leases.of_units(connection, [unit.unit_id])[unit.unit_id]
    states = ", ".join(f"{lease.lease_id[:8]} {lease.state}" for lease in held) or "none yet"
    summary = (
        f"Unit {unit.key[:12]} ({unit.kind}, {unit.token_count} tokens) is {unit.state}; "
        f"it needs {unit.min_replicas} agreeing reports. Leases: {states}."
    )
    return Story(
        kind="unit", id=unit.key, summary=summary, lines=_tell(connection, events.of_unit(connection, unit.unit_id))
    )


def _lease(connection: Connection, lease: Lease) -> Story:
    why = f" ({lease.reason.code}{': ' + lease.reason.text if lease.reason.text else ''})" if lease.reason else ""
    summary = (
        f"Lease {lease.lease_id} of unit {lease.unit_key[:12]}, held by host {lease.host_id[:12]}, "
        f"is {lease.state}{why}; its deadline was {lease.deadline_at:%Y-%m-%d %H:%M:%S} UTC."
    )
    happened = [event for event in events.of_unit(connection, lease.unit_id) if event.lease_id == lease.lease_id]
    return Story(kind="lease", id=lease.lease_id, summary=summary, lines=_tell(connection, happened))


def _host(connection: Connection, host: Host | None) -> Story:
    assert host is not None, "its id was just found"
    resting = f", resting until {host.suspended_until:%Y-%m-%d %H:%M:%S} UTC" if host.suspended_until else ""
    summary = (
        f"Host {host.label} of account {host.account_id[:12]}: {host.flops_per_s / 1e9:.1f} GFLOP/s observed, "
        f"{host.recent_faults} rejected reports in a row{resting}. {_trusted(connection, host)}"
    )
    return Story(
        kind="host",
        id=host.host_id,
        summary=summary,
        lines=_tell(connection, events.of_host(connection, host.host_id)),
    )


def _trusted(connection: Connection, host: Host) -> str:
    """What audits have shown of it."""
    records = trust_records.of_host(connection, host.host_id)
    if not records:
        return "Nothing of it was checked yet."
    return " ".join(
        f"{kind}, {numerics_class}: {record.passed} audits passed since its last fault, {record.agreed} results that "
        f"others agree with, {record.faults} faults."
        for (kind, numerics_class), record in records.items()
    )


def _cube(connection: Connection, digest: Digest, title: str) -> Story:
    """The cube itself, then every report and every audit of the units in it, in the order in which they came."""
    behind = vouched(connection, digest)
    told = [f"Cube {title}", retraction_of(connection, digest), "" if behind is None else behind.summary()]
    happened = events.of_cube(connection, digest)
    if behind is not None:
        happened += events.of_units(connection, [unit.unit_id for unit in behind.units], _CHECKS)
        happened.sort(key=lambda event: event.at)
    summary = ". ".join(part for part in told if part) + "."
    return Story(kind="cube", id=digest, summary=summary, lines=_tell(connection, happened))


_CHECKS = (
    "report_received",
    "report_refused",
    "report_agreed",
    "report_disputed",
    "report_rejected",
    "upload_verified",
    "upload_failed",
    "audited",
    "unit_held",
    "unit_accepted",
    "unit_recalled",
)
"""What tells how a result was checked."""


def _tell(connection: Connection, happened: list[Event]) -> tuple[Line, ...]:
    found = units.by_id(connection, {event.unit_id for event in happened if event.unit_id is not None})
    names = {unit_id: f"unit {unit.key[:8]}" for unit_id, unit in found.items()}
    labels = {host_id: _host_name(connection, host_id) for host_id in {event.host_id for event in happened}}
    return tuple(
        Line(event=event, text=_in_words(event, names.get(event.unit_id or 0, ""), labels[event.host_id]))
        for event in happened
    )


def _host_name(connection: Connection, host_id: str | None) -> str:
    host = hosts.get_host(connection, HostId(host_id)) if host_id else None
    return f"host {host.label} ({host.host_id[:8]})" if host else ""


def _in_words(event: Event, unit: str, host: str) -> str:
    lease = f"lease {event.lease_id[:8]}" if event.lease_id else ""
    words = _WORDS.get(event.name, event.name.replace("_", " ")).format(lease=lease, host=host, unit=unit)
    if event.detail:
        words += f" ({event.detail})"
    if event.reason is not None and event.reason.text:
        words += f": {event.reason.text}"
    return words


_WORDS = {
    "campaign_submitted": "the campaign was planned and its units created",
    "campaign_paused": "the operator paused the campaign: nothing more is handed out for it",
    "campaign_resumed": "the operator let the campaign go on",
    "campaign_completed": "every document has its cube; the campaign is complete",
    "campaign_failed": "the campaign ended without some of its cubes",
    "campaign_cancelled": "the operator cancelled the campaign",
    "document_retried": "a document is tried again, because an operator asked for it",
    "document_failed": "a document can't become a cube",
    "units_asked": "what a document needs next was asked of the hosts",
    "work_done": "the grid made something for a document",
    "unit_opened": "the unit was opened to volunteers",
    "unit_agreed": "enough reports agree; now one of them has to upload its output",
    "unit_disputed": "two reports on {unit} differ; where they do, both are computed again",
    "unit_held": "the uploaded output is what was reported; it stands until audits of its host say otherwise",
    "unit_accepted": "the result is final; credit is written",
    "unit_recalled": "the result of {unit} was taken back; it is computed again",
    "unit_closed": "{unit} waits again for the chunk before it",
    "audited": "a part of what {host} computed was computed again",
    "host_suspected": "{host} was near the limit, which counts three times before it is a fault",
    "host_at_fault": "{host} was found to be at fault; trust in it starts again at nothing",
    "fault_forgiven": "a fault of {host} is not held against it",
    "class_suspended": "so much of a numerics class fails that no host is punished for it",
    "class_resumed": "hosts of a numerics class answer for themselves again",
    "cube_retracted": "the cube was taken back",
    "unit_reopened": "the agreement on {unit} fell through; it is open again",
    "unit_failed": "{unit} is given up",
    "unit_lost": "{unit} is computed again if somebody wants it",
    "unit_cancelled": "the unit was withdrawn",
    "lease_granted": "{lease} was granted to {host}",
    "lease_released": "{host} gave {lease} back",
    "lease_expired": "{lease} of {host} ran out",
    "lease_cancelled": "{lease} of {host} was withdrawn",
    "report_received": "{host} reported {lease}",
    "report_refused": "the report of {host} on {unit}, {lease}, was turned down at the door",
    "report_agreed": "the report of {host} agrees",
    "report_disputed": "the report of {host} is looked at",
    "report_rejected": "the report of {host} on {unit} was rejected",
    "report_undecided": "the report of {host} counts again, but no longer for a result",
    "upload_ordered": "{host} was asked to upload its output",
    "upload_received": "the output of {host} arrived",
    "upload_refused": "an upload of {host} was turned down",
    "upload_verified": "the bytes of {host} are what it reported",
    "upload_failed": "the upload of {host} came to nothing",
    "checkpoint_ordered": "{host} was asked for what it has done of {unit}, for other hosts of its account",
    "checkpoint_kept": "what {host} has done of {unit} is kept for other hosts of its account",
    "host_enrolled": "the host enrolled",
    "host_suspended": "the host gets no work for a while",
    "host_banned": "the grid's owner shut the host's account out",
    "host_unbanned": "the grid's owner let the host's account in again",
    "cube_published": "the cube was published",
}
