"""From one URL to everything needed to talk to a grid, and to it alone."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from memgrid.errors import InvalidError, UnavailableError, UntrustedGridError
from memgrid.grids import GridTrust, TrustedGrid, memgrid_home

CERTIFICATE_NAME = "memgrid.grid"
"""A name in every self-made certificate, so that gRPC has one to check."""
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_DESCRIPTION_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GridEndpoint:
    """A grid that has been asked who it is, and whose certificate was checked.

    `certificate_pem` is the one pinned certificate; None where the machine's authorities vouch for the grid.
    """

    url: str
    name: str
    version: str
    grpc_target: str
    grid_key: bytes
    enrolment: str
    max_blob_bytes: int
    certificate_pem: str | None

    @property
    def is_encrypted(self) -> bool:
        return self.url.startswith("https://")

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(urlsplit(self.url).hostname or "")

    @property
    def fingerprint(self) -> str | None:
        """The pinned certificate's sha256, in hex."""
        return None if self.certificate_pem is None else fingerprint_of(self.certificate_pem)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridUrl:
    """A grid's address as people write it: `https://host:port`, perhaps with `#sha256=<hex>`.

    >>> GridUrl.parse("https://grid.example/#sha256=" + "ab" * 32).base
    'https://grid.example'
    """

    base: str
    host: str
    pin: str | None

    @staticmethod
    def parse(url: str, *, insecure: bool = False) -> GridUrl:
        """Raises InvalidError; plain http is for this machine itself, or for who asks for it."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidError(f"grid URL {url!r}: {error}") from None
        if parts.scheme not in ("https", "http") or not host or parts.path.strip("/") or parts.query:
            raise InvalidError(f"grid URL: expected https://host:port, found {url!r}")
        if parts.scheme == "http" and not insecure and not _is_loopback(host):
            raise InvalidError(f"grid URL: expected https, found {url!r}; plain http is for loopback only")
        pin = _pin_of(parts.fragment, url)
        address = f"[{host}]" if ":" in host else host
        return GridUrl(base=f"{parts.scheme}://{address}" + (f":{port}" if port else ""), host=address, pin=pin)


def discover(url: str, *, home: Path | None = None, insecure: bool = False) -> GridEndpoint:
    """Ask the grid at `url` who it is, having made sure it is the one meant; remembers what it saw.

    Raises UntrustedGridError when the certificate is neither pinned, nor remembered, nor vouched for by the
    machine's authorities, or when certificate or key are not the remembered ones; UnavailableError when nobody
    answers; InvalidError when what answers is no grid.
    """
    wanted = GridUrl.parse(url, insecure=insecure)
    trust = GridTrust(memgrid_home() if home is None else home)
    known = trust.find(wanted.base)
    certificate = _certificate_for(wanted, known)
    description = _describe(wanted, certificate)
    endpoint = endpoint_of(wanted, certificate, description)
    if known is not None and wanted.pin is None and known.grid_key != endpoint.grid_key:
        raise UntrustedGridError(
            f"{wanted.base}: the grid's key has changed since the last visit; if that is meant to be, remove"
            f" the entry from {trust.path}"
        )
    trust.remember(TrustedGrid(url=wanted.base, certificate_pem=certificate, grid_key=endpoint.grid_key))
    return endpoint


def http_client(endpoint: GridEndpoint, token: str | None = None) -> httpx.Client:
    """A client of the data plane: `client.get("/v1/grid")`."""
    return httpx.Client(**_client_settings(endpoint.url, endpoint.certificate_pem, token))


def async_http_client(endpoint: GridEndpoint, token: str | None = None) -> httpx.AsyncClient:
    """As `http_client`, for asyncio."""
    return httpx.AsyncClient(**_client_settings(endpoint.url, endpoint.certificate_pem, token))


def fingerprint_of(certificate_pem: str) -> str:
    """The sha256 of a certificate's DER bytes, in hex."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem)).hexdigest()


