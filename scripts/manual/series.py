"""The page of all series, from the registry that a coordinator serves."""

from __future__ import annotations

from typing import Any

from manual.markdown import code, table
from memgrid_coordinator.metrics import Metrics

_HEAD = """\
# Metrics

Every series of `GET /metrics`, beside those that describe the process itself (`process_…`). Counters end in `_total`;
a histogram has `_bucket`, `_sum` and `_count`. No label takes what a stranger wrote, so their number is bounded.
[Watch a grid](../watching.md) says which of them to look at.

"""


def page() -> str:
    """Markdown."""
    return _HEAD + table(("series", "kind", "labels", "means"), sorted(map(_row, collectors())))


def collectors() -> list[Any]:
    """Every counter, gauge and histogram of a coordinator."""
    # The library names labels only of series that have been moved; its own attribute names them all.
    return [each for each in vars(Metrics()).values() if hasattr(each, "_labelnames")]


def _row(collector: Any) -> tuple[str, str, str, str]:
    (family,) = collector.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return code(name), family.type, ", ".join(map(code, collector._labelnames)), family.documentation
