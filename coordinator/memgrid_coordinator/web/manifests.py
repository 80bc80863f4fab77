"""Manifests, tags, referrers and the catalogue; OCI distribution v1.1, "Pull", "Push" and "Content discovery"."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from memgrid.clock import Clock
from memgrid.cube.oci import MANIFEST_BYTES_MAX, OCI_INDEX_TYPE
from memgrid_coordinator.policy.manifests import parse_manifest
from memgrid_coordinator.records import PoolManifest
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.web.bodies import Pace, no_continue, read_whole
from memgrid_coordinator.web.identity import CALLER
from memgrid_coordinator.web.requests import digest_in, next_page, page_of, repository_of


class ManifestRoutes:
    """Handlers of `/v2/<name>/manifests/`, `tags/list`, `referrers/` and `/v2/_catalog`."""

    def __init__(self, publishing: Publishing, clock: Clock, pace: Pace) -> None:
        self._publishing = publishing
        self._clock = clock
        self._pace = pace

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        one = "/v2/{name:.+}/manifests/{reference}"
        return (
            web.get("/v2/_catalog", self.catalog),
            web.get("/v2/{name:.+}/tags/list", self.tags),
            web.get("/v2/{name:.+}/referrers/{digest}", self.referrers),
            web.get(one, self.get),
            web.put(one, self.put, expect_handler=no_continue),
            web.delete(one, self.delete),
        )

    async def get(self, request: web.Request) -> web.Response:
        name, reference = repository_of(request), request.match_info["reference"]
        found = await self._publishing.find_manifest(request[CALLER], name, reference)
        headers = {
            "Docker-Content-Digest": found.digest,
            "ETag": f'"{found.digest}"',
            "Content-Type": found.media_type,
        }
        return web.Response(body=found.content, headers=headers)

    async def put(self, request: web.Request) -> web.Response:
        name, reference = repository_of(request), request.match_info["reference"]
        self._publishing.admit_manifest(request[CALLER], name)
        content = await read_whole(request, MANIFEST_BYTES_MAX, self._pace, self._clock)
        stored = await self._publishing.put_manifest(request[CALLER], name, reference, content, request.content_type)
        headers = {"Location": f"/v2/{name}/manifests/{stored.digest}", "Docker-Content-Digest": stored.digest}
        if stored.subject is not None:
            headers["OCI-Subject"] = stored.subject
        return web.Response(status=201, headers=headers)

    async def delete(self, request: web.Request) -> web.Response:
        name, reference = repository_of(request), request.match_info["reference"]
        await self._publishing.remove_manifest(request[CALLER], name, reference)
        return web.Response(status=202)

    async def tags(self, request: web.Request) -> web.Response:
        name, (after, limit) = repository_of(request), page_of(request)
        tags = await self._publishing.tags(request[CALLER], name, after=after, limit=limit)
        return web.json_response({"name": name, "tags": tags}, headers=next_page(request, tags, limit))

    async def catalog(self, request: web.Request) -> web.Response:
        after, limit = page_of(request)
        names = await self._publishing.repositories(request[CALLER], after=after, limit=limit)
        return web.json_response({"repositories": names}, headers=next_page(request, names, limit))

    async def referrers(self, request: web.Request) -> web.Response:
        """An index of what is about a manifest; empty for one that nobody speaks of, even one that isn't here."""
        name, subject = repository_of(request), digest_in(request.match_info["digest"])
        found = await self._publishing.referrers(request[CALLER], name, subject)
        wanted = request.query.get("artifactType")
        entries = [_descriptor(each) for each in found if wanted in (None, each.artifact_type)]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": entries}
        headers = {} if wanted is None else {"OCI-Filters-Applied": "artifactType"}
        return web.json_response(index, content_type=OCI_INDEX_TYPE, headers=headers)


def _descriptor(manifest: PoolManifest) -> dict[str, object]:
    annotations = parse_manifest(manifest.content, manifest.media_type).annotations
    return {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": len(manifest.content),
        "artifactType": manifest.artifact_type,
        **({"annotations": annotations} if annotations else {}),
    }
