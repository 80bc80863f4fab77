"""What requests have in common: names, digests, pages and ranges, parsed once and strictly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from aiohttp import web

from memgrid.digest import Digest, parse_digest
from memgrid.errors import InvalidError
from memgrid_coordinator.policy.repositories import parse_repository
from memgrid_coordinator.services.publishing import PAGE_MAX
from memgrid_coordinator.services.uploads import UploadProgress

_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/(?:\d{1,18}|\*))?")
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})-(\d{0,18})\s*")


class Resource(StrEnum):
    """What an address is about; decides the code of an OCI error."""

    BLOB = "blob"
    UPLOAD = "upload"
    MANIFEST = "manifest"
    NAME = "name"


class OciError(Exception):
    """A request that is wrong as HTTP, before any service was asked."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """Part of a content: `count` bytes from `start`."""

    start: int
    count: int


def resource_of(request: web.Request) -> Resource:
    """What the request's address is about."""
    path = request.path
    if "/blobs/uploads/" in path:
        return Resource.UPLOAD
    if "/blobs/" in path:
        return Resource.BLOB
    return Resource.MANIFEST if "/manifests/" in path else Resource.NAME


def repository_of(request: web.Request) -> str:
    """The repository in the address; raises OciError."""
    try:
        return parse_repository(request.match_info["name"])
    except InvalidError as error:
        raise OciError(400, "NAME_INVALID", str(error)) from None


def digest_in(text: str | None) -> Digest:
    """A digest from an address or a query; raises OciError."""
    try:
        return parse_digest(text or "")
    except InvalidError as error:
        raise OciError(400, "DIGEST_INVALID", str(error)) from None


def page_of(request: web.Request) -> tuple[str, int]:
    """Where a page begins (`last`) and how long it is (`n`); raises OciError."""
    text = request.query.get("n", str(PAGE_MAX))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise OciError(400, "PAGINATION_NUMBER_INVALID", f"n: expected a number, found {text[:40]!r}")
    return request.query.get("last", ""), min(int(text), PAGE_MAX)


def next_page(request: web.Request, entries: list[str], limit: int) -> dict[str, str]:
    """The Link header to what follows a full page."""
    if limit == 0 or len(entries) < limit:
        return {}
    return {"Link": f'<{request.path}?n={limit}&last={quote(entries[-1], safe="")}>; rel="next"'}


def requested_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """The part a Range header asks for; None for all of it, which also answers what we can't read.

    Raises OciError 416 when the part begins after the end. Source: RFC 9110, section 14.

    >>> requested_range("bytes=-3", 10)
    ByteRange(start=7, count=3)
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start, end = int(first), min(int(last) + 1 if last else size_bytes, size_bytes)
        if last and int(last) < start:
            return None
    if start >= size_bytes:
        unsatisfied = {"Content-Range": f"bytes */{size_bytes}"}
        raise OciError(416, "SIZE_INVALID", f"the content ends at {size_bytes} bytes", unsatisfied)
    return ByteRange(start=start, count=end - start)


def reaches_end(response: web.StreamResponse, size_bytes: int) -> bool:
    """Whether what was sent goes to the end of a content of that size: the last piece of it, or all."""
    if response.status == 206:
        return response.headers.get("Content-Range", "").endswith(f"-{size_bytes - 1}/{size_bytes}")
    return response.status == 200


def uploaded_range(request: web.Request) -> tuple[int | None, int | None]:
    """Where the body of an upload belongs and how long it is, as far as it says; raises OciError."""
    length = request.content_length
    header = request.headers.get("Content-Range")
    if header is None:
        return None, length
    match = _CONTENT_RANGE.fullmatch(header)
    if match is None:
        raise OciError(400, "BLOB_UPLOAD_INVALID", f"Content-Range: expected 0-99, found {header[:40]!r}")
    start, end = int(match.group(1)), int(match.group(2))
    if end < start or (length is not None and length != end - start + 1):
        raise OciError(400, "SIZE_INVALID", f"Content-Range: {header} does not fit a body of {length} bytes")
    return start, end - start + 1


def upload_headers(progress: UploadProgress) -> dict[str, str]:
    """Where an upload goes on, as OCI says it. A range can't be empty, so that nothing is told as 0-0."""
    return {
        "Location": f"/v2/{progress.repository}/blobs/uploads/{progress.upload_id}",
        "Range": f"0-{max(0, progress.size_bytes - 1)}",
        "Docker-Upload-UUID": progress.upload_id,
    }
