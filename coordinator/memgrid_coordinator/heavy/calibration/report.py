"""The report of a calibration: pages for people (Markdown, HTML), pictures, and the evidence as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgrid.kinds.tolerances import Tolerances
from memgrid.units import ComputeDtype
from memgrid_coordinator.heavy.calibration.plots import roc_plot, spread_plot, statistics_plot
from memgrid_coordinator.policy.calibrating import FittedRow, Samples, Sight
from memgrid_coordinator.policy.known_cheats import coarser_of, why_missed

TOLERANCES_FILE, EVIDENCE_FILE = "tolerances.json", "calibration.json"
_PICTURES = {"spread": spread_plot, "statistics": statistics_plot, "roc": roc_plot}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOrder:
    """What to write and where; `facts` are lines of the head, `refusal` says why a model was refused, if it was."""

    folder: Path
    title: str
    facts: Mapping[str, str]
    refusal: tuple[str, ...]
    rows: Mapping[str, FittedRow]
    samples: Sequence[Samples]
    lossless: tuple[str, ...]
    tolerances: Tolerances
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    file: str
    says: str


Block = str | _Table | _Picture
"""A text that begins with `#` is a heading."""


def write_report(order: ReportOrder) -> Path:
    """Write everything into the folder; returns the page to begin with."""
    order.folder.mkdir(parents=True, exist_ok=True)
    (order.folder / TOLERANCES_FILE).write_bytes(order.tolerances.to_bytes())
    (order.folder / EVIDENCE_FILE).write_text(json.dumps(order.evidence, indent=1, allow_nan=False) + "\n")
    for key in pictured(order.rows):
        for name, draw in pictures_of(key).items():
            (order.folder / _file_of(name, key)).write_bytes(draw(order.rows[key], order.samples))
    blocks = list(_blocks(order))
    (order.folder / "report.md").write_text("\n\n".join(_markdown(block) for block in blocks) + "\n")
    page = order.folder / "report.html"
    body = "\n".join(_html(block, order.folder) for block in blocks)
    page.write_text(f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(order.title)}</title>\n'
                    f"<style>{_STYLE}</style>\n{body}\n")  # fmt: skip
    return page


def pictured(rows: Mapping[str, FittedRow]) -> list[str]:
    """The rows that are drawn: one a check and class, against float32, as bfloat16 where caches are stored."""
    return [key for key in rows if key.endswith(("+float32", "+float32/bfloat16"))]


def pictures_of(key: str) -> Mapping[str, Callable[[FittedRow, Sequence[Samples]], bytes]]:
    """All of them for bfloat16, where honest answers and cheats lie close together; of finer classes the first."""
    return _PICTURES if coarser_of(key) is ComputeDtype.BFLOAT16 else {"spread": spread_plot}


def sights_together(rows: Mapping[str, FittedRow]) -> dict[str, list[tuple[str, Sight]]]:
    """Every cheat with the rows it was tried on."""
    found: dict[str, list[tuple[str, Sight]]] = {}
    for key, row in rows.items():
        for sight in row.sights:
            found.setdefault(sight.cheat, []).append((key, sight))
    return dict(sorted(found.items()))


def _blocks(order: ReportOrder) -> Iterator[Block]:
    yield f"# {order.title}"
    yield _Table(head=("", ""), lines=tuple(order.facts.items()))
    if order.refusal:
        yield "## Refused"
        yield from order.refusal
    yield "## What is seen, and what is not"
    yield _seen_table(order.rows)
    yield from _not_seen(order)
    yield "## Rows"
    yield (
        "Limits are for long answers; a check widens them for short ones. Raised: into the room between honest "
        "answers and the nearest cheat. Tried on: honest comparisons of texts that limits were not fitted to."
    )
    yield _rows_table(order.rows)
    for key in pictured(order.rows):
        yield from _row_blocks(key, order.rows[key])


def _seen_table(rows: Mapping[str, FittedRow]) -> _Table:
    lines = []
    for cheat, sights in sights_together(rows).items():
        cases = sum(sight.cases for _, sight in sights)
        unseen = sum(sight.unseen for _, sight in sights)
        faults = sum(sight.faults for _, sight in sights)
        least = min(sights, key=lambda pair: pair[1].smallest)
        lines.append((cheat, str(cases), str(unseen), f"{faults / cases:.1%}", _number(least[1].smallest), least[0]))
    return _Table(head=("cheat", "cases", "passed", "faults", "least, over the limit", "in"), lines=tuple(lines))


def _not_seen(order: ReportOrder) -> Iterator[str]:
    missed = [
        f"- {cheat}, in {', '.join(sorted({coarser_of(key) for key, _ in rows}))}: {why_missed(rows[0][0], cheat)}"
        for cheat, sights in sights_together(order.rows).items()
        if (rows := [(key, sight) for key, sight in sights if not sight.is_seen and sight.may_be_missed])
    ]
    if missed:
        yield "Not seen, or not always, and allowed to be missed:"
        yield "\n".join(missed)
    if order.lossless:
        yield f"No cheat here, because it changes nothing in these weights: {', '.join(order.lossless)}."


def _rows_table(rows: Mapping[str, FittedRow]) -> _Table:
    return _Table(
        head=("row", "fitted to", "texts", "raised", "tried on", "rejected", "furthest"),
        lines=tuple(
            (
                key,
                str(row.fitted_to),
                str(row.texts),
                f"{row.raised:.1f}",
                str(row.tried_on),
                str(row.rejected),
                _number(row.furthest),
            )
            for key, row in rows.items()
        ),
    )


def _row_blocks(key: str, row: FittedRow) -> Iterator[Block]:
    yield f"### {key}"
    yield _Table(
        head=(
            "statistic",
            "honest median",
            "honest max",
            "extreme",
            "limit",
            "smallest cheat",
            "ratio",
            "seen by it",
        ),
        lines=tuple(
            (
                name,
                _number(each.honest_median),
                _number(each.honest_max),
                _number(each.honest_extreme),
                _number(each.limit),
                "" if each.smallest_cheat is None else _number(each.smallest_cheat),
                "" if each.ratio is None else _number(each.ratio),
                ", ".join(each.seen),
            )
            for name, each in row.statistics.items()
        ),
    )
    for name in pictures_of(key):
        yield _Picture(file=_file_of(name, key), says=f"{name} of {key}")


def _file_of(name: str, key: str) -> str:
    return f"{name}-{key.replace('/', '-').replace('+', '-')}.svg"


def _number(value: float) -> str:
    """Three digits, as people read them.

    >>> _number(0.0), _number(0.00234), _number(17.25), _number(float("inf"))
    ('0', '2.3e-03', '17', '∞')
    """
    if value == float("inf"):
        return "∞"
    if value == 0:
        return "0"
    return f"{value:.3g}" if 0.01 <= value < 10 else f"{value:.0f}" if 10 <= value < 1e5 else f"{value:.1e}"


def _markdown(block: Block) -> str:
    if isinstance(block, _Picture):
        return f"![{block.says}]({block.file})"
    if isinstance(block, str):
        return block
    lines = [block.head, tuple("---" for _ in block.head), *block.lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _html(block: Block, folder: Path) -> str:
    if isinstance(block, _Picture):
        drawn = (folder / block.file).read_text()
        return drawn[drawn.index("<svg") :]
    if isinstance(block, _Table):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in block.lines
        )
        return f"<table><tr>{head}</tr>{body}</table>"
    if block.startswith("#"):
        level, _, text = block.partition(" ")
        return f"<h{len(level)}>{html.escape(text)}</h{len(level)}>"
    if block.startswith("- "):
        items = "".join(f"<li>{html.escape(line[2:])}</li>" for line in block.splitlines())
        return f"<ul>{items}</ul>"
    return f"<p>{html.escape(block)}</p>"


_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;font-size:13px;margin:1rem 0}td,th{border:1px solid #8884;padding:.2rem .5rem;"
    "text-align:left;vertical-align:top}svg{max-width:100%;height:auto}"
)
