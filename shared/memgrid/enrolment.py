"""What a volunteer and a grid say to each other before any work: challenge, enrolment, log-in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from memgrid.units import AccountId, HostFacts, HostId, SessionId

NONCE_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A nonce to sign once, before `expires_at`."""

    nonce: bytes
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolAsk:
    """The body a new host signs; the key it signs with is the account."""

    nonce: bytes
    host_label: str
    facts: HostFacts
    invite_code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    account_id: AccountId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class LogInAsk:
    """The body a known host signs to get a session."""

    nonce: bytes
    host_id: HostId
    facts: HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A log-in: the token opens both planes until `expires_at`."""

    session_id: SessionId
    token: str
    expires_at: datetime
