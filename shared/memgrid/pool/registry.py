"""Speak the OCI distribution API: manifests and blobs, going on after a cut where it was cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from memgrid.cube.oci import MANIFEST_BYTES_MAX, OCI_MANIFEST_TYPE
from memgrid.digest import Digest, digest_of
from memgrid.errors import DigestMismatchError, UnknownIdError
from memgrid.pool.patient import PatientClient, TryAgainError
from memgrid.pool.pushing import Upload

Progress = Callable[[int], None]
"""Told how many more bytes have come or gone; fewer than none when some have to come again."""

_PROBE_BYTES = 4 << 20


class Registry:
    """One grid's repositories over HTTP."""

    def __init__(self, client: PatientClient) -> None:
        self._client = client

    def manifest(self, repository: str, reference: str) -> tuple[Digest, bytes]:
        """A manifest and its digest; raises UnknownCubeError, and DigestMismatchError when asked for by digest."""
        path = f"/v2/{repository}/manifests/{reference}"
        content = self._client.read(path, MANIFEST_BYTES_MAX, accept=OCI_MANIFEST_TYPE)
        digest = digest_of(content)
        if ":" in reference and reference != digest:
            raise DigestMismatchError(f"{repository}: asked for manifest {reference}, was sent {digest}")
        return digest, content

    def read_blob(self, repository: str, digest: Digest, bytes_max: int) -> bytes:
        """A small blob whole, checked."""
        content = self._client.read(_blob_path(repository, digest), bytes_max)
        if digest_of(content) != digest:
            raise DigestMismatchError(f"{repository}: blob {digest} has other content than its address says")
        return content

    def fetch_blob(self, repository: str, digest: Digest, size_bytes: int, partial: Path, progress: Progress) -> None:
        """Bring the missing rest of a blob into `partial`; its content is for the caller to check."""
        path = _blob_path(repository, digest)
        self._client.persist(
            lambda: self._fetch_rest(path, size_bytes, partial, progress), path, lambda: _size_of(partial)
        )

    def probe_line(self, repository: str, digest: Digest, size_bytes: int, seconds: Callable[[], float]) -> float:
        """Bytes per second at which the beginning of a blob comes in, the round trip included."""
        path, last = _blob_path(repository, digest), min(size_bytes, _PROBE_BYTES) - 1

        def measure() -> float:
            started_s = seconds()
            with self._client.stream("GET", path, {"range": f"bytes=0-{last}"}) as response:
                received_bytes = sum(len(block) for block in response.iter_raw())
            return received_bytes / max(seconds() - started_s, 1e-6)

        return self._client.persist(measure, path)

    def has_blob(self, repository: str, digest: Digest) -> bool:
        path = _blob_path(repository, digest)

        def ask() -> bool:
            try:
                with self._client.stream("HEAD", path):
                    return True
            except UnknownIdError:
                return False

        return self._client.persist(ask, path)

    def push_blob(
        self,
        repository: str,
        digest: Digest,
        size_bytes: int,
        open_at: Callable[[int], BinaryIO],
        progress: Progress,
    ) -> None:
        """Send a blob unless it is there; `open_at` opens its content at an offset, again after a cut."""
        if self.has_blob(repository, digest):
            progress(size_bytes)
            return
        upload = Upload(self._client, repository, digest, size_bytes, open_at, progress)
        self._client.persist(upload.send_rest, f"{repository}: blob {digest}", lambda: upload.sent_bytes)

    def push_manifest(self, repository: str, reference: str, content: bytes, media_type: str) -> Digest:
        path = f"/v2/{repository}/manifests/{reference}"

        def send() -> None:
            with self._client.stream("PUT", path, {"content-type": media_type}, content):
                pass

        self._client.persist(send, path)
        return digest_of(content)

    def _fetch_rest(self, path: str, size_bytes: int, partial: Path, progress: Progress) -> None:
        offset = _size_of(partial)
        if offset > size_bytes:
            partial.unlink()
            offset = 0
        if offset == size_bytes and partial.exists():
            return
        headers = {"accept-encoding": "identity"} | ({"range": f"bytes={offset}-"} if offset else {})
        with self._client.stream("GET", path, headers) as response:
            if offset and response.status_code != 206:
                progress(-offset)  # this server starts again from the beginning
                offset = 0
            with partial.open("r+b" if partial.exists() else "w+b") as file:
                file.seek(offset)
                file.truncate()
                # As the pieces come: a fixed size would hold them back, and lose them when the line is cut.
                for block in response.iter_raw():
                    offset += len(block)
                    if offset > size_bytes:
                        raise DigestMismatchError(f"{path}: more than the {size_bytes} bytes promised")
                    file.write(block)
                    progress(len(block))
        if offset < size_bytes:
            raise TryAgainError(f"ended after {offset} of {size_bytes} bytes")


def _blob_path(repository: str, digest: Digest) -> str:
    return f"/v2/{repository}/blobs/{digest}"


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
