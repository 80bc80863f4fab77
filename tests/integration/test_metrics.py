"""Every series that is declared is served, and moves when its subject does."""

from __future__ import annotations

from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.testing import SimulatedGpu
from tests.grids import push_model, run_until_ended, running_coordinator, simulated_hosts, submit

UNTOUCHED_HERE = {
    "memgrid_audit_flops_total",
    "memgrid_audited_flops_total",
    "memgrid_audits_due",
    "memgrid_checkpoints_total",
    "memgrid_classes_suspended",
    "memgrid_connections_refused_total",
    "memgrid_cube_pulls_total",
    "memgrid_cubes_retracted_total",
    "memgrid_hosts_suspended",
    "memgrid_pulled_flops_total",
    "memgrid_refusals_total",
    "memgrid_releases_total",
    "memgrid_shared_flops",
    "memgrid_shared_units",
    "memgrid_sweep_failures_total",
    "memgrid_turned_away_total",
    "memgrid_units_given_up_total",
    "memgrid_units_recalled_total",
}
"""Nothing goes wrong in this test, nothing is trained, and nobody comes for the cube."""
OVER = {
    "memgrid_calls_waiting",
    "memgrid_calls_working",
    "memgrid_engine_running",
    "memgrid_engine_waiting",
    "memgrid_hosts_busy",
    "memgrid_leases",
    "memgrid_queue_age_seconds",
    "memgrid_queue_units",
    "memgrid_uploads",
}
"""What there is nothing of when all is done."""
NOT_YET = {
    "memgrid_blobs_collected_bytes_total",
    "memgrid_blobs_damaged_total",
    "memgrid_blobs_kept",
    "memgrid_blobs_kept_bytes",
    "memgrid_blobs_scrubbed_bytes_total",
    "memgrid_rows_damaged",
}
"""The first look at what is kept comes minutes after the start."""


async def series_of(endpoint: GridEndpoint) -> dict[str, float]:
    async with async_http_client(endpoint) as http:
        answer: httpx.Response = await http.get("/metrics")
    families = text_string_to_metric_families(answer.text)
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            name = sample.name.removesuffix("_count")
            if not name.endswith(("_bucket", "_sum", "_created")):
                found[name] = found.get(name, 0.0) + sample.value
    return found


async def test_a_campaign_moves_every_series(tmp_path: Path, tiny_model_folder: Path) -> None:
    geometry = identity_of_folder(tiny_model_folder).geometry
    async with running_coordinator(tmp_path) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        submission = await submit(coordinator, {"manual.txt": "The valve opens at three bar. " * 8})
        async with simulated_hosts(endpoint, 3) as hosts:
            gpus = [SimulatedGpu(geometry), SimulatedGpu(geometry), SimulatedGpu(geometry, bias=0.2)]
            assert (await hosts[2].sync(want=1)).leases, "the cheat has its hands in before the others begin"
            await run_until_ended(coordinator, submission, dict(zip(hosts, gpus, strict=True)))
        gauges = {"memgrid_units", "memgrid_leases", "memgrid_campaigns", "memgrid_hosts_alive"}
        await coordinator.sweeps.run_now("gauges")
        served = await series_of(endpoint)
    declared = {
        sample.name.removesuffix("_count")
        for family in coordinator.metrics.registry.collect()
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_sum", "_created"))
    }
    assert declared <= set(served)
    still = {name for name, value in served.items() if name.startswith("memgrid_") and not value}
    assert still <= UNTOUCHED_HERE | OVER | NOT_YET
    assert gauges <= set(served)
    assert served["memgrid_hosts_alive"] == 3
    assert served["memgrid_cubes_published_total"] == 1
