"""Blobs: down by range, up in resumable pieces; OCI distribution v1.1, "Pulling blobs" and "Pushing blobs"."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from aiohttp import web

from memgrid.clock import Clock
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.repositories import RepositoryKind, kind_of, parse_repository
from memgrid_coordinator.services.publishing import Publishing, StoredBlob
from memgrid_coordinator.services.pulls import Pulls
from memgrid_coordinator.services.travelling import Travelling
from memgrid_coordinator.services.uploads import Uploads
from memgrid_coordinator.web.bodies import Pace, no_continue, read_body
from memgrid_coordinator.web.identity import CALLER
from memgrid_coordinator.web.requests import digest_in, reaches_end, repository_of, upload_headers, uploaded_range
from memgrid_coordinator.web.sending import send_blob


class BlobRoutes:
    """Handlers of everything below `/v2/<name>/blobs/`."""

    def __init__(
        self,
        publishing: Publishing,
        uploads: Uploads,
        travelling: Travelling,
        pulls: Pulls,
        metrics: Metrics,
        clock: Clock,
        pace: Pace,
    ) -> None:
        self._publishing = publishing
        self._uploads = uploads
        self._travelling = travelling
        self._pulls = pulls
        self._metrics = metrics
        self._clock = clock
        self._pace = pace

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        begin, one = "/v2/{name:.+}/blobs/uploads/", "/v2/{name:.+}/blobs/uploads/{upload_id}"
        return (
            web.post(begin, self.begin, expect_handler=no_continue),
            web.get(one, self.progress, allow_head=False),
            web.patch(one, self.append, expect_handler=no_continue),
            web.put(one, self.finish, expect_handler=no_continue),
            web.delete(one, self.cancel),
            web.get("/v2/{name:.+}/blobs/{digest}", self.get),
        )

    async def get(self, request: web.Request) -> web.StreamResponse:
        name, digest = repository_of(request), digest_in(request.match_info["digest"])
        kept = self._travelling if kind_of(name) is RepositoryKind.CHECKPOINTS else self._publishing
        blob = await kept.find_blob(request[CALLER], name, digest)
        response = await send_blob(request, blob, {}, self._pace)
        self._count(name, "down", response.content_length or 0 if request.method == "GET" else 0)
        if request.method == "GET" and reaches_end(response, blob.size_bytes):
            self._pulls.note_sent(name, digest)
        return response

    async def begin(self, request: web.Request) -> web.Response:
        """Mount from another repository, take a whole blob at once, or open an upload."""
        name, caller, query = repository_of(request), request[CALLER], request.query
        if "mount" in query:
            mounted, source = digest_in(query["mount"]), parse_repository(query.get("from", name))
            if await self._publishing.mount_blob(caller, name, mounted, source):
                return _created(name, mounted)
        digest = digest_in(query["digest"]) if "digest" in query else None
        started = await self._uploads.begin(caller, name, digest)
        if isinstance(started, StoredBlob):
            async for _ in read_body(request, self._pace, self._clock):
                pass  # it is here already, but a client reads no answer before it has sent everything
            return _created(name, started.digest)
        if digest is None or not request.can_read_body:
            return web.Response(status=202, headers={**upload_headers(started), "Content-Length": "0"})
        await self._take(request, name, started.upload_id)
        blob = await self._uploads.finish(caller, name, started.upload_id, digest)
        return _created(name, blob.digest)

    async def progress(self, request: web.Request) -> web.Response:
        name, upload_id = repository_of(request), request.match_info["upload_id"]
        progress = await self._uploads.progress(request[CALLER], name, upload_id)
        return web.Response(status=204, headers=upload_headers(progress))

    async def append(self, request: web.Request) -> web.Response:
        name, upload_id = repository_of(request), request.match_info["upload_id"]
        await self._take(request, name, upload_id)
        progress = await self._uploads.progress(request[CALLER], name, upload_id)
        return web.Response(status=202, headers=upload_headers(progress))

    async def finish(self, request: web.Request) -> web.Response:
        """Close an upload; what the request still brings belongs to it."""
        name, upload_id = repository_of(request), request.match_info["upload_id"]
        digest = digest_in(request.query.get("digest"))
        if request.can_read_body:
            await self._take(request, name, upload_id)
        blob = await self._uploads.finish(request[CALLER], name, upload_id, digest)
        return _created(name, blob.digest)

    async def cancel(self, request: web.Request) -> web.Response:
        await self._uploads.cancel(request[CALLER], repository_of(request), request.match_info["upload_id"])
        return web.Response(status=204)

    async def _take(self, request: web.Request, name: str, upload_id: str) -> None:
        """Add the request's body to an upload, if it is admitted."""
        offset, length = uploaded_range(request)
        await self._uploads.admit(request[CALLER], name, upload_id, offset, length)
        pieces = self._counted(name, read_body(request, self._pace, self._clock))
        await self._uploads.append(request[CALLER], name, upload_id, pieces)

    async def _counted(self, name: str, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self._count(name, "up", len(piece))
            yield piece

    def _count(self, name: str, direction: str, size_bytes: int) -> None:
        self._metrics.transferred_bytes.labels(direction, kind_of(name).value).inc(size_bytes)


def _created(name: str, digest: str) -> web.Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return web.Response(status=201, headers=headers)
