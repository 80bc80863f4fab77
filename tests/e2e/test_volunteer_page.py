"""The volunteer's own page in a real Chromium, before a volunteer that really computes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from memgrid.clock import SystemClock
from memgrid_volunteer import running
from memgrid_volunteer.home import Home
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.page.key import PageKey, read_key
from memgrid_volunteer.page.server import serve_page
from memgrid_volunteer.stopping import Stopping
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import ALWAYS, ROOT, ScriptedProbe, Volunteer, quickly
from tests.volunteer_homes import at_work, fill_history, join_another, make_home, stands

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BUTTONS = ("Pause 1 hour", "Until restart", "Until I resume")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not there; apt-get install chromium brings it"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(browser: Browser, key: PageKey, **options: Any) -> AsyncIterator[Page]:
    """The page in a browser of its own; whatever the console says against it fails the test."""
    context = await browser.new_context(**{"viewport": DESKTOP, **options})
    context.set_default_timeout(15_000)
    page = await context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    try:
        await page.goto(key.url)
        await expect(page.locator("#groups fieldset").first).to_be_visible()
        yield page
        # A change that is turned down is an error to the console, and meant to be one here.
        assert [text for text in said if "422" not in text and "ERR_CONNECTION_REFUSED" not in text] == []
    finally:
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def still(tmp_path: Path) -> AsyncIterator[PageKey]:
    """A page of a volunteer that stands still: three devices, and a history."""
    home = make_home(tmp_path / "still")
    now = datetime.now(UTC)
    home.write_status(at_work(now).to_json())
    fill_history(home, now=now)
    with home.lock():
        async with serve_page(home, clock=SystemClock(), ask_grid=stands) as key:
            yield key


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE), ("dark", PHONE)]
)
async def test_it_fits_every_screen_and_everybody_who_reads_it(
    browser: Browser, still: PageKey, tmp_path: Path, scheme: Any, viewport: Any
) -> None:
    join_another(Home(tmp_path / "still"))
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    async with opened(browser, still, color_scheme=scheme, viewport=viewport, bypass_csp=True) as page:
        await expect(page.locator("#units tr")).to_have_count(12)
        for words in ("second", "can't be reached", "no route", "23%", "nothing yet"):
            await expect(page.locator("#grid-rows tr").nth(1)).to_contain_text(words)
        await expect(page.locator("#units tr").first).to_contain_text("for a grid for tests")
        await page.get_by_text("All of it, as a file").click()
        await page.locator("summary", has_text="Numbers").click()
        await page.locator(".menu summary").first.click()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "too wide"
        await page.evaluate(axe)
        found = await page.evaluate("axe.run()")
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []


async def test_it_tells_of_every_device_and_of_the_past(browser: Browser, still: PageKey, tmp_path: Path) -> None:
    async with opened(browser, still) as page:
        assert "key=" not in page.url and page.url.endswith(f":{still.port}/")
        gpu = page.get_by_role("article", name="A Fine GPU").first
        for words in ("42%", "20 of 48 conversations", "67 °C", "164 of 200 W", "1,874 tokens/s", "about 7 min left"):
            await expect(gpu).to_contain_text(words)
        await expect(page.locator("#tiles")).to_contain_text("7 of 1,204")
        await expect(page.locator("#grid-section")).to_be_hidden()
        await page.get_by_role("button", name="Older").click()
        await expect(page.locator("#units tr")).to_have_count(24)
        cube = page.get_by_role("link", name="manuals/pump:1.2.0").first
        await expect(cube).to_have_attribute("href", "https://grid.example:7070/cubes/manuals/pump:1.2.0")
        await expect(page.locator("#plot .mark")).to_have_count(30)
        await page.get_by_role("button", name="Day", exact=True).click()
        await expect(page.locator("#plot .mark")).to_have_count(24)
        await expect(page.get_by_role("button", name="Day", exact=True)).to_have_attribute("aria-pressed", "true")


async def test_one_device_is_paused_alone(browser: Browser, still: PageKey, tmp_path: Path) -> None:
    control, clock = Control(tmp_path / "still"), SystemClock()
    async with opened(browser, still) as page:
        card = page.locator('[data-device="cuda:1"]')
        await card.get_by_text("Pause", exact=False).first.click()
        await card.get_by_role("button", name="Until restart").click()
        await expect(page.locator("#pauses")).to_contain_text("cuda:1 paused until the volunteer starts again")
        assert control.pauses(clock.now()) == (Pause(device_id="cuda:1", is_until_restart=True),)
        await card.get_by_role("button", name="Resume cuda:1").click()
        await expect(page.locator("#pauses")).to_be_hidden()
        assert control.pauses(clock.now()) == ()


async def test_a_preference_holds_at_once_and_a_wrong_one_says_why(
    browser: Browser, still: PageKey, tmp_path: Path
) -> None:
    file = tmp_path / "still" / "volunteer.toml"
    async with opened(browser, still) as page:
        await page.get_by_label("Night").check()
        await expect(page.get_by_label("Only at these times")).to_have_value("22:00-07:00")
        minutes = page.get_by_label("Counts as in use for (minutes)")
        await minutes.fill("soon")
        await minutes.press("Tab")
        error = page.get_by_text("when.idle_minutes: expected minutes from 0 to 1440, found 'soon'")
        await expect(error).to_be_visible()
        await expect(minutes).to_have_attribute("aria-invalid", "true")
        assert tomllib.loads(file.read_text()) == {"preset": "night"}
        await minutes.fill("12")
        await minutes.press("Tab")
        await expect(error).to_be_hidden()
        await expect(page.locator("#saved")).to_have_text("Saved; it holds from now on.")
        group = page.get_by_role("group", name="cuda:0: A Fine GPU")
        await group.get_by_label("Share of the time (%)").fill("50")
        await group.get_by_label("Use it").uncheck()
        await expect(page.locator("#saved")).to_have_text("Saved; it holds from now on.")
        await page.get_by_label("While in use, GPUs may").select_option("compute a little")
        await expect(page.locator("#text")).to_have_value(re.compile("gpu_while_in_use"))
    said = tomllib.loads(file.read_text())
    assert said["when"] == {"idle_minutes": 12, "gpu_while_in_use": "throttle"}
    assert said["devices"]["cuda:0"] == {"duty_percent": 50, "enabled": False}


async def test_the_file_itself_is_written_and_its_errors_lead_to_their_lines(
    browser: Browser, still: PageKey, tmp_path: Path
) -> None:
    async with opened(browser, still) as page:
        await page.get_by_text("All of it, as a file").click()
        area = page.get_by_label("The preferences as TOML")
        await area.fill('# mine\n[when]\nidle_minutes = "soon"\n')
        await page.get_by_role("button", name="Save the file").click()
        problem = page.get_by_role("button", name="volunteer.toml: line 3: when.idle_minutes")
        await problem.click()
        selected = "(area => area.value.slice(area.selectionStart, area.selectionEnd))"
        assert await area.evaluate(selected) == 'idle_minutes = "soon"'
        await area.fill("# mine\n[when]\nidle_minutes = 9\n")
        await page.get_by_role("button", name="Save the file").click()
        await expect(problem).to_be_hidden()
        await expect(page.get_by_label("Counts as in use for (minutes)")).to_have_value("9")
    assert (tmp_path / "still" / "volunteer.toml").read_text() == "# mine\n[when]\nidle_minutes = 9\n"


async def test_everything_can_be_reached_with_the_keyboard(browser: Browser, still: PageKey, tmp_path: Path) -> None:
    control, clock = Control(tmp_path / "still"), SystemClock()

    async def focused(page: Page) -> str:
        name = "(e => e.getAttribute('aria-label') || e.textContent.trim() || e.id)(document.activeElement)"
        return str(await page.evaluate(name))

    async with opened(browser, still) as page:
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        order = []
        for _ in range(6):
            await page.keyboard.press("Tab")
            order.append(await focused(page))
        assert order == [*BUTTONS, "Pause cuda:0", "Pause cuda:1", "Pause cpu"]
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.evaluate(outline) == "solid", "one sees where one is"
        for _ in range(5):
            await page.keyboard.press("Shift+Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Paused by you")
        assert [pause.until is not None for pause in control.pauses(clock.now())] == [True]
        await page.keyboard.press("Shift+Tab")
        assert await focused(page) == "Resume"
        await page.keyboard.press("Space")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Computing")
        await expect(page.get_by_role("button", name="Pause 1 hour")).to_be_focused()
        assert control.pauses(clock.now()) == ()
        menu = page.locator('[data-device="cuda:0"] .menu')
        await menu.locator("summary").focus()
        await page.keyboard.press("Enter")
        await expect(menu.get_by_role("button", name="1 hour")).to_be_visible()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Escape")
        await expect(menu.get_by_role("button", name="1 hour")).to_be_hidden()
        await expect(menu.locator("summary")).to_be_focused()


@asynccontextmanager
async def computing(volunteer: Volunteer) -> AsyncIterator[PageKey]:
    """A real volunteer at work, with its page."""

    async def go() -> None:
        volunteer.stopping = Stopping()
        await running.run(volunteer.home, options, volunteer.lines.append, volunteer.stopping)

    options = running.Options(
        threads=1,
        worker_module="tests.workers.quick",
        isolation=Isolation.NONE,
        backoff=quickly,
        probes=lambda *_: [ScriptedProbe()],
        page_port=0,
    )
    run = asyncio.create_task(go())
    try:
        async with asyncio.timeout(30):
            while (key := read_key(volunteer.home.folder)) is None or not key.is_open:
                assert not run.done(), run.result()
                await asyncio.sleep(0.02)
        yield key
    finally:
        volunteer.stopping.stop()
        await run


async def test_a_volunteer_at_work_is_watched_paused_resumed_and_seen_to_stop(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "ran"))
    grid = ScriptedGrid()
    await grid.start()
    volunteer = Volunteer(home=make_home(tmp_path / "home", grid.url), ran=tmp_path / "ran")
    volunteer.prefer(ALWAYS)
    try:
        async with contextlib.AsyncExitStack() as stack:
            async with computing(volunteer) as key:
                page = await stack.enter_async_context(opened(browser, key))
                heading, verdicts = page.get_by_role("heading", level=1), page.locator("#units .verdict")
                await expect(heading).to_have_text("Waiting for work")
                grid.offer("one", 1, 2, 3)
                await expect(verdicts).to_have_text(["accepted"])
                grid.offer("two", 9, 2)
                await expect(heading).to_have_text("Computing")
                await expect(page.locator('[data-device="cpu"] .work')).to_have_text("2 tokens from position 0")
                await page.get_by_role("button", name="Until I resume").click()
                await expect(heading).to_have_text("Paused by you")
                await expect(page.locator('[data-device="cpu"] .job')).to_be_hidden()
                await expect(verdicts.first).to_contain_text("stopped")
                await page.get_by_role("button", name="Resume").first.click()
                await expect(heading).to_have_text("Computing")
                grid.cancel("two")
                grid.offer("three", 1, 5)
                await grid.until(lambda: "three" in grid.settled)
                await expect(verdicts.first).to_have_text("accepted")
                await expect(page.locator("#tiles")).to_contain_text("of 2 computed")
            await expect(page.get_by_role("alert")).to_contain_text("The volunteer does not answer")
    finally:
        await grid.stop()
