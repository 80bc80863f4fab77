"""How far honest conversations may lie from their replay in float32, by what they were computed in, and why.

Measured on SmolLM2-135M-Instruct, a text of 520 tokens, temperature 0.6, log-probabilities rounded to float16 on both
sides (so a float32 host differs by a step of float16 here and there); margins in logits, clipped at 0.5 in the mean:

                                 questions          answers            |log-probability|, 8 likeliest   mass
                                 worst     mean     worst     mean     mean     99 %     worst          worst
    float32, 12 conversations    0         0        0         0        3.5e-6   0        3.9e-3         1.8e-4
    float16, 4 short ones        0         0        0         0        6.6e-3   0.025    0.031          8.5e-3
    bfloat16, 12 conversations   0.21      3.1e-3   0.16      2.0e-3   5.6e-2   0.24     0.55           0.17
    8-bit weights, 6             0         0        0.21      1.8e-3   8.6e-2   0.34     0.66           0.16
    temperature 0.5 for 0.6, 6   0.81      2.4e-2   0         0        3.8e-6   5e-7     3.9e-3         1.6e-4

Other seeds, texts, neighbours, and edited or cut talk lie far outside (`tests/unit/test_study.py`). 8-bit weights
that are said to be bfloat16 lie just outside: their log-probabilities tell, their text hardly does. Starting values
from a small sample; a grid with another model should measure its own before it punishes anyone.
"""

from __future__ import annotations

from dataclasses import dataclass

from memgrid.errors import InvalidError
from memgrid.units import ComputeDtype


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyLimits:
    """The largest honest statistics of a float32 replay; margins are in logits, `edge` is how far ranks may swap."""

    edge: float
    question_margin: float
    question_mean: float
    answer_margin: float
    answer_mean: float
    logprob_mean: float
    logprob_p99: float
    logprob_max: float
    mass_max: float
    other_talk: float
    """The share of conversations that two honest hosts may have otherwise."""


_LIMITS = {
    ComputeDtype.FLOAT32: StudyLimits(
        edge=0.02, question_margin=0.02, question_mean=2e-5, answer_margin=0.02, answer_mean=2e-5,
        logprob_mean=2e-4, logprob_p99=4e-3, logprob_max=2e-2, mass_max=2e-3, other_talk=0.1,
    ),
    ComputeDtype.FLOAT16: StudyLimits(
        edge=0.1, question_margin=0.2, question_mean=3e-4, answer_margin=0.2, answer_mean=3e-4,
        logprob_mean=1.2e-2, logprob_p99=5e-2, logprob_max=0.12, mass_max=3e-2, other_talk=0.5,
    ),
    ComputeDtype.BFLOAT16: StudyLimits(
        edge=0.5, question_margin=1.0, question_mean=2.7e-3, answer_margin=1.0, answer_mean=2.7e-3,
        logprob_mean=8e-2, logprob_p99=0.33, logprob_max=1.0, mass_max=0.3, other_talk=1.0,
    ),
}  # fmt: skip
_CLASSES = list(_LIMITS)


def study_limits(dtype: ComputeDtype) -> StudyLimits:
    """What a replay in float32 allows an answer that was computed in `dtype`; raises InvalidError for AUTO."""
    limits = _LIMITS.get(dtype)
    if limits is None:
        raise InvalidError(f"no tolerance for {dtype}: a report names the dtype it was computed in")
    return limits


def mean_limit(limit: float, tokens: int) -> float:
    """A mean over few tokens scatters: limits are for 2048, and wider for fewer.

    >>> f"{mean_limit(2.7e-3, 2048):.1e} {mean_limit(2.7e-3, 128):.1e}"
    '2.7e-03 8.6e-03'
    """
    return limit * float((2048 / max(1, min(tokens, 2048))) ** 0.4175)


def coarser(one: ComputeDtype, other: ComputeDtype) -> ComputeDtype:
    for dtype in (one, other):
        study_limits(dtype)
    return max(one, other, key=_CLASSES.index)
