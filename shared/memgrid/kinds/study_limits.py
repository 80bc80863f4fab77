"""How far honest conversations may lie from their replay in float32, by what they were computed in and how many."""

from __future__ import annotations

from collections.abc import Mapping


def replay_limits(row: Mapping[str, float], *, question_tokens: int, answer_tokens: int) -> dict[str, float]:
    """A row of `study.replay`, for means over so many tokens."""
    limits = dict(row)
    limits["mean question margin"] = mean_limit(row["mean question margin"], question_tokens)
    limits["mean answer margin"] = mean_limit(row["mean answer margin"], answer_tokens)
    return limits


def mean_limit(limit: float, tokens: int) -> float:
    """A mean over few tokens scatters: limits are for 2048, and wider for fewer.

    >>> f"{mean_limit(2.7e-3, 2048):.1e} {mean_limit(2.7e-3, 128):.1e}"
    '2.7e-03 8.6e-03'
    """
    return limit * float((2048 / max(1, min(tokens, 2048))) ** 0.4175)
