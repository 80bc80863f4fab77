"""A volunteer's key in a file that only a passphrase opens; and an identity on its way to another machine."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from memgrid.errors import InvalidError
from memgrid_volunteer.home import Home, Membership, Place
from memgrid_volunteer.owner.files import read_whole, write_whole
from memgrid_volunteer.places import KEY_FILE, MEMBERSHIP_FILE, MOVED_FILE, TEAM_FILE

FORMAT = "memgrid.key.v1"
PASSPHRASE_CHARS_MIN = 10
_KEY_BYTES, _SALT_BYTES, _NONCE_BYTES = 32, 16, 12
_SCRYPT_LOG_N, _SCRYPT_R, _SCRYPT_P = 17, 8, 1
"""128 MiB and a third of a second for each guess. Source: RFC 7914; OWASP's advice for scrypt."""
_SCRYPT_LOG_N_MAX = 20
_FILE_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What a file holds: the key, and when a whole identity moves, the grid that knows it and what it kept of it."""

    key: bytes
    membership: Membership | None = None
    team: dict[str, Any] | None = None
    made_at: datetime

    @property
    def public_key(self) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.key).public_key().public_bytes_raw()


def seal(sealed: Sealed, passphrase: str, *, log_n: int = _SCRYPT_LOG_N) -> bytes:
    """The file's content. Source: scrypt (RFC 7914) makes the key of AES-256-GCM; the head is bound to the body.

    >>> from datetime import UTC
    >>> made = Sealed(key=bytes(32), made_at=datetime(2026, 3, 1, tzinfo=UTC))
    >>> unseal(seal(made, "ten or more", log_n=4), "ten or more") == made
    True
    """
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    head = {
        "format": FORMAT,
        "log_n": log_n,
        "r": _SCRYPT_R,
        "p": _SCRYPT_P,
        "salt": salt.hex(),
        "nonce": nonce.hex(),
    }
    value = {
        "key": sealed.key.hex(),
        "membership": None if sealed.membership is None else asdict(sealed.membership),
        "team": sealed.team,
        "made_at": sealed.made_at.isoformat(),
    }
    cipher = AESGCM(_derive(passphrase, salt, log_n))
    body = cipher.encrypt(nonce, json.dumps(value).encode(), _bound(head))
    return json.dumps({**head, "body": base64.b64encode(body).decode()}, indent=1).encode() + b"\n"


def unseal(content: bytes, passphrase: str) -> Sealed:
    """The inverse; raises InvalidError when it is no such file, or the passphrase is another."""
    try:
        head = json.loads(content)
        body = base64.b64decode(head.pop("body"), validate=True)
        salt, nonce, log_n = bytes.fromhex(head["salt"]), bytes.fromhex(head["nonce"]), int(head["log_n"])
        if head["format"] != FORMAT or not 1 <= log_n <= _SCRYPT_LOG_N_MAX or len(nonce) != _NONCE_BYTES:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidError(f"not a key file of memgrid: expected {FORMAT}") from None
    try:
        opened = AESGCM(_derive(passphrase, salt, log_n)).decrypt(nonce, body, _bound(head))
    except InvalidTag:
        raise InvalidError("the passphrase is not that of this file, or the file is damaged") from None
    value = json.loads(opened)
    membership = value["membership"]
    return Sealed(
        key=bytes.fromhex(value["key"]),
        membership=None if membership is None else Membership(**membership),
        team=value["team"],
        made_at=datetime.fromisoformat(value["made_at"]),
    )


def place_of(home: Home, grid: str | None) -> Place:
    """Where the key lies that is meant: that of a grid, or the only one. Raises InvalidError."""
    return home.find(grid) if grid is not None or home.places() else home


def back_up(place: Place, file: Path, passphrase: str, now: datetime) -> Sealed:
    """Write a grid's key alone; joining from another machine with it makes a second host of the same account."""
    sealed = Sealed(key=_key_of(place), made_at=now)
    _write_new(file, seal(sealed, _strong(passphrase)))
    return sealed


