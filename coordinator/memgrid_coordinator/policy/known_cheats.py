"""Which cheats limits may miss, by the class that a host claims, and limits that no row goes below."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from memgrid.kinds.tolerances import BUILT_IN
from memgrid.units import ComputeDtype

_FINE_TUNED = "its numbers move by less than rounding in this class does"
MAY_MISS: dict[ComputeDtype, dict[str, str]] = {
    ComputeDtype.FLOAT32: {"fine-tuned by 1.2e-5": "stored in 16 bits, it moves few numbers by a rounding step"},
    ComputeDtype.FLOAT16: {"fine-tuned by 1.2e-5": _FINE_TUNED, "fine-tuned by 2.5e-4": _FINE_TUNED},
    ComputeDtype.BFLOAT16: {
        "fine-tuned by 1.2e-5": _FINE_TUNED,
        "fine-tuned by 2.5e-4": _FINE_TUNED,
        "noise of 0.3 %": "storing in bfloat16 is as much noise as that",
        "angles of RoPE rounded": "a fault of honest programs; in a short text less than bfloat16's own rounding",
    },
}
"""Cheats that a table may let pass in a class, and why that does little harm."""


def coarser_of(row: str) -> ComputeDtype:
    """The class that a row of the table is for: the coarser of its two.

    >>> coarser_of("prefill.sketch/bfloat16+float32/float16")
    <ComputeDtype.BFLOAT16: 'bfloat16'>
    """
    return ComputeDtype(row.split("/")[1].split("+")[0])


def may_miss(row: str, cheat: str, also: Collection[str] = ()) -> bool:
    """Whether a row may let a cheat pass; `also` are those that the grid's owner gave up to see."""
    return cheat in also or cheat in MAY_MISS[coarser_of(row)]


def why_missed(row: str, cheat: str) -> str:
    return MAY_MISS[coarser_of(row)].get(cheat, "the grid's owner allows it")


def floors(row: str, fitted: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """Limits that a row does not go below.

    What float32 rounds to is a matter of machines rather than of models, and one machine shows little of it: the
    built-in limits of float32 stay. Two hosts of one coarse class may lie as far apart as either lies from float32,
    though two kernels of one machine hardly do: limits of such pairs are those against float32, or wider.

    >>> key = "train.sketch/bfloat16+bfloat16"
    >>> floors(key, {"train.sketch/bfloat16+float32": {"worst part": 0.2}})
    {'worst part': 0.2}
    """
    check, pair, *store = row.split("/")
    coarser, _, finer = pair.partition("+")
    if coarser == finer == ComputeDtype.FLOAT32:
        return BUILT_IN.rows[row]
    against_float32 = "/".join([check, f"{coarser}+{ComputeDtype.FLOAT32}", *store])
    if finer == ComputeDtype.FLOAT32:
        return BUILT_IN.rows["/".join([check, f"{finer}+{finer}", *store])]
    return fitted.get(against_float32, {})
