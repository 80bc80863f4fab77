"""One frame of `memgrid volunteer top`: what the page shows, in eighty columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from memgrid.charts import Chart
from memgrid.text import flops_text
from memgrid_volunteer.done import DoneUnit, Outcome
from memgrid_volunteer.glance import Glance
from memgrid_volunteer.grid_view import GridView, names_text
from memgrid_volunteer.tiles import Tile
from memgrid_volunteer.view import DeviceView, Tone, left_out_text, past_text

UNITS_SHOWN = 6
_STYLES = {Tone.GOOD: "green", Tone.BUSY: "yellow", Tone.QUIET: "bright_black", Tone.BAD: "red"}
_OUTCOMES = {Outcome.ACCEPTED: "green", Outcome.REJECTED: "red", Outcome.REFUSED: "red", Outcome.AWAITING: "yellow"}
_BARS = " ▁▂▃▄▅▆▇█"
_BAR_WIDTH = 16
_INDENT = 2


def frame(
    glance: Glance,
    tiles: Sequence[Tile],
    grids: Sequence[GridView],
    units: Sequence[DoneUnit],
    credit: Chart | None,
    now: datetime,
    *,
    keys: str,
) -> Group:
    """Everything, the most important first, for a terminal may be low; `keys` says which keys there are."""
    parts: list[RenderableType] = [_head(glance, now, keys), *_state(glance), "", _tiles(tiles)]
    if len(grids) > 1:
        parts += ["", _grids(grids)]
    for device in glance.view.devices:
        parts += ["", *_device(device)]
    if glance.view.left_out:
        parts += ["", *(Text(left_out_text(*each), style="red") for each in glance.view.left_out)]
    if credit is not None:
        parts += ["", Text(f"{credit.title}  {sparkline(credit)}  {credit.summary}", style="bright_black")]
    if units:
        parts += ["", _units(units, now)]
    return Group(*parts)


def sparkline(chart: Chart) -> str:
    """A chart in one line of text.

    >>> from memgrid.charts import Mark
    >>> marks = [Mark(x=0, share=share, label="", value="") for share in (0.0, 0.5, 1.0)]
    >>> sparkline(Chart(title="", shape="columns", marks=tuple(marks), ticks=("", "", ""), first="", last="",
    ...     heads=("", ""), summary=""))
    ' ▄█'
    """
    top = max((mark.share for mark in chart.marks), default=0.0) or 1.0
    return "".join(_BARS[round(mark.share / top * (len(_BARS) - 1))] for mark in chart.marks)


def _head(glance: Glance, now: datetime, keys: str) -> Table:
    table = Table.grid(expand=True)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column(justify="right", no_wrap=True)
    grids = names_text([each.name for each in glance.memberships])
    name = Text.assemble((glance.label, "bold"), f" on {grids}")
    table.add_row(name, Text(f"{keys}  {now:%H:%M:%S}".strip(), style="bright_black"))
    return table


def _state(glance: Glance) -> list[Text]:
    view, style = glance.view, _STYLES[glance.view.tone]
    lines = [Text.assemble(("● ", style), (view.state, f"bold {style}"), f"  {view.why}" if view.why else "")]
    if not view.is_paused or len(view.pauses) > 1:
        lines += [Text(f"  {pause}", style="bright_black") for pause in view.pauses]
    return [*lines, *(Text(problem, style="red") for problem in glance.problems)]


def _tiles(tiles: Sequence[Tile]) -> Table:
    table = Table.grid(expand=True, padding=(0, 2, 0, 0))
    for _ in tiles:
        table.add_column(ratio=1)
    table.add_row(*(Text(tile.name, style="bright_black") for tile in tiles))
    table.add_row(*(Text(tile.value, style="bold") for tile in tiles))
    table.add_row(*(Text(tile.note, style="bright_black") for tile in tiles))
    return table


def _grids(grids: Sequence[GridView]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bright_black")
    table.add_column("grid", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("share", "lately", "credit"):
        table.add_column(name, no_wrap=True)
    table.add_column("state", no_wrap=True, overflow="ellipsis", ratio=2)
    for grid in grids:
        state = Text(grid.state, style=_STYLES[grid.tone]).append(
            f"  {grid.why}" if grid.why else "", style="default"
        )
        table.add_row(grid.name, grid.part, grid.lately, grid.credit, state)
    return table


def _device(device: DeviceView) -> list[RenderableType]:
    head = Text.assemble(
        (f"{device.device_id} ", "bold"), device.name, "  ", (device.state, _STYLES[device.tone]), overflow="fold"
    )
    lines: list[RenderableType] = [head]
    if device.why:
        key = f" ({device.decided_by})" if device.decided_by else ""
        lines.append(_indented(Text(f"{device.why}{key}")))
    if device.unit:
        lines += [_indented(Text(device.work)), _indented(_progress(device))]
    if device.facts:
        facts = "  ".join(f"{name} {value}" if name == "load" else value for name, value in device.facts)
        lines.append(_indented(Text(facts, style="bright_black")))
    return lines


def _progress(device: DeviceView) -> RenderableType:
    said = [words for words in (device.progress, device.left) if words]
    if device.share is None:
        return Text("; ".join(said))
    table = Table.grid(padding=(0, 1, 0, 0))
    bar = ProgressBar(
        total=1.0, completed=device.share, width=_BAR_WIDTH, complete_style=_STYLES[device.tone],
        finished_style=_STYLES[device.tone],
    )  # fmt: skip
    table.add_row(bar, f"{int(100 * device.share):3}%", Text("; ".join(said)))
    return table


def _units(units: Sequence[DoneUnit], now: datetime) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bright_black")
    for name, options in (
        ("when", {}),
        ("unit", {"ratio": 1, "overflow": "ellipsis"}),
        ("on", {}),
        ("verdict", {}),
        ("credit", {"justify": "right"}),
    ):
        table.add_column(name, no_wrap=True, **options)
    for unit in units[:UNITS_SHOWN]:
        outcome = Text(unit.outcome.value.replace("_", " "), style=_OUTCOMES.get(unit.outcome, "bright_black"))
        credit = flops_text(unit.credit_flops) if unit.credit_flops else ""
        table.add_row(past_text(unit.at, now), unit.work, unit.device_id, outcome, credit)
    return table


def _indented(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 0, _INDENT))
