"""A donor's second machine goes on where the first was stopped, with real workers; nobody else gets anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memgrid.endpoint import async_http_client
from memgrid.kinds.prefill import KV_FILE
from memgrid.testing import FACTS, SimulatedHost
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import LeaseState
from memgrid_coordinator.records import Checkpoint, Lease
from memgrid_coordinator.store import checkpoints, leases
from memgrid_volunteer import running, worth
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.kinds.committed import COMMITTED_FILE
from memgrid_volunteer.kinds.job import Job, Outcome, Progress
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.sandbox import Sandbox
from memgrid_volunteer.session import enrol
from memgrid_volunteer.stopping import Stopping
from tests.grids import eventually, push_model, running_coordinator, submit
from tests.warm import warm_processes

TOKENS = 4200
"""The real worker reads 2,048 tokens of so small a model at once, and commits after each."""
SLOW = 'preset = "always"\n[devices.cpu]\nduty_percent = 1\n[disk]\nfree_min_gb = 0\n'
FAST = SLOW.replace("duty_percent = 1", "duty_percent = 100")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with warm_processes(tmp_path_factory.mktemp("warm")) as environment:
        yield environment


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that reads texts so long that a unit is not done at once."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    return folder


@pytest.fixture
def told(warm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """What workers said of how far they are, by host."""
    for name, value in warm.items():
        monkeypatch.setenv(name, value)
    # A unit of a test takes a second, and is written as if it took a minute.
    monkeypatch.setattr(worth, "ROUND_TRIPS_S", 0.0)
    monkeypatch.setattr(worth, "ASSUMED_BYTES_PER_S", 1e12)
    heard: dict[str, list[float]] = {}
    run = Sandbox.run

    async def listen(sandbox: Sandbox, job: Job, hear: Callable[[Progress], None]) -> Outcome:
        def note(progress: Progress) -> None:
            heard.setdefault(job.out_dir.parents[2].name, []).append(progress.done)
            hear(progress)

        return await run(sandbox, job, note)

    monkeypatch.setattr(Sandbox, "run", listen)
    return heard


def quickly(attempt: int, rng: random.Random) -> float:
    return 0.05


async def joined(coordinator: Coordinator, folder: Path, label: str, key_of: Home | None = None) -> Home:
    """A home of a host; with the key of another home it is of the same account."""
    home = Home(folder / label)
    home.make()
    if key_of is not None:
        shutil.copy(key_of.folder / "volunteer.key", home.folder / "volunteer.key")
    url = coordinator.address.url
    _, enrolled = await enrol(url, home=None, key=home.key(), label=label, facts=FACTS, invite_code="")
    ids = {"account_id": enrolled.account_id, "host_id": enrolled.host_id}
    home.join(Membership(url=url, name="memgrid", label=label, **ids))
    return home


class Once(Stopping):
    """Asks politely, however often."""

    is_asked = False

    def stop(self) -> None:
        if not self.is_asked:
            self.is_asked = True
            super().stop()


@contextlib.asynccontextmanager
async def at_work(home: Home, preferences: str) -> AsyncIterator[Stopping]:
    (home.folder / "volunteer.toml").write_text(preferences)
    stopping = Once()
    options = running.Options(
        threads=1, worker_module="tests.workers.committing", isolation=Isolation.NONE, backoff=quickly
    )
    task = asyncio.create_task(running.run(home, options, lambda line: None, stopping))
    try:
        yield stopping
    finally:
        stopping.stop()
        await asyncio.wait_for(task, 30)


def pause(home: Home, stopping: Stopping) -> None:
    Control(home.folder).pause(datetime.now(UTC))


def leave(home: Home, stopping: Stopping) -> None:
    stopping.stop()


def kept(coordinator: Coordinator) -> Callable[[], Awaitable[Checkpoint | None]]:
    async def find() -> Checkpoint | None:
        found = await coordinator.store.read(
            lambda connection: [
                checkpoints.get(connection, lease.lease_id) for lease in leases.of_units(connection, [1])[1]
            ]
        )
        return next((one for one in found if one is not None and one.received_at is not None), None)

    return find


@pytest.mark.parametrize("stop", [pause, leave])
async def test_the_second_machine_goes_on_where_the_first_was_stopped(
    stop: Callable[[Home, Stopping], None], told: dict[str, list[float]], tmp_path: Path, model: Path
) -> None:
    async with running_coordinator(tmp_path / "data") as (coordinator, endpoint):
        await push_model(coordinator, model)
        layout = {"chunk_tokens": TOKENS, "wrap": "plain", "compute_dtype": "float32"}
        await submit(coordinator, {"manual.txt": "Valve 7 opens at three bar. " * 400}, activation=layout)
        attic = await joined(coordinator, tmp_path, "attic")
        cellar = await joined(coordinator, tmp_path, "cellar", key_of=attic)
        stranger = SimulatedHost(endpoint=endpoint)
        await stranger.enrol()
        async with at_work(attic, SLOW) as stopping:
            out = attic.work / "out"

            async def has_committed() -> bool:
                return any(out.glob(f"*/{COMMITTED_FILE}"))

            await eventually(has_committed)
            stop(attic, stopping)
            left = await eventually(kept(coordinator))
        assert 0 < left.progress < 1 and max(told["attic"]) < 1
        (offer,) = (await stranger.sync(want=1)).leases
        assert offer.checkpoint is None
        async with async_http_client(endpoint, stranger.token) as http:
            for place in (f"checkpoints/{left.lease_id}", "inputs"):
                assert (await http.get(f"/v2/grid/{place}/blobs/{left.digest}")).status_code == 404
        async with at_work(cellar, FAST):

            async def of_unit() -> list[Lease]:
                found = await coordinator.store.read(lambda connection: leases.of_units(connection, [left.unit_id]))
                return [lease for lease in found[left.unit_id] if lease.state is LeaseState.REPORTED]

            (report,) = await eventually(of_unit)
        await stranger.close()
        assert report.host_id == cellar.membership().host_id
        # What was left is what it began with; nothing before that was computed again.
        assert told["cellar"][0] == pytest.approx(left.progress) and min(told["cellar"]) == told["cellar"][0]
        assert report.outputs[0].name == KV_FILE
