"""Real volunteers with real workers, against the real coordinator: a chained campaign to its cube."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.store import leases, units
from memgrid_volunteer import running
from memgrid_volunteer.home import Home
from memgrid_volunteer.stopping import Stopping
from tests.grids import campaign_of, eventually, push_model, running_coordinator, submit

ROOT = Path(__file__).resolve().parents[2]
TEXT = " ".join(f"Valve {number} opens at {number * 7 % 11} bar; see page {number * 13}." for number in range(12))


@pytest.fixture(autouse=True)
def import_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def quickly(attempt: int, rng: random.Random) -> float:
    return 0.05


def tell_nobody(line: str) -> None:
    """The owner does not look."""


@contextlib.asynccontextmanager
async def volunteers(
    coordinator: Coordinator, folder: Path, modules: dict[str, str]
) -> AsyncIterator[dict[str, Home]]:
    """Join and run a volunteer for each name, with that worker module."""
    homes = {name: Home(folder / name) for name in modules}
    stoppings: list[Stopping] = []

    async def run(name: str) -> None:
        options = running.Options(threads=1, worker_module=modules[name], backoff=quickly)
        url = coordinator.address.url
        await running.join(url, homes[name], label=name, invite_code="", options=options, tell=tell_nobody)
        (homes[name].folder / "volunteer.toml").write_text('preset = "always"\n')
        stopping = Stopping()
        stoppings.append(stopping)
        await running.run(homes[name], options, tell_nobody, stopping)

    tasks = [asyncio.create_task(run(name)) for name in modules]
    try:
        yield homes
    finally:
        for stopping in stoppings:
            stopping.stop()
        _, late = await asyncio.wait(tasks, timeout=20)
        assert not late
        for task in tasks:
            task.result()


async def finished(coordinator: Coordinator, submission: Any) -> Any:
    async def is_over() -> bool:
        return (await campaign_of(coordinator, submission)).state is not CampaignState.RUNNING

    await eventually(is_over, limit_s=120)
    return await campaign_of(coordinator, submission)


HONEST = "memgrid_volunteer.worker"


async def test_two_volunteers_make_the_cache_that_the_model_would(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with running_coordinator(tmp_path / "data") as (coordinator, _):
        await push_model(coordinator, tiny_model_folder)
        layout = {"layout": "chained", "chunk_tokens": 64, "wrap": "plain", "store_dtype": "float32"}
        submission = await submit(coordinator, {"manual.txt": TEXT}, activation=layout)
        async with volunteers(coordinator, tmp_path, {"attic": HONEST, "cellar": HONEST}) as homes:
            campaign = await finished(coordinator, submission)

            async def all_settled() -> bool:
                return all(home.status()["awaiting_verdict"] == 0 for home in homes.values())

            await eventually(all_settled)
        assert campaign.state is CampaignState.COMPLETED
        count = sum(campaign.units_by_state.values())
        assert count > 2 and campaign.reports_by_verdict == {"agreed": 2 * count}
        for home in homes.values():
            status = home.status()
            assert (status["accepted"], status["rejected"]) == (count, 0)
            assert status["credit_flops"] == campaign.produced_flops
        await compare_with_model(coordinator, tiny_model_folder, count)


async def compare_with_model(coordinator: Coordinator, folder: Path, count: int) -> None:
    """The accepted chunks, laid end to end, are what the model computes in one go."""
    found = await coordinator.store.read(lambda connection: units.by_id(connection, range(1, count + 1)))
    in_order = [found[unit_id] for unit_id in sorted(found)]
    chunks = [load_file(coordinator.blobs.path_of(unit.output_digest)) for unit in in_order]
    tokens = torch.cat([chunk["tokens"] for chunk in chunks]).tolist()
    assert AutoTokenizer.from_pretrained(folder).decode(tokens, skip_special_tokens=True) == TEXT
    cache = DynamicCache()
    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.tensor([tokens]), past_key_values=cache)
    for layer, filled in enumerate(cache.layers):
        joined = torch.cat([chunk[f"l{layer}.k"] for chunk in chunks], dim=1)
        torch.testing.assert_close(joined, filled.keys[0], rtol=0, atol=2e-5)


async def test_a_worker_with_a_wrong_model_is_caught(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with running_coordinator(tmp_path / "data") as (coordinator, _):
        await push_model(coordinator, tiny_model_folder)
        submission = await submit(coordinator, {"manual.txt": TEXT})
        crew = {"attic": HONEST, "cellar": HONEST, "cheat": "tests.workers.cheat"}
        async with volunteers(coordinator, tmp_path, crew) as homes:
            campaign = await finished(coordinator, submission)
        assert campaign.state is CampaignState.COMPLETED
        every = await coordinator.store.read(lambda connection: leases.of_units(connection, range(1, 99)))
        rejected = {lease.host_id for group in every.values() for lease in group if lease.state == "rejected"}
        assert rejected <= {homes["cheat"].membership().host_id}
        assert homes["attic"].status()["rejected"] == homes["cellar"].status()["rejected"] == 0


async def test_the_coordinator_may_restart_in_the_middle(tmp_path: Path, tiny_model_folder: Path) -> None:
    texts = {f"manual-{number}.txt": f"Manual {number}. {TEXT}" for number in range(4)}
    async with contextlib.AsyncExitStack() as stack:
        async with running_coordinator(tmp_path / "data") as (coordinator, endpoint):
            await push_model(coordinator, tiny_model_folder)
            submission = await submit(coordinator, texts)
            crew = volunteers(coordinator, tmp_path, {"attic": HONEST, "cellar": HONEST})
            homes = await stack.enter_async_context(crew)

            async def begun() -> bool:
                return any(home.status().get("accepted", 0) > 1 for home in homes.values())

            await eventually(begun, limit_s=120)
            port = coordinator.address.http_port
        async with running_coordinator(tmp_path / "data", http_port=port) as (again, _):
            campaign = await finished(again, submission)
            assert campaign.state is CampaignState.COMPLETED
            count = sum(campaign.units_by_state.values())
            assert campaign.reports_by_verdict.get("rejected", 0) == 0
            assert campaign.units_by_state == {"accepted": count}
            assert endpoint.url == f"https://127.0.0.1:{port}"
            await stack.aclose()
