"""The certificate of both planes: the owner's own, or one made at the first start for clients to pin."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from memgrid.clock import Clock
from memgrid.endpoint import CERTIFICATE_NAME, fingerprint_of
from memgrid.errors import InvalidError
from memgrid_coordinator.settings import Settings

_VALID = timedelta(days=3650)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A chain and its key, and the fingerprint to pin; no fingerprint when the world knows the issuer."""

    chain: Path
    key: Path
    fingerprint: str | None

    def expires_at(self) -> datetime:
        """When it runs out; raises InvalidError for what is no certificate."""
        try:
            return x509.load_pem_x509_certificate(self.chain.read_bytes()).not_valid_after_utc
        except ValueError as error:
            raise InvalidError(f"{self.chain}: expected a certificate chain as PEM: {error}") from None

    def context(self) -> ssl.SSLContext:
        """For the HTTP plane."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.chain, self.key)
        return context


def certificate_for(settings: Settings, clock: Clock) -> Certificate:
    """The configured certificate, or the self-made one of the data folder."""
    if (settings.certificate is None) != (settings.certificate_key is None):
        raise InvalidError("--certificate and --certificate-key: expected both or neither")
    if settings.certificate is not None and settings.certificate_key is not None:
        for path in (settings.certificate, settings.certificate_key):
            if not path.is_file():
                raise InvalidError(f"{path}: no such file")
        return _valid(Certificate(chain=settings.certificate, key=settings.certificate_key, fingerprint=None), clock)
    chain, key = settings.keys / "tls.crt", settings.keys / "tls.key"
    if not (chain.exists() and key.exists()):
        _make(chain, key, [name for name in (settings.host, settings.public_name) if name], clock)
    return _valid(Certificate(chain=chain, key=key, fingerprint=fingerprint_of(chain.read_text())), clock)


def _valid(certificate: Certificate, clock: Clock) -> Certificate:
    """Nobody would connect to an expired one: better said here than by every client."""
    expires_at = certificate.expires_at()
    if expires_at > clock.now():
        return certificate
    own = "; without it and its key a new one is made, and volunteers join again"
    raise InvalidError(
        f"{certificate.chain}: the certificate ran out on {expires_at:%Y-%m-%d}: renew it"
        + (own if certificate.fingerprint is not None else "")
    )


def _make(chain: Path, key: Path, names: list[str], clock: Clock) -> None:
    """A self-signed certificate on P-256 for these names and the one that pinning clients ask for."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CERTIFICATE_NAME)])
    now = clock.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    key_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key_pem)
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _alternatives(names: list[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = [x509.DNSName(CERTIFICATE_NAME), x509.DNSName("localhost")]
    for name in dict.fromkeys([*names, "127.0.0.1", "::1"]):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found
