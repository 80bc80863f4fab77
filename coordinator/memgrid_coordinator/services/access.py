"""Tokens with roles: owners give them, take them back, and read what was done with them."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import digest_of
from memgrid.errors import InvalidError, NotAllowedError, TokenExpiredError, TokenRequiredError, UnknownIdError
from memgrid_coordinator.policy import roles
from memgrid_coordinator.records import AccessToken, Act, Caller, Role
from memgrid_coordinator.services.tokens import ACCESS, BOOTSTRAP
from memgrid_coordinator.store import audit_log, tokens
from memgrid_coordinator.store.engine import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")
_SECRET_BYTES = 32


class Access:
    """What was given is 256 random bits; what is kept is their digest."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(self, caller: Caller, name: str, role: Role, lives: timedelta | None) -> str:
        """A new token; it can't be shown again. Raises InvalidError."""
        roles.check(caller, Role.OWNER, "giving tokens")
        if role not in roles.GIVEN:
            raise InvalidError(f"--role: expected {', '.join(sorted(roles.GIVEN))}, found {role}")
        if _NAME.fullmatch(name) is None or name == BOOTSTRAP:
            raise InvalidError(f"name: expected 1 to 64 letters, digits, spaces and . _ @ -, found {name[:80]!r}")
        secret, now = ACCESS + secrets.token_hex(_SECRET_BYTES), self._clock.now()
        token = AccessToken(
            token_id=secrets.token_hex(16),
            name=name,
            role=role,
            created_at=now,
            expires_at=None if lives is None else now + lives,
            revoked_at=None,
        )

        def step(connection: Connection) -> None:
            if tokens.named(connection, name) is not None:
                raise InvalidError(f"name: there is or was a token {name!r}; the audit log must know them apart")
            tokens.add(connection, token, digest_of(secret.encode()))
            until = "" if token.expires_at is None else f" until {token.expires_at:%Y-%m-%d %H:%M} UTC"
            audit_log.note(connection, caller, "token_create", name, now, detail=f"{role}{until}")

        await self._store.write(step)
        return secret

    async def revoke(self, caller: Caller, name: str) -> None:
        """Take a token back; whoever holds it is refused from the next call on. Raises UnknownIdError."""
        roles.check(caller, Role.OWNER, "revoking tokens")
        now = self._clock.now()

        def step(connection: Connection) -> None:
            token = tokens.named(connection, name)
            if token is None:
                raise UnknownIdError(f"there is no token {name[:80]!r}; see `memgrid coordinator token list`")
            if tokens.revoke(connection, token.token_id, now):
                audit_log.note(connection, caller, "token_revoke", name, now)

        await self._store.write(step)

    async def all(self, caller: Caller) -> list[AccessToken]:
        """Newest first, with those that ended."""
        roles.check(caller, Role.OWNER, "listing tokens")
        return await self._store.read(tokens.newest)

    async def acts(self, caller: Caller, limit: int) -> list[Act]:
        """The audit log, newest first."""
        roles.check(caller, Role.OWNER, "reading the audit log")
        return await self._store.read(lambda connection: audit_log.newest(connection, limit))

    async def identify(self, secret: str) -> Caller:
        """Whom a token stands for; asked anew at every call, so that a revoked one is worth nothing at once.

        Raises TokenRequiredError, TokenExpiredError, NotAllowedError (revoked).
        """
        digest = digest_of(secret.encode())
        token = await self._store.read(lambda connection: tokens.of_digest(connection, digest))
        if token is None:
            raise TokenRequiredError("this token is not this grid's; ask its owner for one")
        if token.revoked_at is not None:
            raise NotAllowedError(f"the token {token.name!r} was revoked; ask the grid's owner for another")
        if not token.is_valid_at(self._clock.now()):
            raise TokenExpiredError(f"the token {token.name!r} has expired; ask the grid's owner for another")
        return Caller(role=token.role, name=token.name)
