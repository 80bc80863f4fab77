"""Make the database of a small grid that of a great one: rows like its own, a million times."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, select

from memgrid.digest import Digest
from memgrid.specs import PrefillSpec, unit_key_of
from memgrid_coordinator.lifecycle import CampaignState, DocumentState, LeaseState, UnitState
from memgrid_coordinator.store import tables
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.dialects import open_engine
from memgrid_coordinator.store.types import to_microseconds

UNITS_A_DOCUMENT = 100
REPLICAS = 2
CAMPAIGNS = 4
HOSTS = 2000
SKETCH_BYTES = 1500
WORKABLE = 5000
"""The next units to be leased, whose tokens are there to be read."""
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """So many units, of which so many are accepted, each with as many leases as replicas."""

    units: int
    accepted: int


def fill(database: Path, blobs: BlobStore, size: Size) -> None:
    """Copy the first unit, document and campaign until there are so many; what is there already stays.

    What is accepted belongs to documents that are published; all else is open and wants its replicas.
    """
    engine = open_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        unit, document, campaign, host, account = (
            dict(connection.execute(select(table).limit(1)).mappings().one())
            for table in (tables.units, tables.documents, tables.campaigns, tables.hosts, tables.accounts)
        )
        connection.rollback()
        now = unit["opened_at"]
        writing = _Writing(connection)
        writing.all(tables.accounts, _accounts(account))
        writing.all(tables.hosts, _hosts(host))
        writing.all(tables.campaigns, _campaigns(campaign))
        writing.all(tables.documents, _documents(document, size))
        writing.all(tables.units, _units(unit, blobs, size))
        writing.all(tables.document_units, _members(size))
        writing.all(tables.leases, _leases(size, now))
    engine.dispose()


class _Writing:
    """Many rows a statement, some thousand a transaction, past everything that would look at each of them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self, table: Table, rows: Iterator[dict[str, Any]]) -> None:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            names = list(some[0])
            columns, marks = ", ".join(names), ", ".join("?" for _ in names)
            given = [tuple(_stored(row[name]) for name in names) for row in some]
            with self._connection.begin():
                said = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"
                self._connection.exec_driver_sql(said, given)


def _stored(value: Any) -> Any:
    return to_microseconds(value) if isinstance(value, datetime) else value


_FIRST = 1000
"""Ids of copies begin here: those of the real grid are lower."""


def _id(number: int) -> int:
    return _FIRST + number


def _accounts(like: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return ({**like, "account_id": f"account-{n}", "public_key": os.urandom(32)} for n in range(HOSTS))


def _hosts(like: dict[str, Any]) -> Iterator[dict[str, Any]]:
    own = {**like, "session_id": None}
    return ({**own, "host_id": f"host-{n}", "account_id": f"account-{n}"} for n in range(HOSTS))


def _campaigns(like: dict[str, Any]) -> Iterator[dict[str, Any]]:
    own = {**like, "state": CampaignState.RUNNING, "ended_at": None}
    return (
        {**own, "campaign_id": f"campaign-{n}", "request_id": f"request-{n}", "name": f"great-{n}"}
        for n in range(CAMPAIGNS)
    )


def _documents(like: dict[str, Any], size: Size) -> Iterator[dict[str, Any]]:
    for number in range(-(-size.units // UNITS_A_DOCUMENT)):
        done = (number + 1) * UNITS_A_DOCUMENT <= size.accepted
        yield {
            **like,
            "document_id": _id(number),
            "campaign_id": f"campaign-{number % CAMPAIGNS}",
            "name": f"document-{number:06d}",
            "state": DocumentState.PUBLISHED if done else DocumentState.RUNNING,
            "cube": f"load/document-{number:06d}:1.0.0" if done else "",
            "cube_digest": _digest(f"cube {number}") if done else None,
        }


def _units(like: dict[str, Any], blobs: BlobStore, size: Size) -> Iterator[dict[str, Any]]:
    spec = PrefillSpec.from_bytes(like["spec"])
    tokens = blobs.read_bytes(spec.tokens)
    fresh = {"vacancies": REPLICAS, "fence": 0, "failures": 0, "settled_at": None, "on_hold": False}
    nothing = {"output_digest": None, "output_bytes": 0, "accepted_lease_id": None}
    for number in range(size.units):
        is_accepted = number < size.accepted
        is_next = size.accepted <= number < size.accepted + WORKABLE
        # Only what is leased soon is ever read: the rest need not have content.
        own = blobs.put_bytes(_varied(tokens, number)) if is_next else _digest(f"tokens {number}")
        content = replace(spec, tokens=Digest(own)).to_bytes()
        result = {"output_digest": _digest(f"output {number}"), "output_bytes": 1 << 20}
        yield {
            **like,
            **fresh,
            **nothing,
            **(result if is_accepted else {}),
            "unit_id": _id(number),
            "key": unit_key_of(content),
            "state": UnitState.ACCEPTED if is_accepted else UnitState.OPEN,
            "spec": content,
            "min_replicas": REPLICAS,
            "vacancies": 0 if is_accepted else REPLICAS,
            "accepted_lease_id": _lease_id(REPLICAS * number) if is_accepted else None,
            "settled_at": like["opened_at"] if is_accepted else None,
        }


def _varied(tokens: bytes, number: int) -> bytes:
    """The same ids but for the last four, six bits of the number each: there is such an id in any vocabulary."""
    digits = (number >> shift & 0x3F for shift in (0, 6, 12, 18))
    return tokens[:-16] + b"".join(digit.to_bytes(4, "little") for digit in digits)


def _members(size: Size) -> Iterator[dict[str, Any]]:
    for number in range(size.units):
        document, position = divmod(number, UNITS_A_DOCUMENT)
        yield {"document_id": _id(document), "position": position, "unit_id": _id(number)}


def _leases(size: Size, now: Any) -> Iterator[dict[str, Any]]:
    outputs = json.dumps([("kv.safetensors", _digest("output"), 1 << 20)])
    facts = json.dumps([256, 1.0, "cpu", "simulated/1", "float32", "0"])
    for number in range(REPLICAS * size.accepted):
        yield {
            "lease_id": _lease_id(number),
            "unit_id": _id(number // REPLICAS),
            "host_id": f"host-{number % HOSTS}",
            "account_id": f"account-{number % HOSTS}",
            "fence": 1 + number % REPLICAS,
            "state": LeaseState.AGREED,
            "granted_at": now,
            "deadline_at": now,
            "reported_at": now,
            "outputs": outputs,
            "sketch": secrets.token_bytes(SKETCH_BYTES),
            "facts": facts,
            "compute_s": 1.0,
            "reason_text": "",
        }


def _lease_id(number: int) -> str:
    """In no order, as random ids are."""
    return hashlib.blake2b(f"lease {number}".encode(), digest_size=16).hexdigest()


def _digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
