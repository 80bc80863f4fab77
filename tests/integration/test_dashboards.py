"""Every panel of every dashboard shows something about a grid that works, and every series is shown somewhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.errors import TokenRequiredError
from memgrid.testing import SimulatedGpu, SimulatedHost
from memgrid.units import Reason, ReasonCode, Release
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.heavy.measured import MeasuredEngine
from tests.distilling import distill, distillers, work_until
from tests.grids import (
    campaign_of,
    eventually,
    push_model,
    run_until_ended,
    running_coordinator,
    simulated_hosts,
    submit,
    work_on,
)
from tests.integration.prometheus import Prometheus, PromQlError, boards, needs_prometheus, panels_of, watching

TEXT = "The valve opens at three bar. " * 8
NOT_SHOWN = {
    "memgrid_campaign_state": "an alert asks it",
    "process_virtual_memory_bytes": "resident memory says more",
}
"""Series that are on no dashboard, and why."""
_STAND_INS = {
    "$__rate_interval": "1m",
    "$__range": "10m",
    "$job": "memgrid",
    "$instance": ".*",
    "$campaign": ".*",
}
_SERIES = re.compile(r"\b((?:memgrid|process)_[a-z_]+)")


@needs_prometheus
async def test_every_panel_shows_something_about_a_grid_that_works(tmp_path: Path, tiny_model_folder: Path) -> None:
    data = tmp_path / "data"
    async with (
        running_coordinator(data, recover_every=timedelta(milliseconds=200)) as (coordinator, endpoint),
        watching(coordinator, tmp_path) as prometheus,
        simulated_hosts(endpoint, 3) as hosts,
    ):
        await eventually(prometheus.scrapes)
        await make_traffic(coordinator, endpoint, tiny_model_folder, tmp_path, hosts)
        await settle(coordinator, prometheus)
        wrong = {
            "silent": [line async for line in silent_queries(prometheus)],
            "unloved": await unloved_series(coordinator, prometheus),
            "no choice": await empty_choices(prometheus),
            "ill": [rule["name"] for rule in await prometheus.rules() if rule["health"] != "ok"],
        }
    assert not any(wrong.values()), json.dumps({what: found for what, found in wrong.items() if found}, indent=2)


async def make_traffic(
    coordinator: Coordinator,
    endpoint: GridEndpoint,
    model: Path,
    folder: Path,
    hosts: list[SimulatedHost],
) -> None:
    """All that happens to a grid in its first week: cubes of both recipes, a cheat, a quitter, readers, mistakes."""
    await push_model(coordinator, model)
    geometry = identity_of_folder(model).geometry
    gpus = [SimulatedGpu(geometry), SimulatedGpu(geometry), SimulatedGpu(geometry, bias=0.2)]
    first = await submit(coordinator, {"manual.txt": TEXT})
    offers = (await hosts[2].sync(want=2)).leases
    await quit_one(hosts[2], offers[0])
    await run_until_ended(coordinator, first, dict(zip(hosts, gpus, strict=True)))
    await submit(coordinator, {"again.txt": TEXT}, request_id="2", publish=published("again"))
    await pull(coordinator, endpoint)
    await make_mistakes(coordinator, endpoint)
    asked = {"recipe": "distill", "distill": distill(train={"steps": 3}), "publish": published("book")}
    trained = await submit(coordinator, {"book.txt": TEXT}, request_id="3", **asked)
    async with distillers(coordinator, endpoint, model, folder, 2) as crew:

        async def is_over() -> bool:
            return (await campaign_of(coordinator, trained)).state != "running"

        await work_until(is_over, crew)
    await submit(coordinator, {"next.txt": "A new book. " + TEXT}, request_id="4", publish=published("next"))
    held = (await hosts[0].sync(want=1)).leases
    late = await work_on(coordinator, gpus[0], held[0])
    await hosts[1].sync(work=[late])  # of a lease that is another's: turned down at the door
    await hosts[0].sync(want=0, held=held)


def published(name: str) -> dict[str, str]:
    return {"namespace": name, "version": "1.0.0", "licence": "CC-BY-4.0"}


async def quit_one(host: SimulatedHost, offer: Any) -> None:
    reason = Reason(code=ReasonCode.OWNER_PAUSED)
    await host.sync(released=[Release(lease_id=offer.lease_id, fence=offer.fence, reason=reason)])


async def pull(coordinator: Coordinator, endpoint: GridEndpoint) -> None:
    """A reader fetches the first cube, whole."""
    async with async_http_client(endpoint) as http:
        listed = (await http.get("/v2/handbook/manual/manifests/1.0.0")).json()
        for layer in listed["layers"]:
            answer = await http.get(f"/v2/handbook/manual/blobs/{layer['digest']}")
            assert len(answer.content) == layer["size"]
    assert await coordinator.sweeps.run_now("pulls") == 1


async def make_mistakes(coordinator: Coordinator, endpoint: GridEndpoint) -> None:
    """Of a reader who asks for what is not there, of somebody without a token, and of the engine."""
    async with async_http_client(endpoint) as http:
        assert (await http.get("/v2/handbook/nothing/manifests/1.0.0")).status_code == 404
    stranger = SimulatedHost(endpoint=endpoint, token="nobody")
    with pytest.raises(TokenRequiredError):
        await stranger.sync()
    await stranger.close()
    assert isinstance(coordinator.engine, MeasuredEngine)
    with pytest.raises(FileNotFoundError):
        await coordinator.engine.run(os.listdir, "/nowhere")


async def settle(coordinator: Coordinator, prometheus: Prometheus) -> None:
    """Until what happened was scraped, and scraped again: a rate needs two."""
    await coordinator.sweeps.run_now("gauges")

    async def count() -> float:
        (found,) = await prometheus.query('count_over_time(memgrid_queue_units{job="memgrid"}[1m])')
        return float(found["value"][1])

    seen = await count()
    await eventually(lambda: _is_more(count, seen + 3))


async def _is_more(count: Any, than: float) -> bool:
    return bool(await count() > than)


def queries_of(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The title of each panel with each of its expressions, as Grafana would send it."""
    for panel in panels_of(board):
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in _STAND_INS.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, f"{panel['title']}: no stand-in for a variable in {expr}"
            yield panel["title"], expr


