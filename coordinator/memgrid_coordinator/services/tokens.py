"""Bearer tokens that need no table: short-lived ones for hosts, and the first one, which is the owner's."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from memgrid.errors import TokenExpiredError, TokenRequiredError
from memgrid.units import AccountId, HostId, SessionId
from memgrid_coordinator.records import ANONYMOUS, Caller, Role

_KEY_BYTES = 32
ACCESS = "access."
"""How tokens begin that owners give away; `services/access.py` knows them."""
BOOTSTRAP = "operator.token"
"""The name under which the first token, which every grid has, does what is done with it."""


class Tokens:
    """Issues and reads tokens. They survive a restart, because the key does; they die with the key."""

    def __init__(self, keys: Path) -> None:
        self._key = load_or_create_secret(keys / "token.key")
        self.operator_token = "operator." + load_or_create_secret(keys / "operator.secret").hex()
        _write_private(keys / "operator.token", self.operator_token.encode() + b"\n")

    def issue(self, host_id: HostId, account_id: AccountId, session_id: SessionId, expires_at: datetime) -> str:
        """A token for one session of one host."""
        claims = [host_id, account_id, session_id, int(expires_at.timestamp())]
        body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
        return f"host.{body}.{self._seal(body)}"

    def read(self, token: str | None, now: datetime) -> Caller:
        """Who a token stands for; nobody in particular without one. Raises when it is false or too old."""
        if not token:
            return ANONYMOUS
        if not token.isascii():
            raise TokenRequiredError("this token is not this grid's; log in")
        if token.startswith("operator."):
            if hmac.compare_digest(token.encode(), self.operator_token.encode()):
                return Caller(role=Role.OWNER, name=BOOTSTRAP)
            raise TokenRequiredError("this token is not this grid's; see keys/operator.token on its server")
        return self._read_host(token, now)

    def _read_host(self, token: str, now: datetime) -> Caller:
        kind, _, rest = token.partition(".")
        body, _, seal = rest.partition(".")
        if kind != "host" or not hmac.compare_digest(seal.encode(), self._seal(body).encode()):
            raise TokenRequiredError("this token is not this grid's; log in")
        try:
            host_id, account_id, session_id, expires = json.loads(base64.urlsafe_b64decode(body))
        except (ValueError, binascii.Error):
            raise TokenRequiredError("this token is not this grid's; log in") from None
        if datetime.fromtimestamp(expires, UTC) <= now:
            raise TokenExpiredError("the token has expired; log in again")
        return Caller(
            role=Role.VOLUNTEER,
            host_id=HostId(host_id),
            account_id=AccountId(account_id),
            session_id=SessionId(session_id),
        )

    def _seal(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()


def load_or_create_secret(path: Path) -> bytes:
    """Random bytes kept in a file that only its owner can read; made at the first call."""
    if not path.exists():
        _write_private(path, secrets.token_bytes(_KEY_BYTES))
    return path.read_bytes()


def _write_private(path: Path, content: bytes) -> None:
    """Replace a file whole, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(path.name + ".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
