"""What an account has earned, and which team that counts for."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import digest_of
from memgrid.errors import InvalidError, NotAllowedError, UnknownHostError
from memgrid.log import get_logger
from memgrid.signing import TEAM_TYPE, SignedBody
from memgrid.teams import Standing, TeamAsk, likeness, team_name
from memgrid.units import AccountId
from memgrid.wire import team_from_body
from memgrid_coordinator.lifecycle import UnitState
from memgrid_coordinator.metrics import UNIT_KINDS
from memgrid_coordinator.policy import teams as policy
from memgrid_coordinator.policy.crowd import LaneName
from memgrid_coordinator.records import Caller, Role
from memgrid_coordinator.services.door import Door
from memgrid_coordinator.services.enrolment import refuse_banned
from memgrid_coordinator.store import audit_log, credits, hosts, leaderboard, teams
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
_CODE_BYTES = 12


class Teams:
    """Asked by signature rather than by session: a host at work keeps its own."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        door: Door,
        answer: Callable[[bytes], None],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._clock = clock
        self._door = door
        self._answer = answer
        self._new_id = new_id

    async def ask(self, signed: SignedBody) -> Standing:
        """Found, join or leave a team when that is asked for, and tell how the account stands.

        Raises BadSignatureError, BadChallengeError, UnknownHostError, NotAllowedError or InvalidError.
        """
        async with self._door.place(LaneName.DOOR):
            signed.verify(TEAM_TYPE)
            ask = team_from_body(signed.body)
            self._answer(ask.nonce)
            now = self._clock.now()
            if ask.team is None:
                return await self._store.read(lambda connection: self._standing(connection, signed.public_key))
            return await self._store.write(lambda connection: self._change(connection, signed.public_key, ask, now))

    def _change(self, connection: Connection, public_key: bytes, ask: TeamAsk, now: datetime) -> Standing:
        account_id = _account(connection, public_key)
        refuse_banned(connection, account_id)
        code = ""
        if not ask.team:
            verb, named = self._leave(connection, account_id, now)
        elif ask.code:
            verb, named = self._join(connection, account_id, ask.team, ask.code, now)
        else:
            verb, named, code = self._found(connection, account_id, ask.team, now)
        who = Caller(role=Role.VOLUNTEER, account_id=account_id, name=account_id)
        audit_log.note(connection, who, verb, named, now)
        log.info("team changed", account_id=account_id, change=verb, team=named)
        return self._standing(connection, public_key, code=code)

    def _found(self, connection: Connection, account_id: AccountId, text: str, now: datetime) -> tuple[str, str, str]:
        name = team_name(text)
        found = teams.of_likeness(connection, likeness(name))
        if found is not None:
            raise NotAllowedError(
                f"there is a team {found.name!r}, which looks like that; join it with the code that its members have "
                "(--code CODE), or take another name"
            )
        reason = policy.why_not_found(
            results=credits.results(connection, account_id), founded=teams.founded_by(connection, account_id)
        )
        if reason is not None:
            raise NotAllowedError(reason)
        code = secrets.token_urlsafe(_CODE_BYTES)
        team = teams.Team(
            team_id=self._new_id(),
            name=name,
            likeness=likeness(name),
            code_digest=digest_of(code.encode()),
            founded_by=account_id,
            founded_at=now,
        )
        teams.add(connection, team)
        _move(connection, account_id, team.team_id, now)
        return "team_found", name, code

    def _join(
        self, connection: Connection, account_id: AccountId, text: str, code: str, now: datetime
    ) -> tuple[str, str]:
        name = team_name(text)
        team = teams.of_likeness(connection, likeness(name))
        if team is None:
            raise InvalidError(f"there is no team {name!r}; leave out the code to found it")
        if not hmac.compare_digest(team.code_digest, digest_of(code.encode())):
            raise NotAllowedError(f"that is not the code of {team.name!r}; its members know it")
        now_in = teams.of_account(connection, account_id)
        if now_in is None or now_in.team_id != team.team_id:
            _move(connection, account_id, team.team_id, now)
        return "team_join", team.name

    def _leave(self, connection: Connection, account_id: AccountId, now: datetime) -> tuple[str, str]:
        team = teams.of_account(connection, account_id)
        if team is None:
            raise InvalidError("this account is in no team")
        _move(connection, account_id, None, now)
        return "team_leave", team.name

    def _standing(self, connection: Connection, public_key: bytes, *, code: str = "") -> Standing:
        account_id = _account(connection, public_key)
        team = teams.of_account(connection, account_id)
        rank, ranked = leaderboard.rank_of(connection, account_id)
        members = {} if team is None else leaderboard.members_of(connection, [team.team_id])
        escrow_flops, _ = credits.in_escrow(connection, account_id, UnitState.PROVISIONAL, UNIT_KINDS)
        return Standing(
            flops=float(credits.total(connection, account_id)),
            escrow_flops=float(escrow_flops),
            results=credits.results(connection, account_id),
            rank=rank,
            ranked=ranked,
            team="" if team is None else team.name,
            team_members=sum(members.values()),
            team_flops=0.0 if team is None else leaderboard.given_to(connection, team.team_id),
            join_code=code,
        )


def _account(connection: Connection, public_key: bytes) -> AccountId:
    account_id = hosts.account_of(connection, public_key)
    if account_id is None:
        raise UnknownHostError("this key has no account here; join the grid first")
    return account_id


def _move(connection: Connection, account_id: AccountId, team_id: str | None, now: datetime) -> None:
    if not teams.move(connection, account_id, team_id, now, moves_max=policy.MOVES_A_DAY_MAX):
        raise NotAllowedError(
            f"this account has changed its team {policy.MOVES_A_DAY_MAX} times today; try again tomorrow (UTC)"
        )
