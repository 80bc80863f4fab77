"""The page of the HTTP plane, from its routes."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

from manual.markdown import code, first_paragraph, table
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.web.server import WebServices, build_app

_HEAD = """\
# HTTP

The data plane, port 7070: pages for people, JSON behind them, the pool as an OCI registry (distribution API 1.1),
health and metrics. A token goes as `Authorization: Bearer …`; registry clients get theirs at `/v2/token`. Cubes and
`models/*` can be read by everybody; `sources/*` belong to operators, and unit inputs to enrolled volunteers.
Volunteers can upload only what was ordered from them. Errors of `/v2/` are JSON as the distribution specification
has it.

"""
_MEANS = {
    "GET /v1/grid": "Name, version, gRPC port, the key that signs cubes, how one enrols.",
    "GET /v1/cubes": "Search: `q` (words), `base`, `kind`, `limit`.",
    "GET /metrics": "Every [series](series.md), for Prometheus.",
    "GET /healthz": "200 while the process lives.",
    "GET /readyz": "200 while it takes work; 503 with a reason while it drains or can't.",
    "GET /v2/_catalog": "Names of repositories, a page at a time (`n`, `last`).",
    "GET /v2/{name}/tags/list": "Tags of a repository, a page at a time.",
    "GET /v2/{name}/manifests/{reference}": "A manifest, by tag or digest.",
    "PUT /v2/{name}/manifests/{reference}": "Publish a manifest whose blobs are here.",
    "DELETE /v2/{name}/manifests/{reference}": "Take a tag or a manifest out of the pool.",
    "GET /v2/{name}/blobs/{digest}": "Content by digest; Range is understood.",
    "GET /v2/{name}/blobs/uploads/{upload_id}": "How far an upload has come.",
    "PATCH /v2/{name}/blobs/uploads/{upload_id}": "The next bytes of an upload.",
    "DELETE /v2/{name}/blobs/uploads/{upload_id}": "Give an upload up.",
    "GET /": "The grid at a glance, for people.",
    "GET /campaigns": "Campaigns, for people.",
    "GET /campaigns/{campaign_id}": "One campaign, for people.",
    "GET /cubes": "Cubes and their search, for people.",
    "GET /cubes/{reference}": "One cube, for people.",
    "GET /leaderboard": "Who has computed how much, volunteers or teams, for people.",
    "GET /volunteers": "Where the leaderboard was; leads there.",
    "GET /join": "How to join, for people.",
    "GET /static/{name}": "Style and script of the pages; the hash in a name changes with the content.",
    "GET /favicon.ico": "The pages' icon.",
    "GET /v1/overview": "The grid at a glance.",
    "GET /v1/campaigns": "Campaigns.",
    "GET /v1/campaigns/{campaign_id}": "One campaign.",
    "GET /v1/cubes/{reference}": "One cube: manifest, quality, price tag.",
    "GET /v1/leaderboard": "Who has computed how much, page by page.",
    "GET /v1/units": "How units stand and which cubes they went into: `keys`, up to 50 with commas between.",
    "GET /v2/": "That this is a registry; a refusal here tells clients how to bring a token.",
    "GET /v2/token": "The caller's own token, once it was checked, or nobody's.",
}


def page() -> str:
    """Markdown."""
    rows = [(code(call), means or "") for call, means in calls().items()]
    return _HEAD + table(("call", "means"), rows)


def calls() -> dict[str, str]:
    """Every call and what it means: what its handler says of itself, or the table above. Empty: nobody says it."""
    found = {}
    for route in build_app(_services()).router.routes():
        if route.method != "HEAD" and route.resource is not None:
            call = f"{route.method} {_plain(route.resource.canonical)}"
            own = first_paragraph(getattr(route.handler, "__doc__", None))
            found[call] = _MEANS.get(call) or own.removeprefix(f"`{call}`: ")
    return dict(sorted(found.items(), key=lambda item: (item[0].partition(" ")[2], item[0])))


def _plain(path: str) -> str:
    return path.replace("{name:.+}", "{name}").replace(":.+}", "}")


def _services() -> WebServices:
    """Routes are only looked at, so nothing has to stand behind them."""
    nothing: dict[str, Any] = dict.fromkeys(each.name for each in fields(WebServices))
    return cast(WebServices, SimpleNamespace(**{**nothing, "metrics": Metrics()}))
