"""A benchmark's outcome, for people and for machines."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`columns` maps the heading of a column to what it shows of a row; `rows` go into the JSON as they are."""

    name: str
    title: str
    columns: dict[str, Callable[[Row], str]]
    rows: list[Row]
    notes: Sequence[str] = ()
    facts: Row = field(default_factory=dict)

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left", caption="\n".join(self.notes), caption_justify="left")
        for heading in self.columns:
            table.add_column(heading, justify="left" if heading == next(iter(self.columns)) else "right")
        for row in self.rows:
            table.add_row(*(show(row) for show in self.columns.values()))
        return table

    def to_json(self) -> Row:
        return {"title": self.title, "rows": self.rows, "notes": list(self.notes), **self.facts}


def machine() -> Row:
    """What the figures were taken on; the load says whether it had anything else to do."""
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def spread(values: Sequence[float]) -> Row:
    """Median, and the least and the most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
