"""Invite codes: a grid that takes volunteers by invitation is entered with one."""

from __future__ import annotations

import secrets

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import Digest, digest_of
from memgrid_coordinator.policy import roles
from memgrid_coordinator.records import Caller, Role
from memgrid_coordinator.store import audit_log, hosts
from memgrid_coordinator.store.engine import Store


class Inviting:
    """Makes codes; `enrolment.py` takes them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def invite(self, caller: Caller, uses: int) -> str:
        """A new invite code for so many enrolments; only its digest is kept."""
        roles.check(caller, Role.OWNER, "inviting")
        code, now = secrets.token_urlsafe(12), self._clock.now()

        def step(connection: Connection) -> None:
            hosts.add_invite(connection, invite_digest(code), uses, now)
            # The beginning of the digest names the invite, and tells nobody the code.
            audit_log.note(connection, caller, "invite", invite_digest(code)[:19], now, detail=f"{uses} uses")

        await self._store.write(step)
        return code


def invite_digest(code: str) -> Digest:
    return digest_of(code.encode())
