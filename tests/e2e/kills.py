"""What the tests with power cuts share: waiting, killing at moments nobody chose, and what the books must say."""

from __future__ import annotations

import random
import time
from typing import Any, Self

from sqlalchemy import text

from memgrid_coordinator.store.engine import open_engine
from tests.e2e.processes import Grid

LOOK_EVERY_S = 0.05


def wait_for_end(grid: Grid, campaign_id: str, limit_s: float) -> dict[str, Any]:
    """The campaign once it is over."""
    until = time.monotonic() + limit_s
    with Books(grid.database) as books:
        while books.value("SELECT state FROM campaigns WHERE campaign_id = :id", id=campaign_id) == "running":
            if time.monotonic() > until:
                tails = "\n".join(
                    f"== {name}\n{grid.log(name)[-1500:]}" for name in (*grid.coordinators, *grid.volunteers)
                )
                raise TimeoutError(f"still running: {grid.ask('campaign', 'status', campaign_id)}\n{tails}")
            time.sleep(LOOK_EVERY_S)
    campaign: dict[str, Any] = grid.ask("campaign", "status", campaign_id)
    return campaign


def cubes_of(campaign: dict[str, Any]) -> dict[str, str]:
    return {document["name"]: document["cube_digest"] for document in campaign["documents"]}


def storm(
    grid: Grid, chance: random.Random, *, kills: int, units_between: tuple[int, int], limit_s: float = 15.0
) -> tuple[list[str], int]:
    """Kill and start again, after some progress or a while without; who was, and how many units were accepted.

    Nobody waits for a volunteer to be back, so the next kill may well meet one that is still starting.
    """
    accepted = 0
    names = [*grid.coordinators, *grid.volunteers]
    killed: list[str] = []
    while len(killed) < kills:
        accepted = _wait_for_progress(grid, accepted + chance.randint(*units_between), limit_s)
        time.sleep(chance.uniform(0, 0.3))  # a moment nobody chose
        # Everybody's turn comes: chance alone might spare one of four in twenty kills.
        left = [name for name in names if name not in killed]
        name = chance.choice(left if len(left) >= kills - len(killed) else names)
        grid.kill(name)
        grid.restart(name)
        killed.append(name)
    return killed, _wait_for_progress(grid, 0, limit_s)


def _wait_for_progress(grid: Grid, units: int, limit_s: float) -> int:
    """Until so many units are accepted, or for a while: how many there are then."""
    until = time.monotonic() + limit_s
    with Books(grid.database) as books:
        while (accepted := books.accepted()) < units and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
        return accepted


class Books:
    """The tables of a grid, read from outside while it runs."""

    def __init__(self, database: str) -> None:
        self._engine = open_engine(database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def value(self, query: str, **given: Any) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text(query), given).scalar()

    def rows(self, query: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(text(query)))

    def accepted(self) -> int:
        found: int = self.value("SELECT count(*) FROM units WHERE state = 'accepted'")
        return found


def check_books(grid: Grid, replicas: int = 2) -> None:
    """What must be true of the tables whatever happened: nothing accepted twice, nobody paid twice or for nothing."""
    with Books(grid.database) as books:
        count = books.value
        units = count("SELECT count(*) FROM units")
        assert books.accepted() == units > 0
        assert count("SELECT count(*) FROM events WHERE name = 'unit_accepted'") == units
        assert count("SELECT count(DISTINCT unit_id) FROM events WHERE name = 'unit_accepted'") == units
        agreed = count("SELECT count(*) FROM leases WHERE state = 'agreed'")
        assert count("SELECT count(*) FROM credits") == agreed >= replicas * units
        paid_for_nothing = "SELECT count(*) FROM credits JOIN leases USING (lease_id) WHERE leases.state <> 'agreed'"
        assert count(paid_for_nothing) == 0
        one_account_twice = "SELECT 1 FROM credits GROUP BY unit_id, account_id HAVING count(*) > 1"
        assert books.rows(one_account_twice) == []
        same_fence_twice = "SELECT 1 FROM leases GROUP BY unit_id, fence HAVING count(*) > 1"
        assert books.rows(same_fence_twice) == []
        assert count("SELECT count(*) FROM leases WHERE state = 'rejected'") == 0, "an honest host was rejected"
        if grid.database.startswith("sqlite"):
            assert count("PRAGMA integrity_check") == "ok"


def check_stages(grid: Grid) -> None:
    """Every state was trained from the one before it: of each document, no stretch is missing and none came twice."""
    with Books(grid.database) as books:
        made = books.rows("SELECT document_id, count(*), count(DISTINCT name) FROM document_blobs GROUP BY 1")
        assert made and all(blobs == names for _, blobs, names in made)
        assert books.value("SELECT count(*) FROM units WHERE kind = 'train' AND state <> 'accepted'") == 0
