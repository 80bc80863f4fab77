"""The ways in which hosts compute a cache, honestly or not: names and knobs, without the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memgrid.units import ComputeDtype
from memgrid_coordinator.policy.known_cheats import SAYS_FINER as SAYS_FINER

_F32, _F16, _B16 = ComputeDtype.FLOAT32, ComputeDtype.FLOAT16, ComputeDtype.BFLOAT16
FINER_FIRST = (_F32, _F16, _B16)


class Products(StrEnum):
    """How matrices of half precision are multiplied."""

    NATIVE = "native"
    """As this machine's library does it: on processors without such instructions five to ten times slower."""
    SUMMED_IN_FLOAT32 = "summed in float32"
    """Exact products summed in float32, the result rounded: what tensor cores do."""
    TF32 = "tf32"
    """Factors cut to ten bits of mantissa, sums in float32: what it is to call this float32 is a lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to compute the same caches; `compute_dtype` is what an honest host would report."""

    name: str
    compute_dtype: ComputeDtype
    attention: str = "sdpa"
    products: Products = Products.NATIVE
    piece_tokens: int = 0
    """A cache is filled in pieces of so many tokens; 0: in one."""
    rows: int = 1
    """So many chunks side by side."""
    padding_tokens: int = 0
    """So many tokens of padding before the text, masked."""
    threads: int = 1
    is_capped: bool = False
    """With the oldest instructions that the libraries can do with, in a process of its own."""
    share: float = 1.0
    """Of the chunks: dear ways show on few that they are like the others."""

    @property
    def is_dear(self) -> bool:
        return self.share < 1


_SUMMED = Products.SUMMED_IN_FLOAT32
HONEST: tuple[Way, ...] = (
    Way(name="float32", compute_dtype=_F32),
    Way(name="float32, two threads", compute_dtype=_F32, threads=2, share=0.5),
    Way(name="float32, plain attention", compute_dtype=_F32, attention="eager"),
    Way(name="float32, in pieces of 64", compute_dtype=_F32, piece_tokens=64),
    Way(name="float32, in pieces of 17", compute_dtype=_F32, piece_tokens=17),
    Way(name="float32, four side by side", compute_dtype=_F32, rows=4),
    Way(name="float32, padded", compute_dtype=_F32, padding_tokens=7),
    Way(name="float32, oldest instructions", compute_dtype=_F32, is_capped=True),
    Way(name="float16", compute_dtype=_F16, products=_SUMMED),
    Way(name="float16, plain attention", compute_dtype=_F16, products=_SUMMED, attention="eager"),
    Way(name="float16, in pieces of 64", compute_dtype=_F16, products=_SUMMED, piece_tokens=64),
    Way(name="float16, padded", compute_dtype=_F16, products=_SUMMED, padding_tokens=7),
    Way(name="float16, this machine's kernels", compute_dtype=_F16, share=1 / 8),
    Way(name="bfloat16", compute_dtype=_B16, products=_SUMMED),
    Way(name="bfloat16, plain attention", compute_dtype=_B16, products=_SUMMED, attention="eager"),
    Way(name="bfloat16, in pieces of 64", compute_dtype=_B16, products=_SUMMED, piece_tokens=64),
    Way(name="bfloat16, in pieces of 17", compute_dtype=_B16, products=_SUMMED, piece_tokens=17, attention="eager"),
    Way(name="bfloat16, four side by side", compute_dtype=_B16, products=_SUMMED, rows=4),
    Way(name="bfloat16, padded", compute_dtype=_B16, products=_SUMMED, padding_tokens=7),
    Way(name="bfloat16, oldest instructions", compute_dtype=_B16, products=_SUMMED, is_capped=True),
    Way(name="bfloat16, this machine's kernels", compute_dtype=_B16, share=1 / 8),
)
BASE = HONEST[0]
HALF = next(way for way in HONEST if way.name == "bfloat16")
TF32 = Way(name="tf32", compute_dtype=_F32, products=Products.TF32)
WEIGHT_CHEATS = (
    "int8 weights", "int8 weights and inputs", "fp8 weights", "int6 weights", "int4 weights", "nf4 weights",
    "fine-tuned by 2.5e-4", "fine-tuned by 1.2e-5",
    "first layer skipped", "middle layer skipped", "last layer skipped", "angles of RoPE rounded",
)  # fmt: skip
"""Models that are not the model; `weights.CHANGES` makes them."""
TOKEN_CHEATS = (
    "one token changed", "1 % of tokens changed", "5 % of tokens changed", "last token changed",
    "context cut in half", "RoPE off by one",
)  # fmt: skip
"""The right model that reads something else; `spoiling.OTHER_IDS` and `caches` make them."""
CACHE_CHEATS = (
    "noise of 0.3 %", "noise of 1 %", "another chunk's cache", "random numbers", "last quarter made up",
)  # fmt: skip
"""What is made of finished caches by `spoiling.SPOILT`."""
ALSO_IN_HALF = (
    "int8 weights", "int8 weights and inputs", "fp8 weights", "angles of RoPE rounded",
    "one token changed", "last token changed",
)  # fmt: skip
"""Cheats that are computed in bfloat16 too. All are in float32: who wants to hide computes finely and claims less."""
STUDY_CHEATS = ("int8 weights", "int4 weights", "another temperature", "another seed", "answers edited")
SCORE_CHEATS = (
    "int8 weights", "int4 weights",
    "a better cube", "a worse bare model", "less divergence", "the bare model for the cube",
)  # fmt: skip
"""What `lessons` makes wrong conversations and wrong scores with."""
COURSE_CHEATS = (
    "no work", "one step fewer", "stale start", "other data", "another learning rate", "noise on the result",
    "extrapolated", "poisoned last segment", "int8 weights",
)  # fmt: skip
"""Trainings that were not done; `train_cheats.TRAIN_CHEATS` makes them."""
_ALL = (*WEIGHT_CHEATS, *TOKEN_CHEATS, *CACHE_CHEATS, *STUDY_CHEATS, *SCORE_CHEATS, *COURSE_CHEATS, SAYS_FINER)
CHEATS = tuple(dict.fromkeys(_ALL))
QUICK_WAYS = tuple(way for way in HONEST if not (way.is_dear or way.is_capped))
LESSON_WAYS = tuple(
    way
    for way in HONEST
    if way.rows == 1 and not (way.is_dear or way.is_capped or way.piece_tokens or way.padding_tokens)
)
"""The ways that make a difference to conversations and scores, which are batched by themselves."""


def claims_of(computed: ComputeDtype) -> tuple[ComputeDtype, ...]:
    """What a cheat that computes in this dtype may claim: the same, or one that is allowed more.

    >>> [str(dtype) for dtype in claims_of(ComputeDtype.FLOAT16)]
    ['float16', 'bfloat16']
    """
    return FINER_FIRST[FINER_FIRST.index(computed) :]
