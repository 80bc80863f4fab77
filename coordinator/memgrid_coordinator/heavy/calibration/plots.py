"""Draw what a row of limits sees: how far cheats lie from it, each statistic apart, and other limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memgrid_coordinator.heavy.plots import BLUE, GREEN, GREY, drawing, svg_of
from memgrid_coordinator.policy.calibrating import FAULT_FROM, HONEST, FittedRow, Samples, shares

_RED = "#cf4f42"
_SHARE_MIN, _SHARE_MAX = 1e-4, 1e4
_CURVES = 5

Doubles = npt.NDArray[np.float64]


def spread_plot(row: FittedRow, samples: Sequence[Samples]) -> bytes:
    """One line a cheat: the worst statistic of its cases over the limit, from the least to the most."""
    found = _shares(row, samples)
    order = sorted(found, key=lambda cheat: (cheat != HONEST, float(np.median(found[cheat]))))
    with drawing(size_inches=(6.8, 1.2 + 0.2 * len(order))) as (figure, axes):
        for place, cheat in enumerate(order):
            values = np.clip(found[cheat], _SHARE_MIN, _SHARE_MAX)
            colour = GREEN if cheat == HONEST else BLUE
            axes.plot([values.min(), values.max()], [place, place], color=colour, linewidth=3, solid_capstyle="round")
            axes.plot([float(np.median(values))], [place], "o", color=colour, markersize=5)
        axes.axvline(1, color=GREY, linewidth=1)
        axes.axvline(FAULT_FROM, color=_RED, linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.set_yticks(range(len(order)), [cheat or "honest" for cheat in order])
        axes.invert_yaxis()
        axes.set_xlabel("worst statistic over its limit: passes up to 1, a fault from 2")
        axes.set_title(row.row, fontsize=10)
        return svg_of(figure, f"{row.row}: how far honest answers and cheats lie from the limits")


def statistics_plot(row: FittedRow, samples: Sequence[Samples]) -> bytes:
    """Each statistic apart: honest cases, those of the nearest cheat that it sees, and the limit."""
    names = list(row.statistics)
    columns = 2 if len(names) <= 4 else 4
    lines = -(-len(names) // columns)
    with drawing(lines, columns, size_inches=(2.3 * columns, 1.6 * lines + 0.4)) as (figure, axes):
        cells = list(np.atleast_1d(axes).flat)
        for cell, name in zip(cells, names, strict=False):
            statistic = row.statistics[name]
            place = names.index(name)
            nearest = _nearest(row, samples, name, place)
            _histogram(cell, _column(row, samples, HONEST, place), GREEN)
            if nearest:
                _histogram(cell, _column(row, samples, nearest, place), BLUE)
            if statistic.limit > 0:
                cell.axvline(statistic.limit, color=_RED, linewidth=1)
            cell.set_xscale("log")
            cell.set_yticks([])
            cell.tick_params(labelsize=7)
            cell.set_title(f"{name}\n{nearest or 'no cheat by itself'}", fontsize=7)
        for cell in cells[len(names) :]:
            cell.set_visible(False)
        return svg_of(figure, f"{row.row}: honest cases, the nearest cheat, and the limit of each statistic")


def roc_plot(row: FittedRow, samples: Sequence[Samples]) -> bytes:
    """Were all limits of the row scaled alike: the share of honest cases rejected, and of the nearest cheats seen."""
    found = _shares(row, samples)
    honest = np.sort(found[HONEST])
    nearest = sorted((cheat for cheat in found if cheat != HONEST), key=lambda cheat: float(np.median(found[cheat])))
    scales = np.geomspace(0.02, 50, 400)
    rejected = np.array([(honest > scale).mean() for scale in scales])
    with drawing() as (figure, axes):
        for cheat in nearest[:_CURVES]:
            seen = np.array([(found[cheat] > scale).mean() for scale in scales])
            (line,) = axes.plot(rejected, seen, linewidth=2, label=cheat)
            axes.plot([float((honest > 1).mean())], [float((found[cheat] > 1).mean())], "o", color=line.get_color())
        axes.set_xlim(-0.02, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("honest cases over the limit")
        axes.set_ylabel("cheats over it")
        axes.legend(fontsize=7, frameon=False)
        axes.set_title(f"{row.row}, nearest cheats; points: the limits", fontsize=9)
        return svg_of(figure, f"{row.row}: receiver operating characteristic of the nearest cheats")


def _shares(row: FittedRow, samples: Sequence[Samples]) -> dict[str, Doubles]:
    limits = np.array(list(row.limits.values()))
    found: dict[str, list[Doubles]] = {}
    for each in samples:
        if each.row == row.row:
            found.setdefault(each.cheat, []).append(shares(each.values, limits))
    return {cheat: np.concatenate(listed) for cheat, listed in found.items()}


def _column(row: FittedRow, samples: Sequence[Samples], cheat: str, place: int) -> Doubles:
    chosen = [each.values[:, place] for each in samples if each.row == row.row and each.cheat == cheat]
    return np.concatenate(chosen)


def _nearest(row: FittedRow, samples: Sequence[Samples], name: str, place: int) -> str:
    seen = row.statistics[name].seen
    return min(seen, key=lambda cheat: float(_column(row, samples, cheat, place).min()), default="")


def _histogram(cell: Any, values: Doubles, colour: str) -> None:
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return
    bins = np.geomspace(float(positive.min()) * 0.98, float(positive.max()) * 1.02, 24)
    counts, edges = np.histogram(positive, bins=bins)
    cell.stairs(counts / len(positive), edges, fill=True, color=colour, alpha=0.6)
