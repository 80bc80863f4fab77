"""The coordinator as methods: enrol once, log in when needed, sync, leave."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc.aio

from memgrid.channel import TICKET_KEY, open_channel
from memgrid.clock import Clock
from memgrid.digest import digest_of
from memgrid.endpoint import GridEndpoint, discover
from memgrid.enrolment import Challenge, EnrolAsk, Enrolment, LogInAsk, Session
from memgrid.errors import (
    BusyError,
    SessionReplacedError,
    StaleSequenceError,
    TokenExpiredError,
    TokenRequiredError,
    UnavailableError,
)
from memgrid.log import get_logger
from memgrid.signing import ENROL_TYPE, LOGIN_TYPE, REPORTS_TYPE, SignedBody, SigningKey
from memgrid.units import (
    NO_WISHES,
    HeldLease,
    HostFacts,
    HostId,
    LeaseId,
    Release,
    ReportClaim,
    SyncAnswer,
    SyncAsk,
    Wishes,
)
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.v1 import volunteers_pb2_grpc as pb_grpc
from memgrid.wire import (
    challenge_from_message,
    enrol_to_body,
    enrolment_from_message,
    log_in_to_body,
    reports_to_body,
    session_from_message,
    signed_to_message,
    sync_answer_from_message,
    sync_ask_to_message,
)

CALL_LIMIT_S = 30.0
_RENEW_BEFORE = timedelta(minutes=1)
_GHOST_S = 120.0
"""A nonce is good for a minute: a log-in that was not answered may be carried out so long after."""
_SESSION_ENDED = (TokenExpiredError, TokenRequiredError, StaleSequenceError)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What one Sync brings; `reports` with their sketches, in the order they are to be answered."""

    held: tuple[HeldLease, ...] = ()
    awaiting: tuple[LeaseId, ...] = ()
    reports: tuple[tuple[ReportClaim, bytes], ...] = ()
    released: tuple[Release, ...] = ()
    want: int = 0
    wait: timedelta = timedelta(0)
    wishes: Wishes = NO_WISHES


async def enrol(
    url: str,
    *,
    home: Path | None,
    key: SigningKey,
    label: str,
    facts: HostFacts,
    invite_code: str,
    ticket: str = "",
) -> tuple[GridEndpoint, Enrolment]:
    """Make this host known to a grid; the same key and label again give the same host.

    Raises BusyError while a crowd is before its door; `ticket` is what that error brought.
    """
    endpoint = await asyncio.to_thread(discover, url, home=home)
    channel = open_channel(endpoint, lambda: None)
    try:
        stub = pb_grpc.VolunteersStub(channel)
        challenge = await get_challenge(stub, ticket)
        ask = EnrolAsk(nonce=challenge.nonce, host_label=label, facts=facts, invite_code=invite_code)
        signed = key.sign(ENROL_TYPE, enrol_to_body(ask))
        message = await stub.Enrol(signed_to_message(signed), timeout=CALL_LIMIT_S)
        return endpoint, enrolment_from_message(message)
    finally:
        await channel.close()