def move(home: Home, file: Path, passphrase: str, now: datetime, *, grid: str | None = None) -> Sealed:
    """Write a grid's key and membership, and let this machine be that host no more.

    Raises InvalidError; then nothing changed.

    The key stays here, for the account may go on with another label.
    """
    place = place_of(home, grid)
    membership = place.membership()
    with home.lock():
        sealed = Sealed(key=_key_of(place), membership=membership, team=_team_of(place), made_at=now)
        _write_new(file, seal(sealed, _strong(passphrase)))
        # Only now: whatever happens before, this machine is still the host.
        write_whole(place.folder / MOVED_FILE, {"label": membership.label, "at": now.isoformat()})
        (place.folder / MEMBERSHIP_FILE).unlink()
    return sealed


def restore(home: Home, file: Path, passphrase: str, *, grid: str = "", is_replacing: bool = False) -> Sealed:
    """Put a key, or a whole identity, into a home; raises InvalidError where another one lives there.

    A key alone is for the grid of that address, which need not have been joined; without, for the first.
    `is_replacing`: a key that nothing here depends on may give way; it is kept beside, under its own name.
    """
    sealed = unseal(_read(file), passphrase)
    home.make()
    url = grid if sealed.membership is None else sealed.membership.url
    place = home.place_for(url) if url else home
    with home.lock():
        _check_free(place, sealed, is_replacing=is_replacing)
        place.make_place()
        path = place.folder / KEY_FILE
        if path.exists() and path.read_bytes() != sealed.key:
            path.rename(place.folder / f"{KEY_FILE}.before-{sealed.public_key.hex()[:12]}")
        if not path.exists():
            _write_new(path, sealed.key)
        if sealed.team is not None:
            write_whole(place.folder / TEAM_FILE, sealed.team)
        if sealed.membership is not None:
            place.join(sealed.membership)
            (place.folder / MOVED_FILE).unlink(missing_ok=True)
    return sealed


def check_label(place: Place, label: str) -> None:
    """Raises InvalidError when the host of that label has moved away from here: there must not be two of it."""
    moved = read_whole(place.folder / MOVED_FILE) or {}
    if moved.get("label") == label:
        raise InvalidError(
            f"the host {label!r} was moved from here to another machine; join with another --label, and this machine"
            " is a second host of the same account"
        )


def _check_free(place: Place, sealed: Sealed, *, is_replacing: bool) -> None:
    path = place.folder / KEY_FILE
    is_same_key = path.exists() and path.read_bytes() == sealed.key
    if place.has_joined and not (is_same_key and sealed.membership in (None, place.membership())):
        raise InvalidError(f"{place.folder}: has joined a grid; leave it first, or use another --home")
    if path.exists() and not is_same_key and not is_replacing:
        raise InvalidError(f"{path}: there is another key; --replace puts it aside")


def _key_of(place: Place) -> bytes:
    path = place.folder / KEY_FILE
    if not path.is_file():
        raise InvalidError(f"{place.folder}: there is no key yet; joining a grid makes one")
    content = path.read_bytes()
    if len(content) != _KEY_BYTES:
        raise InvalidError(f"{path}: damaged: {len(content)} bytes, expected {_KEY_BYTES}")
    return content


def _team_of(place: Place) -> dict[str, Any] | None:
    return read_whole(place.folder / TEAM_FILE)


def _strong(passphrase: str) -> str:
    if len(passphrase) < PASSPHRASE_CHARS_MIN:
        raise InvalidError(
            f"passphrase: at least {PASSPHRASE_CHARS_MIN} characters: whoever finds the file may try many"
        )
    return passphrase


def _derive(passphrase: str, salt: bytes, log_n: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << log_n, r=_SCRYPT_R, p=_SCRYPT_P).derive(passphrase.encode())


def _bound(head: dict[str, Any]) -> bytes:
    return json.dumps(head, sort_keys=True).encode()


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        raise InvalidError(f"{file}: there is no such file") from None


def _write_new(path: Path, content: bytes) -> None:
    """A file that is its owner's alone, on disk before anything else happens; never over another."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidError(f"{path}: is there already; choose another name") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
