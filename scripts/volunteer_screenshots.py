#!/usr/bin/env python3
"""Make docs/screenshots/volunteer-*.png: the page of a volunteer with two GPUs and a month behind it."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, async_playwright

from memgrid.clock import ManualClock
from memgrid.teams import Standing
from memgrid.units import AccountId, HostId, Reason, ReasonCode, UnitKey
from memgrid_volunteer.done import DoneUnit, Fate, Outcome
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.owner.decision import Action
from memgrid_volunteer.page.server import serve_page
from memgrid_volunteer.status import DeviceStatus, Tally, VolunteerStatus

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "screenshots"
GRID = "https://grid.example"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WORK = (
    ("prefill", "2,048 tokens from position 4,096", 2048, 9.0),
    ("study", "48 conversations about 1,900 tokens", 31_000, 140.0),
    ("train", "training steps 33 to 64 of 256", 88_000, 260.0),
)
CUBES = ("manuals/pump:1.2.0", "law/tenancy:2026.3", "wiki/lichens:1.0.0")


def main() -> None:
    """Write all of them; names on the command line choose."""
    asyncio.run(take(sys.argv[1:]))


async def take(names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "volunteer")
        fill(home, datetime.now(UTC))
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            with home.lock():
                async with serve_page(home, clock=ManualClock(datetime.now(UTC)), ask_grid=stands) as key:
                    for name, options in PICTURES.items():
                        if not names or name in names:
                            await picture(browser, key.url, name, **options)
            await browser.close()


async def picture(browser: Browser, url: str, name: str, *, at: str = "", **options: Any) -> None:
    """One screen of the page, from the heading `at` on."""
    context = await browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
    page = await context.new_page()
    await page.goto(url)
    await page.locator("#units tr").first.wait_for()
    await page.locator("#groups fieldset").first.wait_for()
    await page.get_by_text("7 of 1,204").wait_for()
    if at:
        await page.evaluate("at => document.querySelector(at).scrollIntoView()", at)
    await page.screenshot(path=FOLDER / f"volunteer-{name}.png")
    print(f"volunteer-{name}.png")
    await context.close()


PICTURES: dict[str, dict[str, Any]] = {
    "page": {"color_scheme": "light"},
    "past": {"color_scheme": "light", "at": "#credit"},
    "preferences": {"color_scheme": "dark", "at": "#preferences"},
    "phone": {"color_scheme": "dark", "viewport": PHONE},
}


async def stands(home: Home) -> Standing:
    return Standing(flops=1.31e18, escrow_flops=9.6e15, results=418, rank=7, ranked=1204, team="Lichenologists")


def fill(home: Home, now: datetime) -> None:
    """A home as it looks after a month of work, in the middle of two units."""
    home.make()
    identity = {"account_id": AccountId("a3f1" * 8), "host_id": HostId("h1" * 16)}
    home.join(Membership(url=GRID, name="The open grid", label="workshop", **identity))
    _month(home, now, random.Random(7))
    home.write_status(status(now).to_json())


def _month(home: Home, now: datetime, rng: random.Random) -> None:
    history = History(home.folder)
    for index in range(90):
        at = now - timedelta(hours=7.9 * (90 - index)) + timedelta(minutes=rng.randrange(60))
        kind, work, tokens, took_s = rng.choice(WORK)
        key = UnitKey(f"{rng.getrandbits(256):064x}")
        device, speed = ("cuda:0", 1.0) if rng.random() < 0.7 else ("cpu", 9.0)
        done = DoneUnit(at=at, unit_key=key, kind=kind, work=work, grid=GRID, device_id=device, tokens=tokens,
                        compute_s=took_s * speed * rng.uniform(0.9, 1.2))  # fmt: skip
        if index in (71, 87):
            history.add(replace(done, outcome=Outcome.GIVEN_BACK, reason="you paused it until 21:40", tokens=0))
            continue
        history.add(done)
        if index >= 89:
            continue
        rejected = index == 80
        credit = 0 if rejected else int(rng.uniform(0.4, 1.6) * 1e16)
        outcome = Outcome.REJECTED if rejected else Outcome.ACCEPTED
        history.judge(key, outcome, "off by 0.031 where 0.004 is allowed" if rejected else "", credit, at)
        if index < 88:
            cube = CUBES[index % 3] if index < 86 else ""
            fate = Fate(cube=cube, campaign_id="c1", campaign="Lichens of the north")
            history.tell_fate({key: [fate]}, [key], now)
    history.close()


def status(now: datetime) -> VolunteerStatus:
    """One GPU at work, one that its owner needs, and a processor that is held back."""
    gpu = {"kind": "cuda", "name": "NVIDIA GeForce RTX 4070", "memory_bytes": 12_282 << 20}
    return VolunteerStatus(
        state="running",
        awaiting_verdict=3,
        isolation="bubblewrap",
        tally=Tally(units_done=416, accepted=412, rejected=1, credit_flops=int(1.28e18), tokens=12_800_000,
                    compute_s=263_000.0),
        unseen={"network": "no NetworkManager on D-Bus"},
        devices=(
            DeviceStatus(
                device_id="cuda:0", **gpu, unit=UnitKey("7c1e" * 16), unit_kind="study",
                work="48 conversations about 1,900 tokens", progress="20 of 48 conversations", progress_share=0.42,
                tokens_per_s=1874.0, began_at=now, estimate_s=412.0, heard_at=now, temperature_c=67, power_w=164,
                power_limit_w=200, memory_used_bytes=7_900_000_000, foreign_memory_bytes=410_000_000, load_share=0.98,
            ),
            DeviceStatus(
                device_id="cuda:1", **gpu, action=Action.PAUSE_RELEASE, duty=0.0, preference="when.foreign_gpu",
                reason=Reason(
                    code=ReasonCode.DEVICE_WANTED, text="blender computes on cuda:1; goes on when it has ended"
                ),
                temperature_c=71, power_w=188, power_limit_w=200, memory_used_bytes=9_100_000_000,
                foreign_memory_bytes=9_100_000_000, load_share=1.0,
            ),
            DeviceStatus(
                device_id="cpu", kind="cpu", name="AMD Ryzen 9 7900", memory_bytes=64 << 30, action=Action.THROTTLE,
                duty=0.25, preference="when.while_in_use",
                reason=Reason(
                    code=ReasonCode.MACHINE_IN_USE,
                    text="somebody is at the machine; goes on after 5 min without input",
                ),
                unit=UnitKey("b05d" * 16), unit_kind="prefill", work="2,048 tokens from position 4,096",
                began_at=now, estimate_s=95.0, heard_at=now, temperature_c=58, memory_used_bytes=11_400_000_000,
                load_share=0.31,
            ),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
