"""Which cheats limits may miss, by the class that a host claims, and limits that no row goes below."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from memgrid.kinds.tolerances import BUILT_IN
from memgrid.units import ComputeDtype

SAYS_FINER = "a coarser dtype than it says"
PREFILL_REPLAY = "prefill.replay"
PARTS = {PREFILL_REPLAY: ("prefill.layer0", "prefill.window")}
"""Checks that one replay makes together: a cheat is seen when one of them sees it."""
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


REPLAY_MAY_MISS = {"context cut in half": "shown by those windows alone that lie in the second half"}
"""Of caches: what pieces that were drawn otherwise can't see; sketches see it whole."""


TALK_MAY_MISS = {
    "int8 weights": "as coarse as bfloat16 itself; caches show it, and many audits do",
    "another temperature": "a few conversations show it by chance; many audits do",
}
"""Of conversations and scores in bfloat16, which are few numbers."""
COURSE_MAY_MISS = {SAYS_FINER: "float16 with sums in float32 is nearly as exact, and costs nobody anything"}
"""Of trainings in float32."""


def coarser_of(row: str) -> ComputeDtype:
    """The class that a row of the table is for: the coarser of its two.

    >>> coarser_of("prefill.sketch/bfloat16+float32/float16")
    <ComputeDtype.BFLOAT16: 'bfloat16'>
    """
    return ComputeDtype(row.split("/")[1].split("+")[0])


def may_miss(row: str, cheat: str, also: Collection[str] = ()) -> bool:
    """Whether a row may let a cheat pass; `also` are those that the grid's owner gave up to see."""
    return cheat in also or cheat in _missed(row)


def why_missed(row: str, cheat: str) -> str:
    return _missed(row).get(cheat, "the grid's owner allows it")


def _missed(row: str) -> Mapping[str, str]:
    found = MAY_MISS[coarser_of(row)]
    if row.startswith(PREFILL_REPLAY):
        return {**found, **REPLAY_MAY_MISS}
    if coarser_of(row) is ComputeDtype.BFLOAT16 and not row.startswith("prefill."):
        return {**found, **TALK_MAY_MISS}
    if coarser_of(row) is ComputeDtype.FLOAT32 and row.startswith("train."):
        return {**found, **COURSE_MAY_MISS}
    return found


def floors(row: str, fitted: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """Limits that a row does not go below.

    What float32 rounds to is a matter of machines rather than of models, and one machine shows little of it: the
    built-in limits of float32 stay. Two hosts of one coarse class may lie as far apart as either lies from float32,
    though two kernels of one machine hardly do: limits of such pairs are those against float32, or wider. Of
    conversations, scores and trainings a calibration sees few, and of a cache an audit sees few tokens, of which one
    in some hundreds lies far off in a coarse class: calibrations widen these built-in limits, and never tighten them.

    >>> key = "prefill.sketch/bfloat16+bfloat16/bfloat16"
    >>> floors(key, {"prefill.sketch/bfloat16+float32/bfloat16": {"K median": 0.2}})
    {'K median': 0.2}
    """
    check, pair, *store = row.split("/")
    coarser, _, finer = pair.partition("+")
    if not check.startswith("prefill.") or check == PREFILL_REPLAY:
        return _built_in(row)
    if finer == ComputeDtype.FLOAT32:
        return _built_in("/".join([check, f"{finer}+{finer}", *store]))
    return fitted.get("/".join([check, f"{coarser}+{ComputeDtype.FLOAT32}", *store]), {})


def _built_in(row: str) -> Mapping[str, float]:
    """Rows of several checks that are one replay stand together."""
    check, _, rest = row.partition("/")
    parts = [BUILT_IN.rows[f"{part}/{rest}"] for part in PARTS.get(check, (check,))]
    return {name: limit for part in parts for name, limit in part.items()}
