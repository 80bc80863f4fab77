"""Tokens that owners gave away, by digest."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from memgrid.digest import Digest
from memgrid_coordinator.records import AccessToken, Role
from memgrid_coordinator.store.tables import tokens


def add(connection: Connection, token: AccessToken, digest: Digest) -> None:
    connection.execute(
        insert(tokens).values(
            token_id=token.token_id,
            name=token.name,
            role=token.role,
            digest=digest,
            created_at=token.created_at,
            expires_at=token.expires_at,
        )
    )


def of_digest(connection: Connection, digest: Digest) -> AccessToken | None:
    row = connection.execute(_OF_DIGEST, {"wanted": digest}).one_or_none()
    return None if row is None else _token(row)


def named(connection: Connection, name: str) -> AccessToken | None:
    row = connection.execute(select(tokens).where(tokens.c.name == name)).one_or_none()
    return None if row is None else _token(row)


def newest(connection: Connection) -> list[AccessToken]:
    query = select(tokens).order_by(tokens.c.created_at.desc(), tokens.c.name)
    return [_token(row) for row in connection.execute(query)]


def revoke(connection: Connection, token_id: str, now: datetime) -> bool:
    """False when it was revoked before."""
    revoked = connection.execute(
        update(tokens).where(tokens.c.token_id == token_id, tokens.c.revoked_at.is_(None)).values(revoked_at=now)
    )
    return revoked.rowcount == 1


_OF_DIGEST = select(tokens).where(tokens.c.digest == bindparam("wanted"))


def _token(row: Any) -> AccessToken:
    return AccessToken(
        token_id=row.token_id,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