def _pin_of(fragment: str, url: str) -> str | None:
    if not fragment:
        return None
    name, _, value = fragment.partition("=")
    digits = value.replace(":", "").lower()
    if name != "sha256" or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise InvalidError(f"grid URL: expected #sha256=<64 hex digits>, found {url!r}")
    return digits


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _certificate_for(wanted: GridUrl, known: TrustedGrid | None) -> str | None:
    """The certificate to accept; None: whatever the machine's authorities accept."""
    if wanted.base.startswith("http://"):
        if wanted.pin is not None:
            raise InvalidError("grid URL: a fingerprint needs https")
        return None
    remembered = None if known is None else known.certificate_pem
    if wanted.pin is None:
        return remembered
    if remembered is not None and fingerprint_of(remembered) == wanted.pin:
        return remembered
    shown = _shown_certificate(wanted.base)
    if fingerprint_of(shown) != wanted.pin:
        raise UntrustedGridError(
            f"{wanted.base} shows certificate sha256={fingerprint_of(shown)}, not the pinned {wanted.pin}"
        )
    return shown


def _shown_certificate(base: str) -> str:
    """The certificate a server shows, believed in no way yet."""
    anything = ssl.create_default_context()
    anything.check_hostname = False
    anything.verify_mode = ssl.CERT_NONE
    try:
        with (
            httpx.Client(verify=anything, timeout=_TIMEOUT, trust_env=_uses_proxy(base)) as client,
            client.stream("GET", f"{base}/v1/grid") as response,
        ):
            connection = response.extensions["network_stream"].get_extra_info("ssl_object")
            return ssl.DER_cert_to_PEM_cert(connection.getpeercert(True))
    except httpx.TransportError as error:
        raise UnavailableError(f"{base} does not answer: {error}") from None


def _describe(wanted: GridUrl, certificate: str | None) -> bytes:
    try:
        with (
            httpx.Client(**_client_settings(wanted.base, certificate, None)) as client,
            client.stream("GET", "/v1/grid") as response,
        ):
            if response.status_code != 200:
                raise InvalidError(f"{wanted.base} is no grid: /v1/grid answers {response.status_code}")
            content = b""
            for block in response.iter_bytes():
                content += block
                if len(content) > _DESCRIPTION_BYTES_MAX:
                    raise InvalidError(f"{wanted.base} is no grid: /v1/grid is too long")
            return content
    except httpx.TransportError as error:
        if not _is_certificate_error(error):
            raise UnavailableError(f"{wanted.base} does not answer: {error}") from None
    shown = fingerprint_of(_shown_certificate(wanted.base))
    if certificate is not None:
        raise UntrustedGridError(
            f"{wanted.base}: the certificate has changed since the last visit, it is now sha256={shown};"
            f" if that is meant to be, use {wanted.base}#sha256={shown}"
        )
    raise UntrustedGridError(
        f"{wanted.base}: nobody this machine knows vouches for certificate sha256={shown}; compare it with what"
        f" the grid's owner published, then use {wanted.base}#sha256={shown}"
    )


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def endpoint_of(wanted: GridUrl, certificate: str | None, description: bytes) -> GridEndpoint:
    try:
        value = json.loads(description)
        key = bytes.fromhex(value["grid_key"])
        port = int(value["grpc_port"])
        if len(key) != 32 or not 0 < port < 65_536:
            raise ValueError("key or port out of range")
        return GridEndpoint(
            url=wanted.base,
            name=_plain(value["name"]),
            version=_plain(value["version"]),
            grpc_target=f"{wanted.host}:{port}",
            grid_key=key,
            enrolment=_plain(value["enrolment"]),
            max_blob_bytes=int(value["max_blob_bytes"]),
            certificate_pem=certificate,
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidError(f"{wanted.base} is no grid: /v1/grid: {type(error).__name__}: {error}") from None


def _plain(value: object) -> str:
    """Words of a grid that people will see in their terminals."""
    text = str(value)[:200]
    if not text.isprintable():
        raise ValueError(f"expected plain text, found {text[:80]!a}")
    return text


def _client_settings(base: str, certificate: str | None, token: str | None) -> dict[str, Any]:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return {
        "base_url": base,
        "verify": _context(certificate),
        "headers": headers,
        "timeout": _TIMEOUT,
        "trust_env": _uses_proxy(base),
    }


def _uses_proxy(base: str) -> bool:
    return not _is_loopback(urlsplit(base).hostname or "")


def _context(certificate: str | None) -> ssl.SSLContext:
    if certificate is None:
        return ssl.create_default_context()
    context = ssl.create_default_context(cadata=certificate)
    # The exact certificate is pinned: its name adds nothing, and it may have been signed by somebody else.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
