"""How a cube came to be, signed: in-toto statements in DSSE envelopes, Ed25519, one envelope a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from memgrid.cube.manifest import MANIFEST_FILE, PROVENANCE_FILE
from memgrid.digest import canonical_json, digest_of
from memgrid.errors import NotVerifiedError
from memgrid.signing import SigningKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://memgrid.dev/build/activation/v1"
DISTILL_BUILD_TYPE = "https://memgrid.dev/build/distill/v1"
PROVENANCE_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """A statement whose signature held: who says what about how the cube was made."""

    key_id: str
    public_key: bytes
    predicate: Mapping[str, Any]


def key_id_of(public_key: bytes) -> str:
    """How a key is called in envelopes and in trust files: the sha256 of its 32 bytes, in hex."""
    return sha256(public_key).hexdigest()


def slsa_predicate(
    *,
    builder: str,
    parameters: Mapping[str, Any],
    dependencies: Iterable[Mapping[str, Any]],
    started_at: datetime,
    finished_at: datetime,
    facts: Mapping[str, Any],
    build_type: str = BUILD_TYPE,
) -> dict[str, Any]:
    """A SLSA v1 provenance predicate: what was asked, from what, by whom, when, and what was seen on the way.

    `facts` become the by-product `memgrid.facts`: device-seconds, replicas, hosts' keys, the largest distance.
    Source: https://slsa.dev/spec/v1.0/provenance.
    """
    return {
        "buildDefinition": {
            "buildType": build_type,
            "externalParameters": dict(parameters),
            "resolvedDependencies": [dict(dependency) for dependency in dependencies],
        },
        "runDetails": {
            "builder": {"id": builder},
            "metadata": {"startedOn": started_at.isoformat(), "finishedOn": finished_at.isoformat()},
            "byproducts": [{"name": "memgrid.facts", "annotations": dict(facts)}],
        },
    }


def sign_cube(manifest_bytes: bytes, predicate: Mapping[str, Any], key: SigningKey) -> bytes:
    """The content of memcube.intoto.jsonl: one envelope whose statement is about this very manifest.

    >>> key = SigningKey.generate()
    >>> line = sign_cube(b"{}", {"builder": "me"}, key)
    >>> check_provenance(line, b"{}", [key.public_key]).predicate
    {'builder': 'me'}
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": MANIFEST_FILE, "digest": {"sha256": _hex(manifest_bytes)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": dict(predicate),
    }
    envelope = Envelope(canonical_json(statement), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key.private, _library_key(key.public_key)))
    return _line(envelope)


def check_provenance(content: bytes, manifest_bytes: bytes, trusted_keys: Iterable[bytes]) -> Provenance:
    """The first statement about this manifest that a trusted key (32 raw bytes each) has signed.

    Every line must be a well-formed envelope; raises NotVerifiedError.
    """
    keys = {key_id_of(key): key for key in trusted_keys}
    envelopes = [_envelope(line) for line in _lines(content)]
    for envelope in envelopes:
        key_id = next((key_id for key_id in envelope.signatures if key_id in keys), None)
        if key_id is None:
            continue
        try:
            envelope.verify([_library_key(keys[key_id])], 1)
        except VerificationError:
            raise NotVerifiedError(f"{PROVENANCE_FILE}: the signature does not belong to its statement") from None
        return Provenance(key_id=key_id, public_key=keys[key_id], predicate=_predicate(envelope, manifest_bytes))
    signers = sorted({key_id[:16] for envelope in envelopes for key_id in envelope.signatures})
    trusted = ", ".join(key_id[:16] for key_id in sorted(keys)) or "none"
    raise NotVerifiedError(
        f"{PROVENANCE_FILE}: signed by {', '.join(signers) or 'nobody'}, but the trusted keys are {trusted}"
    )


def _predicate(envelope: Envelope, manifest_bytes: bytes) -> dict[str, Any]:
    try:
        statement = json.loads(envelope.payload)
        subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
        kinds = (envelope.payload_type, statement["_type"], statement["predicateType"])
        predicate = dict(statement["predicate"])
    except (ValueError, KeyError, TypeError):
        raise NotVerifiedError(f"{PROVENANCE_FILE}: the signed payload is no in-toto statement") from None
    if kinds != (PAYLOAD_TYPE, STATEMENT_TYPE, PREDICATE_TYPE):
        raise NotVerifiedError(f"{PROVENANCE_FILE}: expected an in-toto statement with SLSA provenance")
    if subjects != {MANIFEST_FILE: _hex(manifest_bytes)}:
        raise NotVerifiedError(f"{MANIFEST_FILE}: not the manifest that was signed")
    return predicate


def _lines(content: bytes) -> list[bytes]:
    if len(content) > PROVENANCE_BYTES_MAX:
        raise NotVerifiedError(f"{PROVENANCE_FILE}: {len(content)} bytes, at most {PROVENANCE_BYTES_MAX} are allowed")
    if not content.endswith(b"\n"):
        raise NotVerifiedError(f"{PROVENANCE_FILE}: truncated")
    return content[:-1].split(b"\n")


def _envelope(line: bytes) -> Envelope:
    try:
        envelope = Envelope.from_dict(json.loads(line))
        written = _line(envelope)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotVerifiedError(f"{PROVENANCE_FILE}: not a DSSE envelope") from None
    # JSON and base64 can say one thing in many ways; with one way only, a changed byte never goes unnoticed.
    if written != line + b"\n":
        raise NotVerifiedError(f"{PROVENANCE_FILE}: not in canonical form")
    return envelope


def _line(envelope: Envelope) -> bytes:
    return canonical_json(envelope.to_dict()) + b"\n"


def _library_key(public_key: bytes) -> SSlibKey:
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public_key), keyid=key_id_of(public_key))


def _hex(content: bytes) -> str:
    return digest_of(content).removeprefix("sha256:")
