"""Who signed which bytes: Ed25519 over the DSSE pre-authentication encoding."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from memgrid.errors import BadSignatureError

ENROL_TYPE = "application/vnd.memgrid.enrol.v1"
LOGIN_TYPE = "application/vnd.memgrid.login.v1"
REPORTS_TYPE = "application/vnd.memgrid.reports.v1"
TEAM_TYPE = "application/vnd.memgrid.team.v1"


def pre_authentication_encoding(body_type: str, body: bytes) -> bytes:
    """What is really signed, so that a body can't be read as one of another type.

    Source: DSSE v1.0.2, section "Signature definition".

    >>> pre_authentication_encoding("text", b"hi")
    b'DSSEv1 4 text 2 hi'
    """
    kind = body_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBody:
    """Bytes, what they are, and whose signature stands below them."""

    type: str
    body: bytes
    public_key: bytes
    signature: bytes

    def verify(self, expected_type: str) -> None:
        """Raises BadSignatureError unless these very bytes were signed, as that type, by `public_key`.

        >>> SigningKey.generate().sign("text", b"hi").verify("text")
        """
        if self.type != expected_type:
            raise BadSignatureError(f"expected a signed {expected_type}, found {self.type[:80]!r}")
        try:
            key = Ed25519PublicKey.from_public_bytes(self.public_key)
            key.verify(self.signature, pre_authentication_encoding(self.type, self.body))
        except (InvalidSignature, ValueError):
            raise BadSignatureError(f"the signature does not belong to this {expected_type}") from None


class SigningKey:
    """A private Ed25519 key and the only thing done with it."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key: bytes = private.public_key().public_bytes_raw()

    @staticmethod
    def generate() -> SigningKey:
        return SigningKey(Ed25519PrivateKey.generate())

    @staticmethod
    def load_or_create(path: Path) -> SigningKey:
        """The key kept in a file of 32 bytes that only its owner can read; made at the first call."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return SigningKey(Ed25519PrivateKey.from_private_bytes(path.read_bytes()))
        key = SigningKey.generate()
        with os.fdopen(handle, "wb") as file:
            file.write(key._private.private_bytes_raw())
            file.flush()
            os.fsync(file.fileno())
        return key

    def sign(self, body_type: str, body: bytes) -> SignedBody:
        signature = self._private.sign(pre_authentication_encoding(body_type, body))
        return SignedBody(type=body_type, body=body, public_key=self.public_key, signature=signature)

    @property
    def private(self) -> Ed25519PrivateKey:
        """For libraries that sign by themselves."""
        return self._private
