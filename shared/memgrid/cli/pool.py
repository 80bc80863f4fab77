"""`memgrid search | info | pull | verify | rm`: find cubes, and take those that are worth it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from memgrid.cli.options import GridOption, JsonOption, TokenOption, print_json, trusted_keys
from memgrid.cli.pricing import Rates, measured_flops_per_s, price_json, price_table
from memgrid.cube.cube import MemCube, Verification
from memgrid.cube.manifest import MANIFEST_FILE
from memgrid.endpoint import GridUrl
from memgrid.errors import InvalidError, UnavailableError
from memgrid.grids import GridTrust, memgrid_home
from memgrid.pool.client import Pool
from memgrid.pool.registry import Progress as Moved
from memgrid.text import bytes_text, flops_text

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="CUBE", help="namespace/name[:tag][@sha256:…]", show_default=False)
]


_NUMBERS = ("tokens", "size", "gap closed", "took")


def search(
    words: Annotated[list[str] | None, typer.Argument(help="Words that name or title must have.")] = None,
    base: Annotated[str | None, typer.Option(help="Only cubes for this base model.")] = None,
    kind: Annotated[str | None, typer.Option(help="plaintext, activation or parameter.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 50,
    grid: GridOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find cubes in a grid's pool."""
    with Pool(grid) as pool:
        found = pool.search(" ".join(words or []), base=base, kind=kind, limit=limit)
    if as_json:
        print_json([asdict(listing) for listing in found])
        return
    table = _table("cube", "kind", "base model", "tokens", "size", "gap closed", "licence", "took", "title")
    for cube in found:
        size, took = bytes_text(cube.bytes), flops_text(cube.produced_flops)
        name, closed = f"{cube.repository}:{cube.tag}", "" if cube.gap_closed is None else f"{cube.gap_closed:.0%}"
        tokens = f"{cube.tokens:,}"
        table.add_row(name, cube.kind, cube.base, tokens, size, closed, cube.licence, took, cube.title)
    Console().print(table if found else "no cube matches")


def info(
    cube: ReferenceArgument,
    bandwidth: Annotated[
        float | None, typer.Option(help="Your line in MB/s; else measured on a few megabytes of the cube.")
    ] = None,
    gflops: Annotated[
        float | None, typer.Option(help="What this machine computes, in GFLOP/s; else measured with numpy.")
    ] = None,
    grid: GridOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a cube is, what it weighs, what it saves, and whether pulling it pays here."""
    with Pool(grid) as pool:
        offer = pool.info(cube)
        line = _positive(bandwidth, "--bandwidth", 1e6) or pool.measure_line(cube)
    rates = Rates(
        line_bytes_per_s=line,
        line_is_measured=bandwidth is None,
        flops_per_s=_positive(gflops, "--gflops", 1e9) or measured_flops_per_s(),
        flops_are_measured=gflops is None,
    )
    if as_json:
        print_json({**offer.to_json(), "break_even": price_json(offer, rates)})
    else:
        Console().print(price_table(offer, rates))


def pull(
    cube: ReferenceArgument,
    into: Annotated[Path | None, typer.Option(help="Also copy it into this new or empty folder.")] = None,
    grid: GridOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a cube, verified; a cut download goes on where it was cut."""
    with Pool(grid, token) as pool, _progress(cube, shown=not as_json) as (start, moved):
        # Without the grid there may still be a copy on this machine.
        with suppress(UnavailableError):
            start(pool.info(cube).download_bytes)
        pulled = pool.pull(cube, into, progress=moved)
    if as_json:
        print_json({**pulled.info().to_json(), "folder": str(pulled.folder)})
        return
    size = bytes_text(pulled.manifest.payload_bytes)
    typer.echo(f"{pulled.manifest.name} {pulled.manifest.version}: {size}, verified")
    typer.echo(str(pulled.folder))


def verify(
    cube: Annotated[str, typer.Argument(metavar="CUBE|FOLDER", help="A pulled cube, or a cube's folder.")],
    key: Annotated[
        list[str] | None, typer.Option(help="Trust this Ed25519 public key (hex) instead of the known grids'.")
    ] = None,
    grid: GridOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a cube, and who signed it."""
    if (Path(cube) / MANIFEST_FILE).is_file() or key:
        found = MemCube.open(Path(cube)).verify(_keys(key, grid))
    else:
        with Pool(grid) as pool:
            found = pool.verify(cube)
    if as_json:
        print_json(_verification_json(found))
        return
    typer.echo(f"verified: {found.files} files, {bytes_text(found.size_bytes)}, {found.digest}")
    typer.echo(f"signed by key {found.provenance.key_id}")


def rm(cubes: Annotated[list[str], typer.Argument(metavar="CUBE…")], grid: GridOption = None) -> None:
    """Remove cubes from this machine; the pool keeps them."""
    with Pool(grid) as pool:
        for cube in cubes:
            typer.echo(f"removed {cube}: {bytes_text(pool.rm(cube))} freed")


@contextmanager
def _progress(what: str, *, shown: bool) -> Iterator[tuple[Any, Moved]]:
    """A bar in bytes on standard error; `start` gives it its length."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    hidden = not (shown and console.is_terminal)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield (
            lambda total_bytes: progress.update(task, total=total_bytes),
            lambda moved_bytes: progress.advance(task, moved_bytes),
        )


def _keys(given: list[str] | None, grid: str | None) -> list[bytes]:
    """The keys to trust for a folder: those given, that of the grid given, or those of every grid met."""
    if given:
        return trusted_keys(given)
    known = GridTrust(memgrid_home()).all()
    if grid:
        base = GridUrl.parse(grid).base
        known = tuple(trusted for trusted in known if trusted.url == base)
    if not known:
        raise InvalidError("no grid's key is known here: use --key, or pull something from the grid first")
    return [trusted.grid_key for trusted in known]


def _positive(value: float | None, option: str, unit: float) -> float | None:
    if value is not None and not value > 0:
        raise InvalidError(f"{option}: expected a number above 0, found {value}")
    return None if value is None else value * unit


def _verification_json(found: Verification) -> dict[str, Any]:
    return {
        "digest": found.digest,
        "files": found.files,
        "bytes": found.size_bytes,
        "key_id": found.provenance.key_id,
        "public_key": found.provenance.public_key.hex(),
        "provenance": found.provenance.predicate,
    }


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    return table
