"""How far honest answers may lie apart: a table with a row for each check and pair of numerics classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from memgrid.digest import canonical_json
from memgrid.errors import InvalidError
from memgrid.kinds.built_in_rows import BUILT_IN_ROWS, ORDER
from memgrid.units import ComputeDtype, StoreDtype

TOLERANCES_FORMAT = "memgrid.tolerances.v1"
_BYTES_MAX = 256 * 1024
_ORIGIN_MAX = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """Limits of every statistic, and in `origin` where they come from: "built in", or who measured what and when.

    `rows` go from a key such as `prefill.sketch/bfloat16+float32/bfloat16` (the check, the coarser and the finer of
    two numerics classes, and for caches what they are stored in) to the limit of each statistic by its name. Plain
    values, so that they travel between processes.
    """

    origin: str
    rows: Mapping[str, Mapping[str, float]] = field(repr=False)

    def row(
        self, check: str, one: ComputeDtype, other: ComputeDtype, store: StoreDtype | None = None
    ) -> Mapping[str, float]:
        """The limits of a check between two numerics classes, in whichever order.

        Raises InvalidError when there are none, above all for a report that names no dtype.

        >>> BUILT_IN.row("evaluate.replay", ComputeDtype.FLOAT32, ComputeDtype.BFLOAT16)["none: NLL of all"]
        0.006
        """
        found = self.rows.get(row_key(check, one, other, store))
        if found is None:
            raise InvalidError(
                f"no tolerance for {one} against {other} in {check}: a report names the dtype it was computed in"
            )
        return found

    def over(self, other: Tolerances) -> Tolerances:
        """These rows, and the other's where there is none here: a calibration need not cover every kind."""
        return Tolerances(origin=self.origin, rows={**other.rows, **self.rows})

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal tables have equal bytes."""
        rows = {key: dict(row) for key, row in self.rows.items()}
        return canonical_json({"format": TOLERANCES_FORMAT, "origin": self.origin, "rows": rows})

    @classmethod
    def from_bytes(cls, content: bytes) -> Tolerances:
        """The inverse; raises InvalidError unless every row is one that the checks know, whole and of plain limits.

        >>> Tolerances.from_bytes(BUILT_IN.to_bytes()) == BUILT_IN
        True
        """
        if len(content) > _BYTES_MAX:
            raise InvalidError(f"tolerances: {len(content)} bytes, at most {_BYTES_MAX} expected")
        try:
            value = json.loads(content)
            value_format, origin, rows = value["format"], value["origin"], value["rows"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidError(f"tolerances: {type(error).__name__}: {error}"[:300]) from None
        if value_format != TOLERANCES_FORMAT:
            raise InvalidError(f"tolerances: expected format {TOLERANCES_FORMAT}, found {value_format!r}"[:300])
        is_text = isinstance(origin, str) and origin.isprintable() and len(origin) <= _ORIGIN_MAX
        if not is_text or not isinstance(rows, dict):
            raise InvalidError(f"tolerances: expected an origin of at most {_ORIGIN_MAX} characters, and rows")
        return cls(origin=origin, rows={key: _checked(key, row) for key, row in rows.items()})


def row_key(check: str, one: ComputeDtype, other: ComputeDtype, store: StoreDtype | None = None) -> str:
    """The name of a row: the coarser of two dtypes comes first.

    >>> row_key("prefill.sketch", ComputeDtype.FLOAT32, ComputeDtype.BFLOAT16, StoreDtype.BFLOAT16)
    'prefill.sketch/bfloat16+float32/bfloat16'
    """
    coarser, finer = sorted((one, other), key=lambda dtype: ORDER.get(dtype, -1), reverse=True)
    return f"{check}/{coarser}+{finer}" + ("" if store is None else f"/{store}")


def _checked(key: str, row: object) -> dict[str, float]:
    known = BUILT_IN_ROWS.get(key)
    if known is None:
        raise InvalidError(f"tolerances: {key[:80]}: no such row")
    if not isinstance(row, dict) or set(row) != set(known):
        raise InvalidError(f"tolerances: {key}: expected {', '.join(known)}")
    for name, limit in row.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1e6:
            raise InvalidError(f"tolerances: {key}: {name}: expected a number from 0 to a million")
    return {name: float(row[name]) for name in known}


BUILT_IN = Tolerances(origin="built in", rows=BUILT_IN_ROWS)
"""What holds for a model until it was calibrated: measured on one small model, see `built_in_rows`."""
