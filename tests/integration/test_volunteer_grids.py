"""One volunteer of two real grids: each gets its cube, and one that goes away keeps nobody waiting."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.records import Submission
from memgrid_volunteer import running
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home
from memgrid_volunteer.stopping import Stopping
from tests.crews import ALONE, BLIND, INDEPENDENT
from tests.grids import campaign_of, eventually, push_model, running_coordinator, submit

ROOT = Path(__file__).resolve().parents[2]
TEXT = " ".join(f"Valve {number} opens at {number * 7 % 11} bar." for number in range(8))


@pytest.fixture(autouse=True)
def import_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


async def asked(coordinator: Coordinator, number: int) -> Submission:
    texts = {f"manual-{number}.txt": f"Manual {number}. {TEXT}"}
    return await submit(coordinator, texts, request_id=f"request-{number}", activation=INDEPENDENT, trust=ALONE)


async def completed(coordinator: Coordinator, submission: Submission) -> int:
    """How many units it took."""

    async def is_over() -> bool:
        return (await campaign_of(coordinator, submission)).state is not CampaignState.RUNNING

    await eventually(is_over)
    campaign = await campaign_of(coordinator, submission)
    assert campaign.state is CampaignState.COMPLETED
    return sum(campaign.units_by_state.values())


async def test_one_volunteer_makes_the_cubes_of_two_grids(tmp_path: Path, tiny_model_folder: Path) -> None:
    home, options = Home(tmp_path / "attic"), running.Options(threads=1, backoff=lambda attempt, rng: 0.05)
    stopping, lines = Stopping(), list[str]()
    async with AsyncExitStack() as stack, AsyncExitStack() as leaving:
        one, _ = await stack.enter_async_context(running_coordinator(tmp_path / "one", trust=BLIND))
        other, _ = await leaving.enter_async_context(running_coordinator(tmp_path / "other", trust=BLIND))
        submissions = []
        for share, grid in ((100, one), (30, other)):
            await push_model(grid, tiny_model_folder)
            submissions.append(await asked(grid, 1))
            url = grid.address.url
            # Who joins is not asked to compute: what starts at once is enough.
            quick = replace(options, worker_module="tests.workers.quick")
            await running.join(
                url, home, label="attic", invite_code="", options=quick, tell=lines.append, share=share
            )
        first, second = home.places()
        assert (first.membership().share, second.membership().share) == (100, 30)
        assert first.membership().account_id != second.membership().account_id
        (home.folder / "volunteer.toml").write_text('preset = "always"\n')
        run = asyncio.create_task(running.run(home, options, lines.append, stopping))
        try:
            units = [await completed(one, submissions[0]), await completed(other, submissions[1])]

            async def is_told() -> bool:
                return [grid["accepted"] for grid in home.status()["grids"]] == units

            await eventually(is_told)
            # The same model is of both, and lies here once.
            assert len(list((home.cache / "models").iterdir())) == 1
            await leaving.aclose()
            await completed(one, await asked(one, 2))
        finally:
            stopping.stop()
            await asyncio.wait_for(run, 30)
    history = History(home.folder)
    computed = history.computed_s(datetime(2020, 1, 1, tzinfo=UTC))
    history.close()
    assert computed.keys() == {first.grid_url, second.grid_url} and all(computed.values())
    assert not list(first.outbox.iterdir()) and not list(second.outbox.iterdir())
