"""`memgrid coordinator calibrate`: measure what honest hosts of a model look like, and which cheats can be seen."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memgrid.cli.options import JsonOption, print_json
from memgrid.clock import Clock, SystemClock
from memgrid.errors import InvalidError
from memgrid_coordinator.cli.opening import BlobsOption, DatabaseOption, Opened, opened

if TYPE_CHECKING:
    from memgrid_coordinator.heavy.calibration.planning import Sizes
    from memgrid_coordinator.heavy.runner import Engine
    from memgrid_coordinator.services.calibrated import Calibrated, CalibrationAsked
    from memgrid_coordinator.services.calibrating import Progress
    from memgrid_coordinator.store.blobs import BlobStore

ModelOption = Annotated[
    str,
    typer.Option("--model", help="A model's folder (./FOLDER), or its name in the grid's pool.", show_default=False),
]
DataFolderOption = Annotated[
    Path | None,
    typer.Option("--data", envvar="MEMGRID_DATA", help="Keep the limits in this grid.", show_default=False),
]


def calibrate(
    model: ModelOption,
    data: DataFolderOption = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Where the report goes.", show_default="./calibration-NAME")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Lines of text like those to come.", show_default="a bundled sample")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other chunks of the same text.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few short chunks, fewer ways: to see whether it runs.")
    ] = False,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=4, max=4096, help="Texts; the limits are fitted to half of them.")
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=32, max=8192, help="Tokens of each.")] = None,
    may_miss: Annotated[
        list[str] | None, typer.Option("--may-miss", help="A cheat that need not be seen; may be repeated.")
    ] = None,
    only_caches: Annotated[bool, typer.Option("--only-caches", help="Leave study, evaluate and train out.")] = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Parts computed at once.")] = 1,
    ray: Annotated[str | None, typer.Option("--ray", help="Compute on Ray: auto, or an address.")] = None,
    database: DatabaseOption = None,
    blobs: BlobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make honest answers and cheats of a model, fit limits, and write a report. The grid may run meanwhile.

    Exits with 1 when cheats that have to be seen can't be told from honest answers; nothing is kept then.
    """
    from memgrid_coordinator.heavy.calibration.ways import HONEST, QUICK_WAYS
    from memgrid_coordinator.services.calibrated import CalibrationAsked

    sizes, allowed = _sizes(quick, chunks, tokens), _known(may_miss or [])
    with contextlib.ExitStack() as stack:
        grid = None if data is None else stack.enter_context(opened(data, database, blobs))
        content = None if grid is None else _blobs(grid)
        folder = _model_folder(model, grid, content)
        scratch = None if grid is None else grid.settings.scratch
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True)))
        asked = CalibrationAsked(
            model_folder=folder,
            work_folder=work,
            sizes=sizes,
            text=text,
            seed=seed,
            may_miss=allowed,
            ways=QUICK_WAYS if quick else HONEST,
            is_taught=not only_caches,
            at_once=processes,
        )
        clock = SystemClock() if grid is None else grid.clock
        found = asyncio.run(_calibrate(asked, ray, processes))
        target = report or Path(f"calibration-{folder.name}")
        page = _write(found, target, clock)
        kept = None
        if grid is not None and content is not None and not found.is_refused:
            kept = asyncio.run(_keep(grid, content, found))
    _tell(found, page, kept, as_json)
    if found.is_refused:
        raise typer.Exit(1)


def _sizes(quick: bool, chunks: int | None, tokens: int | None) -> Sizes:
    from memgrid_coordinator.heavy.calibration.planning import QUICK, Sizes

    given = {name: value for name, value in {"chunks": chunks, "tokens": tokens}.items() if value is not None}
    return replace(QUICK if quick else Sizes(), **given)


def _known(names: list[str]) -> frozenset[str]:
    from memgrid_coordinator.heavy.calibration.ways import CHEATS

    for name in names:
        if name not in CHEATS:
            raise InvalidError(f"--may-miss: {name[:80]!r}: expected one of {', '.join(CHEATS)}")
    return frozenset(names)


def _blobs(grid: Opened) -> BlobStore:
    from memgrid_coordinator.store.blob_places import blobs_of

    return blobs_of(grid.settings)


def _model_folder(model: str, grid: Opened | None, content: BlobStore | None) -> Path:
    """A folder as it stands, or the files of a model in the pool under their names; raises InvalidError."""
    folder = Path(model)
    if folder.is_dir():
        return folder.resolve()
    if grid is None or content is None:
        raise InvalidError(f"--model: {model}: no such folder; a model of the pool needs its grid: --data")
    from memgrid_coordinator.services.models import Models
    from memgrid_coordinator.services.publishing import Publishing

    models = Models(Publishing(grid.store, content, grid.clock), content, grid.settings.scratch / "models")

    async def find() -> Path:
        return await models.folder_of(await models.find(model))

    return asyncio.run(find())


async def _calibrate(asked: CalibrationAsked, ray: str | None, processes: int) -> Calibrated:
    from datetime import timedelta

    from memgrid_coordinator.services.calibrating import Calibrating

    engine = _engine(ray, processes, asked.work_folder)
    try:
        with _progress() as progress:
            return await Calibrating(engine, progress).run(asked)
    finally:
        await engine.close(timedelta(0))


def _engine(ray: str | None, processes: int, folder: Path) -> Engine:
    from memgrid_coordinator.heavy.runner import InlineEngine

    if ray is None:
        return InlineEngine(processes=processes)
    from memgrid_coordinator.heavy.ray_engine import RayEngine

    return RayEngine(ray, folders=(folder,))


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, a line in a hundred elsewhere; on standard error, so that --json stays JSON."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    if not sys.stderr.isatty():
        yield lambda done, parts, what: typer.echo(f"{done}/{parts} {what}", err=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading the model")
        yield lambda done, parts, what: bar.update(task, completed=done, total=parts, description=what)


def _write(found: Calibrated, target: Path, clock: Clock) -> Path:
    from memgrid_coordinator.heavy.calibration.report import write_report
    from memgrid_coordinator.services.calibrated import report_order

    return write_report(report_order(found, target, clock.now()))


async def _keep(grid: Opened, content: BlobStore, found: Calibrated) -> str:
    from memgrid_coordinator.services.tolerances import keep

    return (await keep(grid.store, content, grid.clock, grid.caller, found)).tolerances


def _tell(found: Calibrated, page: Path, kept: str | None, as_json: bool) -> None:
    if as_json:
        print_json({**found.facts, "refusal": list(found.refusal()), "report": str(page), "tolerances": kept})
        return
    typer.echo(f"{found.model.name}: {found.honest_cases} honest comparisons of new texts, {found.rejected} rejected")
    typer.echo(f"{found.cheat_cases} comparisons with cheats, {found.accepted} passed that should not")
    for line in found.unseen_in_words():
        typer.echo(f"not seen: {line}")
    for line in found.refusal():
        typer.echo(f"refused: {line}", err=True)
    typer.echo(f"report: {page}")
    if kept is not None:
        typer.echo(f"limits: {kept}, used for this model from now on")
