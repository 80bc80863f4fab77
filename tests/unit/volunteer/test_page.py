"""The volunteer's page over HTTP: who is let in, who is turned away, and what it tells and does."""

from __future__ import annotations

import asyncio
import itertools
import json
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from memgrid.clock import ManualClock
from memgrid.errors import InvalidError, UnavailableError
from memgrid.teams import Standing
from memgrid_volunteer.home import Home
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.page.asking import fates_in
from memgrid_volunteer.page.guard import BODY_BYTES_MAX, CSRF_HEADER, refusal_of
from memgrid_volunteer.page.key import PageKey, new_key, read_key, write_key
from memgrid_volunteer.page.server import serve_page
from tests.volunteer_homes import GRID, KEYS, NOW, at_work, fill_history, join_another, make_home, stands

READ = ("/", "/static/page.js", "/favicon.ico", "/v1/status", "/v1/history", "/v1/credit", "/v1/preferences")
WRITE = ("/v1/pause", "/v1/resume", "/v1/preferences")


@dataclass
class Served:
    """A page that is served, its owner's browser, and somebody without a cookie."""

    home: Home
    key: PageKey
    clock: ManualClock
    owner: httpx.AsyncClient
    stranger: httpx.AsyncClient

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """As the page's own script does."""
        own = {
            "Origin": f"http://127.0.0.1:{self.key.port}",
            CSRF_HEADER: self.key.csrf,
            "Sec-Fetch-Site": "same-origin",
        }
        content = {"Content-Type": "application/json"}
        text = body if isinstance(body, str) else json.dumps(body)
        return await self.owner.post(path, content=text, headers={**own, **content, **headers})

    def pauses(self) -> tuple[Pause, ...]:
        return Control(self.home.folder).pauses(self.clock.now())


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    home, clock = make_home(tmp_path / "home"), ManualClock(NOW)
    home.write_status(at_work().to_json())
    fill_history(home)
    with home.lock():
        async with serve_page(home, clock=clock, ask_grid=stands) as key:
            base = f"http://127.0.0.1:{key.port}"
            async with httpx.AsyncClient(base_url=base) as owner, httpx.AsyncClient(base_url=base) as stranger:
                opened = await owner.get("/", params={"key": key.secret})
                assert opened.status_code == 200
                yield Served(home, key, clock, owner, stranger)


async def test_the_secret_is_traded_for_a_cookie_and_leaves_the_address(served: Served) -> None:
    opened = await served.stranger.get("/", params={"key": served.key.secret})
    cookie = opened.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie
    assert 'content="0; url=/"' in opened.text and served.key.secret not in opened.text
    assert served.key.secret not in cookie
    assert (await served.stranger.get("/")).status_code == 200


async def test_nobody_reads_anything_without_the_cookie(served: Served) -> None:
    for path in READ:
        answer = await served.stranger.get(path)
        assert answer.status_code == 401 and served.key.csrf not in answer.text and "attic" not in answer.text
        forged = {"Cookie": f"{served.key.cookie_name}={'0' * 64}"}
        assert (await served.stranger.get(path, headers=forged)).status_code == 401
    assert (await served.stranger.get("/", params={"key": "x" * 43})).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:7072", "127.0.0.2", "", "localhost.:7072", "[::2]"]
)
async def test_a_foreign_name_for_this_machine_is_turned_away(served: Served, host: str) -> None:
    """A stranger's site may have its name point here, and its script then asks from the same origin."""
    for path in READ:
        answer = await served.owner.get(path, headers={"Host": host})
        assert answer.status_code in (400, 421) and "attic" not in answer.text, path
    shown = await served.stranger.get("/", params={"key": served.key.secret}, headers={"Host": host})
    assert shown.status_code in (400, 421) and "Set-Cookie" not in shown.headers


async def test_it_may_be_reached_through_a_tunnel_and_by_localhost(served: Served) -> None:
    for host in ("localhost:9999", "127.0.0.1:1", "[::1]:7072"):
        answer = await served.owner.get("/v1/status", headers={"Host": host, "Cookie": cookie_of(served)})
        assert answer.status_code == 200, host


def cookie_of(served: Served) -> str:
    return f"{served.key.cookie_name}={served.key.cookie}"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {CSRF_HEADER: "0" * 64},
        {CSRF_HEADER: ""},
        {CSRF_HEADER: "ä" * 64},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
)
async def test_a_change_that_another_site_asks_for_is_refused(served: Served, spoilt: dict[str, str]) -> None:
    headers = {name: value.replace("{port}", str(served.key.port)).encode() for name, value in spoilt.items()}
    for path in WRITE:
        body = {"preset": "always"} if "pref" in path else {}
        answer = await served.post(path, body, **headers)  # type: ignore[arg-type]
        assert answer.status_code in (403, 415), path
    assert served.pauses() == () and not (served.home.folder / "volunteer.toml").exists()


