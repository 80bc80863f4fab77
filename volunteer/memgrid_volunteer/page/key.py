"""What opens the page: a port and a secret, kept in the home so that a bookmark or an open tab outlives a restart."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

PAGE_FILE = "page.json"
TICKET_FOR = timedelta(minutes=1)
_SECRET_LENGTH = 43
_DIGITS_MAX = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class PageKey:
    """`port` is 0 before the page was ever served."""

    port: int
    secret: str
    is_open: bool = False
    """Whether somebody answers there, as far as whoever did so last could say."""

    @property
    def url(self) -> str:
        """The address with the secret in it: who opens it once is let in from then on."""
        return f"http://127.0.0.1:{self.port}/?key={self.secret}"

    @property
    def cookie_name(self) -> str:
        # Browsers send a cookie to every port of a host: two volunteers of one machine must not take each other's.
        return f"memgrid_{self.port}"

    @property
    def cookie(self) -> str:
        """What a browser keeps; the secret itself can't be told from it."""
        return self._derived("cookie")

    @property
    def csrf(self) -> str:
        """What the page's own script sends with every change, and no other site's can know."""
        return self._derived("csrf")

    def ticket_url(self, now: datetime) -> str:
        """The address for who starts a browser: other users of the machine can read with what it was started."""
        expires = int((now + TICKET_FOR).timestamp())
        return f"http://127.0.0.1:{self.port}/?ticket={expires}.{self._derived(f'ticket until {expires}')}"

    def opens(self, shown: str) -> bool:
        return hmac.compare_digest(self.secret.encode(), shown.encode(errors="replace"))

    def is_ticket(self, shown: str, now: datetime) -> bool:
        """Whether it is one of ours that has not expired."""
        expires, _, _ = shown.partition(".")
        if not expires.isascii() or not expires.isdigit() or len(expires) > _DIGITS_MAX:
            return False
        wanted = f"{expires}.{self._derived(f'ticket until {int(expires)}')}"
        return int(expires) > now.timestamp() and hmac.compare_digest(wanted.encode(), shown.encode(errors="replace"))

    def is_cookie(self, shown: str) -> bool:
        return hmac.compare_digest(self.cookie.encode(), shown.encode(errors="replace"))

    def is_csrf(self, shown: str) -> bool:
        return hmac.compare_digest(self.csrf.encode(), shown.encode(errors="replace"))

    def _derived(self, purpose: str) -> str:
        return hmac.new(self.secret.encode(), f"{purpose} of port {self.port}".encode(), hashlib.sha256).hexdigest()


def read_key(home: Path) -> PageKey | None:
    """The key of the page that was served last; None when there is none, or it can't be read."""
    try:
        value = json.loads((home / PAGE_FILE).read_text())
        port, secret = value["port"], value["secret"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(port, int) or not isinstance(secret, str) or len(secret) < _SECRET_LENGTH:
        return None
    return PageKey(port=port, secret=secret, is_open=value.get("is_open") is True)


def new_key(port: int) -> PageKey:
    return PageKey(port=port, secret=secrets.token_urlsafe(32))


def write_key(home: Path, key: PageKey) -> None:
    """Nobody but the owner may read it, not even for the moment in which it is written."""
    making = home / f".{PAGE_FILE}-{secrets.token_hex(4)}"
    handle = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(key), file)
    making.replace(home / PAGE_FILE)
