"""The pages in a real Chromium: read, clicked through, on desktop and phone, light and dark, without scripts."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect
from transformers import LlamaForCausalLM

from memgrid.cube.identity import identity_of_folder
from memgrid.cube.manifest import CubeManifest
from memgrid.cube.oci import OCI_MANIFEST_TYPE, OciManifest
from memgrid.testing import SimulatedGpu
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.heavy.assemble_adapter import assemble_adapter
from memgrid_coordinator.records import CubeFacts
from tests.adapters import PREFIX, adapter_order, write_state
from tests.grids import push_model, run_until_ended, running_coordinator, simulated_hosts, submit

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
TRAINED = "tests/valves:1.0.0"
COMPUTED = "handbook/manual:1.0.0"
LISTS = ("/", "/campaigns", "/cubes", "/leaderboard", "/leaderboard?by=teams")
PAGES = (*LISTS, "CAMPAIGN", f"/cubes/{COMPUTED}", f"/cubes/{TRAINED}", "/join", "/none")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not there; apt-get install chromium brings it"),
]


@dataclass
class Site:
    """A grid that has made cubes, and a browser before it."""

    coordinator: Coordinator
    browser: Browser
    campaign_id: str

    @property
    def url(self) -> str:
        return self.coordinator.address.url.partition("#")[0]

    @asynccontextmanager
    async def page(self, **options: Any) -> AsyncIterator[Page]:
        """A page of its own; whatever its console says against it fails the test."""
        context = await self.browser.new_context(**{
            "base_url": self.url, "ignore_https_errors": True, "viewport": DESKTOP, **options,
        })  # fmt: skip
        context.set_default_timeout(20_000)
        page = await context.new_page()
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        try:
            yield page
            # A page that is not there is an error to the console, and meant to be one here.
            assert [text for text in said if "404" not in text] == []
        finally:
            await context.close()

    def address(self, path: str) -> str:
        return path.replace("CAMPAIGN", f"/campaigns/{self.campaign_id}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    geometry = identity_of_folder(tiny_model_folder).geometry
    async with running_coordinator(folder / "data", name="a grid for tests") as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        submission = await submit(
            coordinator, {"manual.txt": "The valve opens at three bar. " * 8, "short.txt": "It closes."}
        )
        async with simulated_hosts(endpoint, 3) as hosts:
            gpus = [SimulatedGpu(geometry), SimulatedGpu(geometry), SimulatedGpu(geometry, bias=0.2)]
            assert (await hosts[2].sync(want=1)).leases, "the cheat has its hands in before the others begin"
            await run_until_ended(coordinator, submission, dict(zip(hosts, gpus, strict=True)))
        await publish_trained(coordinator, tiny_model_folder, folder)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            yield Site(coordinator, browser, submission.campaign.campaign_id)
            await browser.close()


async def publish_trained(coordinator: Coordinator, model_folder: Path, folder: Path) -> None:
    """A parameter cube, as a distillation would have published it."""
    model = LlamaForCausalLM.from_pretrained(model_folder)
    state = write_state(folder / "state.safetensors", PREFIX, model)
    order, tensors = adapter_order(state, PREFIX, identity_of_folder(model_folder))
    made = await asyncio.to_thread(assemble_adapter, order, coordinator.grid_key)
    for content in (*made.blobs, tensors):
        coordinator.blobs.put_bytes(content)
    config = OciManifest.from_bytes(made.oci).config
    manifest = CubeManifest.from_bytes(coordinator.blobs.read_bytes(config.digest))
    facts = CubeFacts(
        digest=manifest.digest,
        kind=manifest.kind.value,
        base=manifest.base.name,
        title=manifest.title,
        source_names=("docs/pump.md",),
        tokens=manifest.token_count,
        payload_bytes=manifest.payload_bytes,
        licence=manifest.licence,
        produced_flops=manifest.cost.flops,
        gap_closed=order.quality.gap_closed,
    )
    await coordinator.publishing.publish_cube(
        repository="tests/valves",
        version="1.0.0",
        tags=[],
        manifest=made.oci,
        media_type=OCI_MANIFEST_TYPE,
        facts=facts,
    )


@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESKTOP), ("dark", PHONE)])
async def test_every_page_fits_its_screen_and_everybody_who_reads_it(site: Site, scheme: Any, viewport: Any) -> None:
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    async with site.page(color_scheme=scheme, viewport=viewport, bypass_csp=True) as page:
        for path in PAGES:
            await page.goto(site.address(path))
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is too wide"
            await page.evaluate(axe)
            found = await page.evaluate("axe.run()")
            assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == [], path


async def test_one_walks_from_the_grid_to_a_campaign_to_a_cube_and_back(site: Site) -> None:
    async with site.page() as page:
        await page.goto("/")
        await page.get_by_role("navigation", name="Pages").get_by_role("link", name="Campaigns").click()
        await expect(page.get_by_role("link", name="Campaigns", exact=True)).to_have_attribute("aria-current", "page")
        await page.get_by_role("link", name="handbook").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("handbook")
        await page.get_by_role("link", name=COMPUTED).click()
        await expect(page.get_by_role("heading", name="Pull it, or make it yourself?")).to_be_visible()
        await page.get_by_role("link", name="handbook", exact=True).click()
        assert page.url.endswith(site.campaign_id)
        await page.goto(f"/cubes/{TRAINED}")
        await expect(page.get_by_role("region", name="Quality", exact=True)).to_contain_text("86%")
        await page.go_back()
        await page.get_by_role("link", name="Leaders").click()
        await expect(page.get_by_role("row")).to_have_count(3)
        await page.get_by_role("link", name="7 days").click()
        await page.get_by_role("link", name="teams", exact=True).click()
        await expect(page.get_by_text("No team yet in this time.")).to_be_visible()
        await expect(page.get_by_role("link", name="7 days")).to_have_attribute("aria-current", "true")


async def test_a_search_answers_while_one_types_and_without_scripts_when_asked(site: Site) -> None:
    async with site.page() as page:
        await page.goto("/cubes")
        await page.keyboard.press("/")
        await page.keyboard.type("pump")
        await expect(page.locator("#results article")).to_have_count(1)
        assert page.url.endswith("/cubes?q=pump")
        await page.get_by_label("Kind").select_option("activation")
        await expect(page.locator("#results")).to_contain_text("0 cubes found")
    async with site.page(java_script_enabled=False) as page:
        await page.goto("/cubes")
        await page.get_by_label("Words").fill("pump")
        await page.get_by_role("button", name="Search").click()
        await expect(page.locator("#results article")).to_have_count(1)
        await page.get_by_role("link", name="The manual of the pump").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("The manual of the pump")
        assert await page.get_by_role("button", name="Copy").count() == 0, "a button that does nothing is not shown"


async def test_the_keyboard_and_the_clipboard_work(site: Site) -> None:
    async with site.page(permissions=["clipboard-read", "clipboard-write"]) as page:
        await page.goto("/join")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.get_by_role("button", name="Copy: join this grid").click()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied == f"memgrid volunteer join '{site.coordinator.address.url}'"


async def test_an_open_page_follows_what_happens(site: Site) -> None:
    async with site.page() as page:
        await page.clock.install()
        await page.goto("/campaigns")
        await submit(
            site.coordinator, {"late.txt": "Nobody has read this. " * 4}, request_id="late", name="latecomer"
        )
        found = page.get_by_role("link", name="latecomer")
        async with asyncio.timeout(60):
            while not await found.is_visible():
                await page.clock.run_for(10_000)
                await page.wait_for_load_state("networkidle")
        await expect(page.get_by_text("0 of 52 tokens")).to_be_visible()
