"""The pages over HTTP: what they show, what they keep to themselves, and that nothing people named becomes markup."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from memgrid.cube.oci import OCI_MANIFEST_TYPE
from tests.integration.data_plane import DataPlane, manifest_of, running
from tests.integration.test_pool import FACTS

HTML = {"Accept": "text/html,application/xhtml+xml"}
PAGES = ("/", "/campaigns", "/cubes", "/volunteers", "/join")


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with running(tmp_path / "grid") as plane:
        yield plane


@pytest.fixture
async def browser(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client() as client:
        client.headers.update(HTML)
        yield client


async def publish(plane: DataPlane, repository: str = "docs/x", **changed: object) -> None:
    content = repository.encode()
    plane.blobs.put_bytes(content)
    await plane.publishing.publish_cube(
        repository=repository,
        version="1.0",
        tags=[],
        manifest=manifest_of(content),
        media_type=OCI_MANIFEST_TYPE,
        facts=replace(FACTS, **changed),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("path", PAGES)
async def test_an_empty_grid_has_every_page(browser: httpx.AsyncClient, path: str) -> None:
    page = await browser.get(path)
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.text.count("<h1>") == 1


async def test_nothing_that_people_named_becomes_markup(plane: DataPlane, browser: httpx.AsyncClient) -> None:
    await publish(plane, title="<script>alert(1)</script>", licence="'\"><img src=x>", base="<i>")
    for path in ("/", "/cubes", "/cubes?q=%3Cscript%3E&base=%22%3E%3Cimg%3E", "/no<script>such"):
        page = (await browser.get(path)).text
        for raw in ("<script>", "<img", "<i>", "<grid>"):
            assert raw not in page
    assert "docs/x:1.0" in (await browser.get("/")).text


async def test_a_page_brings_nothing_from_elsewhere(browser: httpx.AsyncClient) -> None:
    for path in PAGES:
        page = await browser.get(path)
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert not re.search(r"\sstyle=|\son\w+=|<style", page.text), "the policy would not let it work"
        for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert address.startswith(("/", "#"))


async def test_what_a_page_needs_may_be_kept_for_good(browser: httpx.AsyncClient) -> None:
    page = (await browser.get("/")).text
    for address in set(re.findall(r'"(/static/[^"]+)"', page)):
        kept = await browser.get(address)
        assert kept.status_code == 200
        assert "immutable" in kept.headers["Cache-Control"]
    assert (await browser.get("/static/style.000000000000.css")).status_code == 404
    assert (await browser.get("/static/..%2fassets.py")).status_code == 404


async def test_a_page_that_has_not_changed_is_not_sent_again(browser: httpx.AsyncClient) -> None:
    first = await browser.get("/join")
    again = await browser.get("/join", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_people_get_errors_as_pages_and_machines_as_json(browser: httpx.AsyncClient) -> None:
    for path in ("/no/such/page", "/campaigns/c0ffee", "/cubes/no/such:1.0"):
        page = await browser.get(path)
        assert (page.status_code, "There is nothing here" in page.text) == (404, True)
        assert "errors" in (await browser.get(path, headers={"Accept": "application/json"})).json()
    assert (await browser.get("/v1/campaigns/c0ffee")).json()["errors"][0]["code"] == "NAME_UNKNOWN"
    refused = await browser.post("/campaigns")
    assert (refused.status_code, "GET" in refused.headers["Allow"]) == (405, True)


@pytest.mark.parametrize(
    "path",
    ["/?span=2d", "/campaigns?page=0", "/campaigns?page=x", "/campaigns?page=99999999999", "/campaigns?state=x"],
)
async def test_an_address_that_means_nothing_is_refused(browser: httpx.AsyncClient, path: str) -> None:
    assert (await browser.get(path)).status_code == 400


async def test_a_search_goes_on_page_by_page(plane: DataPlane, browser: httpx.AsyncClient) -> None:
    for number in range(30):
        await publish(
            plane, f"docs/x{number}", title=f"Manual {number}", kind="parameter" if number % 2 else "activation"
        )
    first, second = [(await browser.get("/cubes", params={"page": page})).text for page in (1, 2)]
    assert (first.count("<article"), second.count("<article")) == (24, 6)
    assert "30 cubes" in first and "2 of 2" in second
    found = (await browser.get("/cubes", params={"q": "manual 7"})).text
    assert re.findall(r"docs/x\d+:1.0</p>", found) == ["docs/x27:1.0</p>", "docs/x17:1.0</p>", "docs/x7:1.0</p>"]
    assert (await browser.get("/cubes", params={"kind": "parameter", "q": "manual"})).text.count("<article") == 15
    assert "0 cubes" in (await browser.get("/cubes", params={"q": "100%_\\\0"})).text
