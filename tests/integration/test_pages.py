"""The pages over HTTP: what they show, what they keep to themselves, and that nothing people named becomes markup."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Connection, select, update

from memgrid.cube.identity import identity_of_folder
from memgrid.cube.oci import OCI_MANIFEST_TYPE
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.nickname import nickname
from memgrid.teams import likeness
from memgrid.testing import SimulatedGpu
from memgrid.units import AccountId
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import DocumentState
from memgrid_coordinator.store import credits, teams
from memgrid_coordinator.store.tables import accounts, documents, units
from tests.grids import push_model, run_until_ended, running_coordinator, simulated_hosts, submit
from tests.integration.data_plane import DataPlane, manifest_of, running
from tests.integration.test_pool import FACTS
from tests.ledgers import NOW, add_accounts, add_lease, add_unit

HTML = {"Accept": "text/html,application/xhtml+xml"}
PAGES = ("/", "/campaigns", "/cubes", "/leaderboard", "/leaderboard?by=teams&period=week", "/join")


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


async def test_who_comes_to_an_older_address_is_sent_on(browser: httpx.AsyncClient) -> None:
    old = await browser.get("/volunteers")
    assert (old.status_code, old.headers["Location"]) == (301, "/leaderboard")
    icon = await browser.get("/favicon.ico", follow_redirects=True)
    assert (icon.status_code, icon.headers["Content-Type"]) == (200, "image/svg+xml; charset=utf-8")


@pytest.mark.parametrize(
    "path",
    [
        "/?span=2d",
        "/leaderboard?by=hosts",
        "/leaderboard?period=hour",
        "/leaderboard?cursor=-1",
        "/campaigns?page=0",
        "/campaigns?page=x",
        "/campaigns?page=99999999999",
        "/campaigns?state=x",
        "/v1/units",
        f"/v1/units?keys={'ab' * 31}",
        "/v1/units?keys=" + ",".join(["ab" * 32] * 51),
    ],
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


@dataclass
class Worked:
    """A grid that has made two cubes, with a cheat among its hosts."""

    coordinator: Coordinator
    endpoint: GridEndpoint
    http: httpx.AsyncClient
    campaign_id: str
    labels: list[str]

    async def text(self, path: str) -> str:
        page = await self.http.get(path)
        assert page.status_code == 200, page.text
        return " ".join(re.sub(r"<[^>]+>", " ", page.text).split())


@pytest.fixture
async def grid(tmp_path: Path, tiny_model_folder: Path) -> AsyncIterator[Worked]:
    geometry = identity_of_folder(tiny_model_folder).geometry
    async with running_coordinator(tmp_path, name="the test grid") as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        texts = {"manual.txt": "The valve opens at three bar. " * 8, "short.txt": "It closes at two."}
        submission = await submit(coordinator, texts)
        async with simulated_hosts(endpoint, 3) as hosts:
            gpus = [SimulatedGpu(geometry), SimulatedGpu(geometry), SimulatedGpu(geometry, bias=0.2)]
            assert (await hosts[2].sync(want=1)).leases, "the cheat has its hands in before the others begin"
            await run_until_ended(coordinator, submission, dict(zip(hosts, gpus, strict=True)))
            labels = [host.label for host in hosts]
        async with async_http_client(endpoint) as http:
            http.headers.update(HTML)
            yield Worked(coordinator, endpoint, http, submission.campaign.campaign_id, labels)


async def test_pages_tell_what_a_grid_did(grid: Worked) -> None:
    front = await grid.text("/")
    assert "Machines computing 3 " in front and "Cubes in the pool 2 " in front
    assert re.search(r"agreed \d+", front) and "disagreed with the others" in front
    campaign = await grid.text(f"/campaigns/{grid.campaign_id}")
    assert "handbook completed" in campaign and "Cubes 2 of 2" in campaign and "100%" in campaign
    assert "manual.txt" not in campaign, "where a text came from is told by its cube"
    cube = await grid.text("/cubes/handbook/manual:1.0.0")
    assert "Pulled 0 times" in cube and "2 different volunteers agreed on every unit" in cube
    assert "manual.txt" in cube and "CC-BY-4.0" in cube
    assert f"/campaigns/{grid.campaign_id}" in (await grid.http.get("/cubes/handbook/manual:1.0.0")).text


async def test_the_leaderboard_is_the_ledger_and_tells_nobodys_address(grid: Worked) -> None:
    page = (await grid.http.get("/leaderboard")).text
    board = (await grid.http.get("/v1/leaderboard")).json()
    ledger = await grid.coordinator.store.read(
        lambda connection: {account: credits.total(connection, account) for account in hosts_of(connection)}
    )
    given = {line["name"]: line["flops"] for line in board["lines"]}
    assert given == {nickname(account): flops for account, flops in ledger.items() if flops}
    assert [line["rank"] for line in board["lines"]] == [1, 2]
    for name in given:
        assert name in page
    secrets = [*ledger, *grid.labels, "127.0.0.1"]
    assert not any(secret in page or secret in json.dumps(board) for secret in secrets)
    today = (await grid.http.get("/v1/leaderboard?period=day")).json()
    assert today["flops"] == board["flops"] == sum(ledger.values())


async def test_a_board_goes_on_page_by_page_and_shows_teams(grid: Worked) -> None:
    name = "R&D of <Early> Birds"
    flops = await grid.coordinator.store.write(lambda connection: earn(connection, name))
    first = (await grid.http.get("/v1/leaderboard?lines=1")).json()
    assert (first["total"], len(first["lines"]), first["cursor"]) == (3, 1, "1")
    second = (await grid.http.get(f"/v1/leaderboard?lines=2&cursor={first['cursor']}")).json()
    assert [line["rank"] for line in second["lines"]] == [2, 3] and second["cursor"] == ""
    teams = (await grid.http.get("/v1/leaderboard?by=teams")).json()
    assert [(line["name"], line["flops"], line["members"]) for line in teams["lines"]] == [(name, flops, 1)]
    page = (await grid.http.get("/leaderboard?by=teams&period=month")).text
    assert "R&amp;D of &lt;Early&gt; Birds" in page and 'aria-current="true">30 days</a>' in page


def earn(connection: Connection, team: str) -> int:
    """A hundred times what anybody gave so far, by a new account in a new team."""
    flops = 100 * max(credits.total(connection, account) for account in hosts_of(connection))
    account = AccountId("e" * 32)
    add_accounts(connection, [account])
    named = {"name": team, "likeness": likeness(team), "code_digest": "", "founded_by": account}
    teams.add(connection, teams.Team(team_id="t", founded_at=NOW, **named))
    assert teams.move(connection, account, "t", NOW, moves_max=1)
    lease = add_lease(connection, "l", account, add_unit(connection, 99999, flops=flops))
    credits.grant(connection, [(lease, flops)], datetime.now(UTC))
    return flops


def hosts_of(connection: Connection) -> list[AccountId]:
    return [AccountId(found) for found in connection.execute(select(accounts.c.account_id)).scalars()]


async def test_a_cube_is_pulled_when_its_largest_file_was_sent_to_the_end(grid: Worked) -> None:
    async def pulls() -> int:
        await grid.coordinator.pulls.save()
        found: int = (await grid.http.get("/v1/cubes/handbook/manual:1.0.0")).json()["pulls"]
        return found

    cube = (await grid.http.get("/v1/cubes/handbook/manual:1.0.0")).json()["cube"]
    manifest = (await grid.http.get(f"/v2/handbook/manual/manifests/{cube['manifest_digest']}")).json()
    largest = max(reversed(manifest["layers"]), key=lambda layer: layer["size"])
    address = f"/v2/handbook/manual/blobs/{largest['digest']}"
    for layer in (manifest["config"], *manifest["layers"]):
        if layer is not largest:
            await grid.http.get(f"/v2/handbook/manual/blobs/{layer['digest']}")
    await grid.http.head(address)
    await grid.http.get(address, headers={"Range": "bytes=0-99"})
    assert await pulls() == 0, "asking for the price is no pull"
    await grid.http.get(address)
    await grid.http.get(address, headers={"Range": "bytes=100-"})
    assert await pulls() == 2
    overview = (await grid.http.get("/v1/overview")).json()
    assert overview["pool"]["pulls"] == 2
    assert overview["compute"]["pulled_flops"] == 2 * cube["produced_flops"]


async def test_who_has_computed_a_unit_can_see_what_became_of_it(grid: Worked) -> None:
    keys = await grid.coordinator.store.read(
        lambda connection: list(connection.execute(select(units.c.key).order_by(units.c.unit_id)).scalars())
    )
    answer = (await grid.http.get("/v1/units", params={"keys": ",".join([*keys, "ab" * 32])})).json()
    assert [unit["key"] for unit in answer["units"]] == keys, "what is not known is left out"
    for unit in answer["units"]:
        (cube,) = unit["cubes"]
        assert (unit["kind"], unit["state"], cube["state"]) == ("prefill", "accepted", "published")
        assert (cube["campaign_id"], cube["campaign_name"]) == (grid.campaign_id, "handbook")
        assert (await grid.http.get(f"/cubes/{cube['reference']}")).status_code == 200
    assert {cube["reference"] for unit in answer["units"] for cube in unit["cubes"]} == {
        "handbook/manual:1.0.0",
        "handbook/short:1.0.0",
    }
    await grid.coordinator.store.write(
        lambda connection: connection.execute(update(documents).values(state=DocumentState.RUNNING))
    )
    again = (await grid.http.get("/v1/units", params={"keys": keys[0]})).json()
    assert [cube["reference"] for cube in again["units"][0]["cubes"]] == [""], "a cube that was taken back is none"


async def test_campaigns_are_told_by_state_and_their_documents_page_by_page(grid: Worked) -> None:
    assert "handbook" in await grid.text("/campaigns?state=completed")
    assert "None is running" in await grid.text("/campaigns?state=running")
    listed = (await grid.http.get("/v1/campaigns")).json()
    assert [line["campaign_id"] for line in listed["campaigns"]] == [grid.campaign_id]
    told = (await grid.http.get(f"/v1/campaigns/{grid.campaign_id}")).json()
    assert [document["state"] for document in told["documents"]] == ["published", "published"]
    assert told["progress"][-1][1] == told["line"]["tokens"] > 0
    assert not set(told["documents"][0]) & {"source_uri", "source_digest"}
    assert (await grid.http.get(f"/campaigns/{grid.campaign_id[:6]}")).status_code == 404
