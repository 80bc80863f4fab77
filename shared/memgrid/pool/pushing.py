"""One blob on its way up, in pieces; OCI distribution v1.1, "Pushing a blob in chunks"."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx

from memgrid.digest import Digest
from memgrid.errors import InternalError, InvalidError, UnknownIdError
from memgrid.pool.patient import PatientClient

_PIECE_BYTES = 8 << 20


class Upload:
    """`send_rest` may be called again after it failed, and goes on behind what has arrived."""

    def __init__(
        self,
        client: PatientClient,
        repository: str,
        digest: Digest,
        size_bytes: int,
        open_at: Callable[[int], BinaryIO],
        progress: Callable[[int], None],
    ) -> None:
        self._client = client
        self._repository = repository
        self._digest = digest
        self._size_bytes = size_bytes
        self._open_at = open_at
        self._progress = progress
        self._location: str | None = None
        self.sent_bytes = 0

    def send_rest(self) -> None:
        location, rest = self._find_place(), b""
        if self._size_bytes <= _PIECE_BYTES:
            rest = self._read_piece()
        while not rest and self.sent_bytes < self._size_bytes:
            location = self._send_piece(location)
        joiner = "&" if "?" in location else "?"
        headers = {"content-type": "application/octet-stream"} if rest else None
        with self._client.stream("PUT", f"{location}{joiner}digest={self._digest}", headers, rest or None):
            self._progress(len(rest))

    def _find_place(self) -> str:
        """Where to go on: behind what the registry says has arrived, or at a new upload."""
        if self._location is not None and self._size_bytes > _PIECE_BYTES:
            try:
                with self._client.stream("GET", self._location) as response:
                    location = self._note(response)
                if self.sent_bytes:
                    return location
            except UnknownIdError:
                self._progress(-self.sent_bytes)
        with self._client.stream("POST", f"/v2/{self._repository}/blobs/uploads/") as response:
            self.sent_bytes = 0
            self._location = _location(response, None)
            return self._location

    def _send_piece(self, location: str) -> str:
        piece = self._read_piece()
        headers = {
            "content-range": f"{self.sent_bytes}-{self.sent_bytes + len(piece) - 1}",
            "content-type": "application/octet-stream",
        }
        with self._client.stream("PATCH", location, headers, piece) as response:
            return self._note(response)

    def _read_piece(self) -> bytes:
        wanted_bytes = min(_PIECE_BYTES, self._size_bytes - self.sent_bytes)
        with self._open_at(self.sent_bytes) as file:
            piece = file.read(wanted_bytes)
        if len(piece) != wanted_bytes:
            raise InvalidError(f"{self._repository}: the content of {self._digest} has become shorter")
        return piece

    def _note(self, response: httpx.Response) -> str:
        """Take down how much has arrived and where the next piece goes."""
        arrived_bytes = _arrived_bytes(response)
        self._progress(arrived_bytes - self.sent_bytes)
        self.sent_bytes = arrived_bytes
        self._location = _location(response, self._location)
        return self._location


def _arrived_bytes(response: httpx.Response) -> int:
    """`Range: 0-<last byte>`. Nothing is told as `0-0` too, so one byte counts as nothing."""
    last = response.headers.get("range", "").rpartition("-")[2]
    return int(last) + 1 if last.isdigit() and int(last) > 0 else 0


def _location(response: httpx.Response, known: str | None) -> str:
    """A Location as a path on this very server: an upload is never sent elsewhere."""
    location: str | None = response.headers.get("location", known)
    if location is None:
        raise InternalError("the registry opened an upload without saying where")
    parts = urlsplit(location)
    return parts.path + (f"?{parts.query}" if parts.query else "")
