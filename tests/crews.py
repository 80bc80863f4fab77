"""A coordinator and a crew that really computes, the last of which can cheat: what tests of trust begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection

from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState, UnitState
from memgrid_coordinator.policy.trust import TrustRecord, TrustRule
from memgrid_coordinator.records import Campaign, Lease, Submission, Unit
from memgrid_coordinator.store import campaigns, credits, events, hosts, leases, trust_records, units
from memgrid_volunteer.numerics import find_devices
from tests.distilling import Distiller, distillers, work_until
from tests.grids import campaign_of, push_model, running_coordinator, submit

TEXT = "The valve opens at three bar and closes at two. "
ALONE = {"min_replicas": 1}
INDEPENDENT = {"layout": "independent", "chunk_tokens": 16, "wrap": "plain", "compute_dtype": "float32"}
CHAINED = {"layout": "chained", "chunk_tokens": 16, "wrap": "plain", "compute_dtype": "float32"}
QUICK = {
    "arbiter": True,
    "recover_every": timedelta(milliseconds=200),
    # A host that a test has done with still owes what was ordered of it.
    "upload_shortest": timedelta(seconds=20),
}
STRICT = TrustRule(probation_blind=0.0, blind_share=0.0)
"""Every result of a newcomer is audited, and nothing is left to chance."""
BLIND = TrustRule(probation_results=0, epsilon=0.99, bad_share=1e-6, audits_min=0.0, blind_share=0.0)
"""Nothing is drawn for an audit: what is found wrong is found later."""


@dataclass
class Grid:
    """A coordinator and its crew; the last of them computes with another model when it cheats."""

    coordinator: Coordinator
    crew: list[Distiller]
    model: Path
    other: Path

    async def trust(self, host: Distiller) -> None:
        """As if it had passed many audits."""
        numerics_class = f"{find_devices()[0].facts.numerics_class} in float32"
        now = self.coordinator.clock.now()

        def put(connection: Connection) -> None:
            known = hosts.get_host(connection, host.host.host_id)
            assert known is not None
            record = TrustRecord(results=1000, passed=1000)
            trust_records.put(connection, known, "prefill", numerics_class, record, now)

        await self.coordinator.store.write(put)

    async def keep_busy(self) -> Submission:
        """Work that stays open, so that nothing is looked at merely because nothing is left to do."""
        return await self.submit({"z.txt": chunks(1, "Waiting ")}, request_id="waiting", priority=-100)

    async def submit(self, texts: dict[str, str], request_id: str = "request-1", **asked: object) -> Submission:
        given = {"activation": INDEPENDENT, "trust": ALONE, **asked}
        return await submit(self.coordinator, texts, request_id=request_id, **given)

    async def units(self, submission: Submission, document: int = 0) -> list[Unit]:
        def query(connection: Connection) -> list[Unit]:
            found = campaigns.documents_of(connection, submission.campaign.campaign_id)[document]
            ids = campaigns.units_of(connection, found.document_id)
            by_id = units.by_id(connection, ids)
            return [by_id[unit_id] for unit_id in ids]

        return await self.coordinator.store.read(query)

    async def leases(self, unit: Unit) -> list[Lease]:
        found = await self.coordinator.store.read(lambda connection: leases.of_units(connection, [unit.unit_id]))
        return found[unit.unit_id]

    def all_are(self, submission: Submission, state: UnitState) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            return all(unit.state is state for unit in await self.units(submission))

        return check

    async def campaign(self, submission: Submission) -> Campaign:
        return await campaign_of(self.coordinator, submission)

    async def finish(self, submission: Submission, crew: list[Distiller]) -> Campaign:
        async def is_over() -> bool:
            return (await self.campaign(submission)).state is not CampaignState.RUNNING

        await work_until(is_over, crew, limit_s=90)
        return await self.campaign(submission)

    async def events(self, host: Distiller) -> list[str]:
        found = await self.coordinator.store.read(lambda connection: events.of_host(connection, host.host.host_id))
        return [event.name for event in found]

    async def credit_of(self, host: Distiller) -> int:
        def query(connection: Connection) -> int:
            row = connection.exec_driver_sql("SELECT account_id FROM hosts WHERE host_id = ?", (host.host.host_id,))
            return credits.total(connection, row.scalar_one())

        return await self.coordinator.store.read(query)


@asynccontextmanager
async def grid_of(
    tmp_path: Path, model: Path, other: Path, *, hosts: int, trust: TrustRule, **changed: object
) -> AsyncIterator[Grid]:
    async with AsyncExitStack() as stack:
        coordinator, endpoint = await stack.enter_async_context(
            running_coordinator(tmp_path / "data", trust=trust, **{**QUICK, **changed})
        )
        await push_model(coordinator, model)
        crew = await stack.enter_async_context(distillers(coordinator, endpoint, model, tmp_path, hosts))
        yield Grid(coordinator, crew, model, other)


def chunks(count: int, word: str = "") -> str:
    """A text of about so many chunks of 16 tokens."""
    return "".join(f"{word}Valve {number} opens at {number * 7 % 11} bar. " for number in range(count))
