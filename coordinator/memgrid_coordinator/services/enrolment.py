"""Who may take part: challenges, enrolment, log-in, and whom a token stands for."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.enrolment import NONCE_BYTES, Challenge, EnrolAsk, Enrolment, Session
from memgrid.errors import (
    BadChallengeError,
    BadSignatureError,
    InviteRequiredError,
    NotAllowedError,
    UnknownHostError,
)
from memgrid.log import get_logger
from memgrid.signing import ENROL_TYPE, LOGIN_TYPE, SignedBody
from memgrid.units import AccountId, HostId, SessionId
from memgrid.wire import enrol_from_body, log_in_from_body
from memgrid_coordinator.policy.crowd import LaneName
from memgrid_coordinator.policy.deadlines import first_guess
from memgrid_coordinator.records import Caller, Event
from memgrid_coordinator.services.access import Access
from memgrid_coordinator.services.door import Door
from memgrid_coordinator.services.inviting import invite_digest
from memgrid_coordinator.services.tokens import ACCESS, Tokens
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import bans, events, hosts
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
CHALLENGES_MAX = 10_000
"""Unanswered challenges kept at once; the oldest give way, and whoever held one asks again."""


class EnrolmentService:
    """The door through which volunteers come in."""

    def __init__(
        self, *, store: Store, settings: Settings, clock: Clock, tokens: Tokens, door: Door, new_id: Callable[[], str]
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._tokens = tokens
        self._door = door
        self._new_id = new_id
        self._access = Access(store, clock)
        self._challenges: dict[bytes, datetime] = {}

    async def identify(self, token: str | None) -> Caller:
        """Whom a bearer token stands for; raises TokenRequiredError, TokenExpiredError or NotAllowedError."""
        if token is not None and token.startswith(ACCESS):
            return await self._access.identify(token)
        return self._tokens.read(token, self._clock.now())

    def get_challenge(self, ticket: str = "") -> Challenge:
        """A nonce to sign, good once; BusyError while a crowd is before the door: come again with the ticket."""
        self._door.knock(ticket)
        now = self._clock.now()
        while self._challenges and (
            len(self._challenges) >= CHALLENGES_MAX or next(iter(self._challenges.values())) <= now
        ):
            del self._challenges[next(iter(self._challenges))]
        challenge = Challenge(nonce=secrets.token_bytes(NONCE_BYTES), expires_at=now + self._settings.challenge_ttl)
        self._challenges[challenge.nonce] = challenge.expires_at
        return challenge

    async def enrol(self, signed: SignedBody) -> Enrolment:
        """Make a host known; the same key and label again is the same host."""
        async with self._door.place(LaneName.DOOR):
            signed.verify(ENROL_TYPE)
            ask = enrol_from_body(signed.body)
            self.answer(ask.nonce)
            now = self._clock.now()
            return await self._store.write(lambda connection: self._enrol(connection, signed.public_key, ask, now))

    async def log_in(self, signed: SignedBody, network: str = "") -> Session:
        """Begin a session; it ends the host's earlier one. `network` is where the call comes from."""
        async with self._door.place(LaneName.DOOR):
            return await self._log_in(signed, network)

    async def _log_in(self, signed: SignedBody, network: str) -> Session:
        signed.verify(LOGIN_TYPE)
        ask = log_in_from_body(signed.body)
        self.answer(ask.nonce)
        now = self._clock.now()
        session_id = SessionId(self._new_id())

        def step(connection: Connection) -> AccountId:
            host = hosts.get_host(connection, ask.host_id)
            if host is None:
                raise UnknownHostError(f"host {ask.host_id} is not enrolled here; join first")
            if host.public_key != signed.public_key:
                raise BadSignatureError(f"host {ask.host_id} belongs to another key")
            refuse_banned(connection, host.account_id)
            hosts.begin_session(connection, ask.host_id, session_id, ask.facts, network, now)
            return host.account_id

        account_id = await self._store.write(step)
        expires_at = now + self._settings.token_ttl
        token = self._tokens.issue(ask.host_id, account_id, session_id, expires_at)
        return Session(session_id=session_id, token=token, expires_at=expires_at)

    def answer(self, nonce: bytes) -> None:
        """Use a challenge up; raises BadChallengeError when it is none of ours, or was used, or is too old."""
        expires_at = self._challenges.pop(nonce, None)
        if expires_at is None or expires_at <= self._clock.now():
            raise BadChallengeError("the challenge is unknown, used or too old; ask for a new one")

    def _enrol(self, connection: Connection, public_key: bytes, ask: EnrolAsk, now: datetime) -> Enrolment:
        account_id = hosts.account_of(connection, public_key)
        if account_id is not None:
            refuse_banned(connection, account_id)
        else:
            if self._settings.invite_only and not hosts.use_invite(connection, invite_digest(ask.invite_code)):
                raise InviteRequiredError("this grid takes volunteers by invitation; join with --invite CODE")
            account_id = AccountId(self._new_id())
            hosts.add_account(connection, account_id, public_key, now)
        host_id = hosts.host_of_label(connection, account_id, ask.host_label)
        if host_id is None:
            host_id = HostId(self._new_id())
            hosts.add_host(
                connection,
                host_id,
                account_id=account_id,
                label=ask.host_label,
                facts=ask.facts,
                flops_per_s=first_guess(tuple(device.kind for device in ask.facts.devices)),
                now=now,
            )
            detail = (
                f"{ask.host_label}: {ask.facts.os} {ask.facts.arch}, {', '.join(d.name for d in ask.facts.devices)}"
            )
            events.append(connection, [Event(at=now, name="host_enrolled", host_id=host_id, detail=detail)])
            log.info("host enrolled", host_id=host_id, account_id=account_id, label=ask.host_label)
        return Enrolment(account_id=account_id, host_id=host_id)


def refuse_banned(connection: Connection, account_id: AccountId) -> None:
    """Raises NotAllowedError for an account that was shut out."""
    if (reason := bans.reason_of(connection, account_id)) is not None:
        raise NotAllowedError(f"this account was banned by the grid's owner: {reason}")