async def test_a_change_without_origin_or_cookie_is_refused(served: Served) -> None:
    headers = {CSRF_HEADER: served.key.csrf, "Content-Type": "application/json"}
    assert (await served.owner.post("/v1/pause", content="{}", headers=headers)).status_code == 403
    own = {**headers, "Origin": f"http://127.0.0.1:{served.key.port}"}
    assert (await served.stranger.post("/v1/pause", content="{}", headers=own)).status_code == 401
    assert served.pauses() == ()


async def test_other_methods_do_nothing(served: Served) -> None:
    methods = ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")
    for path, method in itertools.product((*READ, *WRITE), methods):
        own = {"Origin": f"http://127.0.0.1:{served.key.port}", CSRF_HEADER: served.key.csrf}
        answer = await served.owner.request(
            method, path, content="{}", headers={**own, "Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 405), (method, path)
    assert served.pauses() == ()


async def test_what_only_reads_cannot_be_posted_and_the_other_way_round(served: Served) -> None:
    assert (await served.post("/v1/status", {})).status_code == 405
    assert (await served.owner.get("/v1/pause")).status_code == 405
    assert (await served.owner.get("/nothing")).status_code == 404
    for name in ("..%2fserver.py", "page.html", "%2e%2e/%2e%2e/home.py"):
        assert (await served.owner.get(f"/static/{name}")).status_code == 404


async def test_a_huge_body_is_refused_and_nothing_is_written(served: Served) -> None:
    for path in WRITE:
        answer = await served.post(path, json.dumps({"text": "#" * (BODY_BYTES_MAX + 1)}))
        assert answer.status_code == 413
    assert not (served.home.folder / "volunteer.toml").exists()


@pytest.mark.parametrize(
    "body", ["", "[]", "1", "{", "null", "[" * 5000, '{"device_id": 7}', '{"device_id": "cuda:9"}']
)
async def test_a_body_that_means_nothing_is_refused(served: Served, body: str) -> None:
    for path in ("/v1/pause", "/v1/resume"):
        assert (await served.post(path, body)).status_code == 400
    assert served.pauses() == ()


@pytest.mark.parametrize(
    "asked",
    [
        {"for_s": 0},
        {"for_s": -1},
        {"for_s": 1e12},
        {"for_s": float("nan")},
        {"for_s": True},
        {"for_s": "1h"},
        {"until_restart": 1},
        {"for_s": 60, "until_restart": True},
        {"shutdown": True},
    ],
)
async def test_a_pause_that_means_nothing_is_refused(served: Served, asked: dict[str, Any]) -> None:
    assert (await served.post("/v1/pause", asked)).status_code == 400
    assert served.pauses() == ()


async def test_every_answer_forbids_what_a_page_does_not_need(served: Served) -> None:
    for answer in (*[await served.owner.get(path) for path in READ], await served.stranger.get("/")):
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "'none'; require" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_the_page_is_small_and_brings_nothing_from_elsewhere(served: Served) -> None:
    texts = [
        (await served.owner.get(path)).text for path in ("/", "/static/page.js", "/static/style.css", "/favicon.ico")
    ]
    assert sum(len(text.encode()) for text in texts) < 60_000
    assert served.key.csrf in texts[0]
    for word in ("https://", "http://", "//cdn", "<style", " style=", " onclick", "innerHTML", "eval("):
        assert word not in "".join(texts).replace("http://www.w3.org/2000/svg", ""), word


def test_only_the_owner_may_read_the_key(tmp_path: Path) -> None:
    write_key(tmp_path, new_key(7072))
    assert stat.S_IMODE((tmp_path / "page.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"port": "x", "secret": 1}', '{"port": 1, "secret": "short"}'])
async def test_a_damaged_key_is_made_anew(tmp_path: Path, damage: str) -> None:
    home = make_home(tmp_path)
    (tmp_path / "page.json").write_text(damage)
    assert read_key(tmp_path) is None
    async with serve_page(home, clock=ManualClock(NOW), ask_grid=stands) as key:
        assert key.port and len(key.secret) >= 43


async def test_port_and_secret_outlast_a_restart_unless_somebody_has_the_port(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    async with serve_page(home, clock=ManualClock(NOW), ask_grid=stands) as first:
        opened = read_key(home.folder)
        assert opened is not None and opened.is_open
    closed = read_key(home.folder)
    assert closed is not None and not closed.is_open
    async with serve_page(home, clock=ManualClock(NOW), ask_grid=stands) as second:
        assert (second.port, second.secret) == (first.port, first.secret)
        other = make_home(tmp_path / "other")
        write_key(other.folder, second)
        async with serve_page(other, clock=ManualClock(NOW), ask_grid=stands) as third:
            assert third.port != second.port and third.secret != second.secret
        with pytest.raises(InvalidError, match=f"--page-port {second.port}: "):
            async with serve_page(other, clock=ManualClock(NOW), port=second.port, ask_grid=stands):
                pass


async def test_a_ticket_lets_in_once_and_not_for_long(served: Served) -> None:
    url = httpx.URL(served.key.ticket_url(NOW))
    assert (await served.stranger.get(url)).status_code == 200
    served.stranger.cookies.clear()
    assert (await served.stranger.get(url)).status_code == 401, "somebody has read it from the list of processes"
    late = served.key.ticket_url(NOW)[:-1]
    for ticket in (late, f"http://127.0.0.1:{served.key.port}/?ticket=99999999999.{'0' * 64}"):
        assert (await served.stranger.get(ticket)).status_code == 401
    later = served.key.ticket_url(NOW + timedelta(seconds=1))
    served.clock.advance(timedelta(minutes=2))
    assert (await served.stranger.get(later)).status_code == 401


def test_the_cookie_of_one_volunteer_does_not_open_another() -> None:
    one, other = PageKey(port=1, secret="s" * 43), PageKey(port=2, secret="s" * 43)
    assert one.cookie != other.cookie and one.cookie_name != other.cookie_name and one.cookie != one.csrf
    refused = refusal_of("GET", {"Host": "localhost"}, cookie=one.cookie, key=other)
    assert refused is not None and refused.status == 401


async def test_it_tells_how_things_stand(served: Served) -> None:
    await served.owner.get("/v1/status")
    await asyncio.sleep(0)
    facts = (await served.owner.get("/v1/status")).json()
    assert (facts["label"], facts["grids"][0]["url"]) == ("attic", GRID)
    assert (facts["view"]["state"], facts["view"]["tone"]) == ("Computing", "good")
    device = facts["view"]["devices"][0]
    assert (device["device_id"], device["share"], device["left"][:13]) == ("cuda:0", 0.42, "about 7 min l")
    assert dict(map(tuple, device["facts"]))["power"] == "164 of 200 W"
    tiles = {tile["name"]: tile for tile in facts["tiles"]}
    assert tiles["Rank"]["value"] == "7 of 1,204" and "escrow" in tiles["Credit"]["note"]


async def test_a_pause_holds_for_what_was_asked_and_no_longer(served: Served) -> None:
    answer = await served.post("/v1/pause", {"device_id": None, "for_s": 3600})
    assert answer.json()["view"]["state"] == "Paused by you"
    assert served.pauses() == (Pause(until=NOW + timedelta(hours=1)),)
    await served.post("/v1/pause", {"device_id": "cuda:1", "until_restart": True})
    view = (await served.owner.get("/v1/status")).json()["view"]
    assert [device["is_paused_alone"] for device in view["devices"]] == [False, True, False]
    await served.post("/v1/resume", {"device_id": "cuda:1"})
    assert served.pauses() == (Pause(until=NOW + timedelta(hours=1)),)
    await served.post("/v1/resume", {"device_id": None})
    assert served.pauses() == ()
    await served.post("/v1/pause", {"device_id": "cpu"})
    assert served.pauses() == (Pause(device_id="cpu"),)


async def test_preferences_change_or_say_what_is_wrong(served: Served) -> None:
    file = PreferencesFile(served.home.folder)
    changed = await served.post("/v1/preferences", {"key": "when.idle_minutes", "value": 12})
    assert changed.status_code == 200 and file.current().when.idle_minutes == 12
    await served.post("/v1/preferences", {"key": 'devices."cuda:0".duty_percent', "value": 50})
    assert file.current().device("cuda:0").duty_percent == 50
    refused = await served.post("/v1/preferences", {"key": "when.idle_minutes", "value": "soon"})
    assert (
        refused.status_code == 422 and "expected minutes from 0 to 1440, found 'soon'" in refused.json()["errors"][0]
    )
    refused = await served.post("/v1/preferences", {"text": "preset = 'night'\n[when]\nidle_minutes = 99999"})
    assert "line 3: when.idle_minutes" in refused.json()["errors"][0]
    assert file.current().when.idle_minutes == 12
    await served.post("/v1/preferences", {"key": "when.idle_minutes", "value": None})
    await served.post("/v1/preferences", {"preset": "night"})
    assert (file.current().when.idle_minutes, file.current().preset) == (5, "night")
    written = await served.post("/v1/preferences", {"text": "# mine\npreset = 'always'\n"})
    assert written.json()["preset"] == "always" and file.text().startswith("# mine")
    for wish in (
        {},
        {"preset": "rude"},
        {"key": "preset", "value": {}},
        {"text": 1},
        {"preset": "polite", "text": ""},
    ):
        assert (await served.post("/v1/preferences", wish)).status_code == 422


async def test_a_file_with_errors_is_shown_with_them(served: Served) -> None:
    (served.home.folder / "volunteer.toml").write_text("[when]\nidle_minutes = 'soon'\n")
    facts = (await served.owner.get("/v1/preferences")).json()
    assert facts["groups"] == [] and "line 2" in facts["problems"][0] and facts["text"].startswith("[when]")
    assert "line 2" in (await served.owner.get("/v1/status")).json()["problems"][0]


async def test_history_goes_back_page_by_page(served: Served) -> None:
    first = (await served.owner.get("/v1/history")).json()
    assert [unit["key"] for unit in first["units"]] == [KEYS[number] for number in range(29, 17, -1)]
    assert (first["units"][0]["outcome"], first["units"][0]["speed"]) == ("being checked", "128 tokens/s")
    assert (first["units"][2]["outcome"], first["units"][2]["reason"]) == ("rejected", "disagrees")
    assert first["units"][11]["became"] == [
        {"text": "manuals/pump:1.2.0", "href": f"{GRID}/cubes/manuals/pump:1.2.0"}
    ]
    rest = (await served.owner.get(f"/v1/history?before={first['more']}")).json()
    last = (await served.owner.get(f"/v1/history?before={rest['more']}")).json()
    assert len(rest["units"]) == 12 and len(last["units"]) == 6 and last["more"] is None
    for before in ("x", "-1", "1" * 16):
        assert (await served.owner.get("/v1/history", params={"before": before})).status_code == 400


async def test_credit_is_the_same_however_far_one_looks_back(served: Served) -> None:
    day, month, year = [
        (await served.owner.get("/v1/credit", params={"span": span})).json() for span in ("day", "month", "year")
    ]
    assert [len(chart["marks"]) for chart in (day, month, year)] == [24, 30, 12]
    assert sum(mark["share"] > 0 for mark in day["marks"]) == 2, "one of them waits, and one was rejected"
    assert sum(mark["share"] for mark in month["marks"]) > 0 and year["marks"][-1]["label"] == "Mar 2026"
    assert (await served.owner.get("/v1/credit", params={"span": "x"})).status_code == 400


async def test_a_grid_that_does_not_answer_holds_up_nothing(tmp_path: Path) -> None:
    async def away(home: Home) -> Standing:
        raise UnavailableError("the grid does not answer")

    home = make_home(tmp_path)
    async with (
        serve_page(home, clock=ManualClock(NOW), ask_grid=away) as key,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{key.port}") as owner,
    ):
        await owner.get("/", params={"key": key.secret})
        for _ in range(2):
            facts = (await owner.get("/v1/status")).json()
    assert facts["view"]["state"] == "Not running"
    assert facts["tiles"][0]["note"].endswith("the grid does not answer")


@pytest.mark.parametrize(
    "cube",
    [
        {"reference": "javascript:alert(1)", "campaign_id": "c1", "campaign_name": "x"},
        {"reference": "../../x", "campaign_id": "c1", "campaign_name": "x"},
        {"reference": "a/b:1.0", "campaign_id": "../admin", "campaign_name": "x"},
        {"reference": "a/b:1.0", "campaign_id": "c1" * 99, "campaign_name": "x"},
    ],
)
def test_what_a_grid_makes_up_becomes_no_address(cube: dict[str, str]) -> None:
    assert fates_in(json.dumps({"units": [{"key": "k", "cubes": [cube]}]}).encode()) == {"k": ()}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"units": 1}', b'{"units": [1]}', b"[" * 100_000])
def test_an_answer_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidError, match="can't be read"):
        fates_in(content)


async def test_several_grids_are_told_each_by_its_name_share_and_state(served: Served) -> None:
    (alone,) = (await served.owner.get("/v1/status")).json()["grids"]
    assert (alone["name"], alone["part"], alone["url"]) == ("a grid for tests", "100%", GRID)
    join_another(served.home)
    facts = (await served.owner.get("/v1/status")).json()
    first, second = facts["grids"]
    assert (first["part"], second["part"], second["tone"], second["why"]) == ("77%", "23%", "bad", "no route")
    assert first["lately"].endswith("100% of all") and second["lately"] == "nothing yet"
    assert [tile["name"] for tile in facts["tiles"]] == ["Credit", "Units accepted", "Grids", "Time given"]
    units = (await served.owner.get("/v1/history")).json()["units"]
    assert {unit["grid"] for unit in units} == {GRID}
