"""What `--blobs` may say: a folder, or a bucket of an S3-compatible store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from memgrid.errors import InvalidError

_OPTIONS = ("endpoint", "region", "addressing")


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlace:
    """A bucket of an S3-compatible store; its keys are in the environment, never here."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str = "us-east-1"
    virtual_hosted: bool = False

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_place(text: str) -> Path | BucketPlace:
    """A folder, or `s3://bucket/prefix?endpoint=…&region=…&addressing=path|virtual`; raises InvalidError.

    >>> parse_place("/srv/blobs")
    PosixPath('/srv/blobs')
    >>> place = parse_place("s3://memgrid/blobs?endpoint=http://127.0.0.1:9000")
    >>> place.bucket, place.prefix, place.endpoint
    ('memgrid', 'blobs', 'http://127.0.0.1:9000')
    """
    parts = urlsplit(text)
    if parts.scheme in ("", "file"):
        if not parts.path or parts.netloc:
            raise InvalidError(f"--blobs: expected a folder or s3://bucket/prefix, found {text!r}")
        return Path(unquote(parts.path) if parts.scheme else text)
    if parts.scheme != "s3" or not parts.hostname or parts.fragment:
        raise InvalidError(f"--blobs: expected a folder or s3://bucket/prefix, found {_shown(text)!r}")
    if parts.username is not None or parts.password is not None:
        raise InvalidError("--blobs: keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not in here")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise InvalidError(f"--blobs: expected the options {', '.join(_OPTIONS)}, found {name!r}")
    addressing = options.get("addressing", "path")
    if addressing not in ("path", "virtual"):
        raise InvalidError(f"--blobs: addressing: expected path or virtual, found {addressing!r}")
    endpoint = options.get("endpoint")
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise InvalidError(f"--blobs: endpoint: expected http://… or https://…, found {endpoint!r}")
    return BucketPlace(
        bucket=parts.hostname,
        prefix=parts.path.strip("/"),
        endpoint=endpoint,
        region=options.get("region", "us-east-1"),
        virtual_hosted=addressing == "virtual",
    )


def _shown(text: str) -> str:
    """An address without what could be a password in it."""
    scheme, _, rest = text.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
