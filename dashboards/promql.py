"""Expressions in PromQL, for the coordinators that were chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SERIES = re.compile(r"\b((?:memgrid|process)_[a-z_]+)\b(?:\{([^}]*)\})?")
_CHOSEN = 'job="$job",instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression, written without the selection of job and instance, and how its lines are called."""

    expr: str
    legend: str = "__auto"

    @property
    def selected(self) -> str:
        """The expression for the coordinators that were chosen.

        >>> Query("sum(memgrid_units{state='open'})").selected
        'sum(memgrid_units{job="$job",instance=~"$instance",state=\\'open\\'})'
        """
        return _SERIES.sub(lambda found: f"{found[1]}{{{','.join(filter(None, (_CHOSEN, found[2])))}}}", self.expr)


def rate(series: str, *by: str, over: str = "$__rate_interval") -> str:
    """What a counter does a second, summed over coordinators.

    >>> rate("memgrid_reports_total", "answer")
    'sum by (answer) (rate(memgrid_reports_total[$__rate_interval]))'
    """
    return f"sum{_by(by)} (rate({series}[{over}]))"


def quantile(share: float, histogram: str, *by: str, where: str = "") -> str:
    """A quantile of a histogram's recent observations.

    >>> quantile(0.5, "memgrid_rpc_seconds")
    'histogram_quantile(0.5, sum by (le) (rate(memgrid_rpc_seconds_bucket[$__rate_interval])))'
    """
    selected = f"{histogram}_bucket{where}"
    return f"histogram_quantile({share:g}, {rate(selected, 'le', *by)})"


def gauge(series: str, *by: str) -> str:
    """What a gauge says; coordinators that share a database all say the same, so it is not added up.

    >>> gauge("memgrid_units", "kind", "state")
    'max by (kind, state) (memgrid_units)'
    """
    return f"max{_by(by)} ({series})"


def share(part: str, whole: str) -> str:
    """One expression as a share of another; nothing while there is nothing to share.

    >>> share("sum(a)", "sum(b)")
    'sum(a) / (sum(b) > 0)'
    """
    return f"{part} / ({whole} > 0)"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