async def silent_queries(prometheus: Prometheus) -> Any:
    """What could not be understood, or gave nothing."""
    for name, board in boards().items():
        for title, expr in queries_of(board):
            try:
                found = await prometheus.query(expr)
            except PromQlError as error:
                yield f"{name}: {title}: {error}: {expr}"
                continue
            if not found:
                yield f"{name}: {title}: no data: {expr}"


async def unloved_series(coordinator: Coordinator, prometheus: Prometheus) -> dict[str, list[str]]:
    """Names that are served and on no dashboard, on a dashboard and not served, or declared and never served."""
    used = {name for board in boards().values() for _, expr in queries_of(board) for name in _SERIES.findall(expr)}
    families = {name: family for family in coordinator.metrics.registry.collect() for name in names_of(family)}
    shown = {families[name].name for name in used if name in families}
    every = {family.name for family in families.values()}
    served = set(await prometheus.label_values("__name__", '{job="memgrid"}'))
    return {
        key: sorted(found)
        for key, found in {
            "served, and on no dashboard": every - shown - set(NOT_SHOWN),
            "on a dashboard, and not in metrics.py": used - set(families),
            "on a dashboard, and not served": used - served,
            "said not to be shown, and not there": set(NOT_SHOWN) - every,
        }.items()
        if found
    }


def names_of(family: Any) -> set[str]:
    """What a family's series are called, by its type."""
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}[family.type]
    return {family.name + end for end in ends}


async def empty_choices(prometheus: Prometheus) -> list[str]:
    """Variables of dashboards that offer nothing."""
    empty = []
    for board in boards().values():
        for variable in board["templating"]["list"]:
            if variable["type"] != "query":
                continue
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"].replace("$job", "memgrid"))
            assert asked, variable["query"]
            if not await prometheus.label_values(asked[2], asked[1]):
                empty.append(variable["name"])
    return empty
