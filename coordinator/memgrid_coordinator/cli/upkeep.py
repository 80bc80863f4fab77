"""`memgrid coordinator gc` and `scrub`: give room back, and look for damage, by hand; the sweeps do the same."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memgrid_coordinator.cli.opening import BlobsOption, DatabaseOption, DataOption, Opened, opened

if TYPE_CHECKING:
    from memgrid_coordinator.services.collecting import Collected
    from memgrid_coordinator.services.scrubbing import Scrubbed
    from memgrid_coordinator.store.blobs import BlobStore


def gc(
    data: DataOption,
    database: DatabaseOption = None,
    blobs: BlobsOption = None,
    grace_hours: Annotated[
        float | None, typer.Option(min=0.0, help="How long content stays that nothing names.", show_default="24")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Let content go that nothing names any more. The grid may run meanwhile."""
    with opened(data, database) as grid:
        grace = grid.settings.gc_grace if grace_hours is None else timedelta(hours=grace_hours)
        done = asyncio.run(_collect(grid, _blobs(grid, blobs), grace, dry_run))
    went = "would go" if dry_run else "went"
    typer.echo(f"{done.removed} blobs, {done.removed_bytes / 1e6:.1f} MB, {went}")
    typer.echo(f"{done.kept} blobs, {done.kept_bytes / 1e6:.1f} MB, stay")


def scrub(data: DataOption, database: DatabaseOption = None, blobs: BlobsOption = None) -> None:
    """Read all content and every row that has an address of its own; damage is put aside and computed again.

    Exits with 1 when anything was damaged. The grid may run meanwhile.
    """
    with opened(data, database) as grid:
        found = asyncio.run(_scrub(grid, _blobs(grid, blobs), grid.settings.data / "scrub.json"))
    for loss in found.losses:
        typer.echo(f"damaged: blob {loss.digest}: put aside; {loss.recomputed} units are open again", err=True)
        for manifest in loss.manifests:
            typer.echo(f"  published in {manifest}: push the same content again, or restore it", err=True)
    for row in found.rows:
        typer.echo(f"damaged: {row}", err=True)
    typer.echo(f"{found.blobs} blobs, {found.size_bytes / 1e6:.1f} MB, were read; {len(found.losses)} damaged")
    if found.losses or found.rows:
        raise typer.Exit(1)


def _blobs(grid: Opened, blobs: str | None) -> BlobStore:
    from memgrid_coordinator.store.blob_places import blobs_of  # --help needs no store

    settings = grid.settings if blobs is None else grid.settings.model_copy(update={"blobs_url": blobs})
    return blobs_of(settings)


async def _collect(grid: Opened, blobs: BlobStore, grace: timedelta, dry_run: bool) -> Collected:
    from memgrid_coordinator.services.collecting import Collecting, CollectRule

    settings = grid.settings
    rule = CollectRule(every=settings.gc_every, grace=grace, keep_failed=settings.gc_keep_failed)
    collecting = Collecting(store=grid.store, blobs=blobs, clock=grid.clock, rule=rule)
    return await collecting.run(is_trial=dry_run)


async def _scrub(grid: Opened, blobs: BlobStore, mark: Path) -> Scrubbed:
    from memgrid_coordinator.services.healing import Healing
    from memgrid_coordinator.services.scrubbing import Scrubbing

    healing = Healing(store=grid.store, clock=grid.clock, keep_failed=grid.settings.gc_keep_failed)
    scrubbing = Scrubbing(
        store=grid.store,
        blobs=blobs,
        healing=healing,
        clock=grid.clock,
        bytes_per_s=grid.settings.scrub_bytes_per_s,
        mark=mark,
    )
    return await scrubbing.run()