class CoordinatorSession:
    """One host's line to its coordinator; made anew by itself after every break.

    Every method raises UnavailableError while nobody answers, and BusyError when too many ask at once; calling again
    is all it takes.
    """

    def __init__(
        self, url: str, *, home: Path | None, key: SigningKey, host_id: HostId, facts: HostFacts, clock: Clock
    ) -> None:
        self._url = url
        self._home = home
        self._key = key
        self._host_id = host_id
        self._facts = facts
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._session: Session | None = None
        self._renew_at_s = 0.0
        self._ghost_until_s = 0.0
        self._is_replaced = False
        self._ticket = ""
        self._sequence = 0

    @property
    def token(self) -> str | None:
        return None if self._session is None else self._session.token

    async def sync(self, parcel: Parcel) -> SyncAnswer:
        """One exchange, logged in first where needed. May be cancelled: the next one makes up for it."""
        session = await self._logged_in()
        try:
            return await self._sync(session, parcel)
        except _SESSION_ENDED:
            self._session = None
            return await self._sync(await self._logged_in(), parcel)
        except SessionReplacedError:
            self._session = None
            if self._clock.monotonic_s() < self._ghost_until_s:
                # A log-in of our own whose answer was lost, and that was carried out late.
                self._ghost_until_s = 0.0
                return await self._sync(await self._logged_in(), parcel)
            self._is_replaced = True
            raise self._replaced() from None
        except UnavailableError:
            await self.close()
            raise

    async def leave(self) -> None:
        """Give everything back and end the session."""
        await self._logged_in()
        stub = await self._stub()
        await stub.Leave(pb.LeaveRequest(), timeout=CALL_LIMIT_S)
        self._session = None

    def describe(self, facts: HostFacts) -> None:
        """What the grid is told of this host from the next log-in on."""
        self._facts = facts

    async def begin_anew(self) -> None:
        """After a sleep or a jump of the clock: no connection and no token is worth trying."""
        self._session = None
        await self.close()

    async def close(self) -> None:
        """Hang up; the next call dials again, and asks the grid anew where its control plane is."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _sync(self, session: Session, parcel: Parcel) -> SyncAnswer:
        self._sequence += 1
        ask = SyncAsk(
            sequence=self._sequence,
            held=parcel.held,
            awaiting=parcel.awaiting,
            reports=(),
            sketches={digest_of(sketch): sketch for _, sketch in parcel.reports},
            released=parcel.released,
            want=parcel.want,
            wait=parcel.wait,
            wishes=parcel.wishes,
        )
        message = sync_ask_to_message(ask, self._signed(session, parcel))
        stub = await self._stub()
        answer = await stub.Sync(message, timeout=parcel.wait.total_seconds() + CALL_LIMIT_S)
        return sync_answer_from_message(answer)

    def _signed(self, session: Session, parcel: Parcel) -> SignedBody | None:
        if not parcel.reports:
            return None
        body = reports_to_body(
            host_id=self._host_id,
            session_id=session.session_id,
            sequence=self._sequence,
            reports=[claim for claim, _ in parcel.reports],
        )
        return self._key.sign(REPORTS_TYPE, body)

    def _replaced(self) -> SessionReplacedError:
        return SessionReplacedError(
            f"another volunteer has logged in as host {self._host_id}, so this one stops; two of them need a folder"
            " each: memgrid volunteer join URL --home FOLDER"
        )

    async def _logged_in(self) -> Session:
        if self._is_replaced:
            # Two processes with one identity would throw each other out without end.
            raise self._replaced()
        if self._session is None or self._clock.monotonic_s() >= self._renew_at_s:
            try:
                await self._log_in()
            except BusyError as busy:
                self._ticket = busy.ticket
                raise
            except UnavailableError:
                self._ghost_until_s = self._clock.monotonic_s() + _GHOST_S
                await self.close()
                raise
        assert self._session is not None
        return self._session

    async def _log_in(self) -> None:
        stub = await self._stub()
        challenge = await get_challenge(stub, self._ticket)
        ask = LogInAsk(nonce=challenge.nonce, host_id=self._host_id, facts=self._facts)
        signed = self._key.sign(LOGIN_TYPE, log_in_to_body(ask))
        message = await stub.LogIn(signed_to_message(signed), timeout=CALL_LIMIT_S)
        self._session = session_from_message(message)
        # A clock that is wrong must not make us log in at every call: the grid says it when a token is too old.
        life = max(self._session.expires_at - self._clock.now() - _RENEW_BEFORE, _RENEW_BEFORE)
        self._renew_at_s = self._clock.monotonic_s() + life.total_seconds()
        self._sequence, self._ticket = 0, ""
        log.debug("logged in", session_id=self._session.session_id)

    async def _stub(self) -> pb_grpc.VolunteersAsyncStub:
        if self._channel is None:
            endpoint = await asyncio.to_thread(discover, self._url, home=self._home)
            self._channel = open_channel(endpoint, lambda: self.token)
        stub: pb_grpc.VolunteersAsyncStub = pb_grpc.VolunteersStub(self._channel)
        return stub


async def get_challenge(stub: pb_grpc.VolunteersAsyncStub, ticket: str) -> Challenge:
    """A nonce to sign; raises BusyError while a crowd is before the door."""
    metadata = ((TICKET_KEY, ticket),) if ticket else None
    message = await stub.GetChallenge(pb.GetChallengeRequest(), timeout=CALL_LIMIT_S, metadata=metadata)
    return challenge_from_message(message)
