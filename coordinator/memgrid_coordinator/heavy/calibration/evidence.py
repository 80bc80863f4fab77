"""What a calibration found, as JSON: rows with what they were drawn from, cheats seen and not seen, all summaries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from memgrid.kinds.tolerances import Tolerances
from memgrid_coordinator.policy.calibrating import FittedRow, Samples
from memgrid_coordinator.policy.known_cheats import PARTS, why_missed

EVIDENCE_FORMAT = "memgrid.calibration.v1"


def tolerances_of(rows: Mapping[str, FittedRow], base: Tolerances, origin: str) -> Tolerances:
    """The fitted rows as a table, with what is no statistic (how far ranks may swap) as it is in `base`."""
    table: dict[str, dict[str, float]] = {}
    for key, row in rows.items():
        check, _, rest = key.partition("/")
        for part in PARTS.get(check, (check,)):
            known = base.rows[f"{part}/{rest}"]
            table[f"{part}/{rest}"] = {name: row.limits.get(name, limit) for name, limit in known.items()}
    return Tolerances(origin=origin, rows=table)


def evidence(
    *, facts: Mapping[str, Any], rows: Mapping[str, FittedRow], samples: Sequence[Samples], lossless: Sequence[str]
) -> dict[str, Any]:
    """Everything but the comparisons one by one; numbers that are none or without end become null."""
    return {
        "format": EVIDENCE_FORMAT,
        **facts,
        "no_cheat_here": list(lossless),
        "rows": {key: _row(row) for key, row in rows.items()},
        "samples": list(_summaries(samples)),
    }


def _row(row: FittedRow) -> dict[str, Any]:
    value = _plain(asdict(row))
    for name, statistic in row.statistics.items():
        value["statistics"][name]["ratio"] = _plain(statistic.ratio)
    for told, sight in zip(value["sights"], row.sights, strict=True):
        told["is_seen"] = sight.is_seen
        told["why_it_may_be_missed"] = why_missed(row.row, sight.cheat) if sight.may_be_missed else None
    return dict(value)


def _summaries(samples: Sequence[Samples]) -> Iterator[dict[str, Any]]:
    """Cases of one row, cheat and pair of ways together, over all texts."""
    together: dict[tuple[str, str, str], list[Samples]] = {}
    for each in samples:
        together.setdefault((each.row, each.cheat, each.ways), []).append(each)
    for (row, cheat, ways), listed in sorted(together.items()):
        values = np.concatenate([each.values for each in listed])
        quantiles = np.quantile(values, (0, 0.5, 1), axis=0, method="nearest")
        yield {
            "row": row,
            "cheat": cheat,
            "ways": ways,
            "cases": len(values),
            "least_median_most": {
                name: [_plain(float(f"{number:.4g}")) for number in quantiles[:, place].tolist()]
                for place, name in enumerate(listed[0].names)
            },
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
