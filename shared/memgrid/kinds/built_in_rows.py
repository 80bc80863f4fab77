"""The limits that hold until a model was calibrated, and the measurements they were drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

from memgrid.units import ComputeDtype, StoreDtype

_F32, _F16, _B16 = ComputeDtype.FLOAT32, ComputeDtype.FLOAT16, ComputeDtype.BFLOAT16
ORDER = {_F32: 0, _F16: 1, _B16: 2}
"""The numerics classes, from the finest to the coarsest."""
Row = dict[str, float]

SKETCH_STATISTICS = (
    "K median", "V median", "K worst layer", "V worst layer",
    "K layer 0", "V layer 0", "K worst block", "V worst block",
)  # fmt: skip
_SKETCH: dict[ComputeDtype, dict[StoreDtype, tuple[float, ...]]] = {
    _F32: {
        StoreDtype.BFLOAT16: (2.0e-4, 2.4e-4, 6e-4, 6e-4, 2e-4, 2e-4, 2.0e-3, 2.0e-3),
        StoreDtype.FLOAT16: (1.0e-4, 1.2e-4, 2e-4, 2e-4, 1e-4, 1e-4, 6e-4, 6e-4),
        StoreDtype.FLOAT32: (5e-5, 5e-5, 1e-4, 1e-4, 5e-5, 5e-5, 2e-4, 2e-4),
    },
    _F16: {
        StoreDtype.BFLOAT16: (3.2e-3, 4.8e-3, 6e-3, 1.0e-2, 3.0e-3, 3.0e-3, 2.0e-2, 5e-2),
        StoreDtype.FLOAT16: (1.8e-3, 4.0e-3, 5e-3, 9e-3, 1.0e-3, 1.0e-3, 2.0e-2, 5e-2),
        StoreDtype.FLOAT32: (1.8e-3, 4.0e-3, 5e-3, 9e-3, 1.0e-3, 1.0e-3, 2.0e-2, 5e-2),
    },
    _B16: dict.fromkeys(StoreDtype, (0.0115, 0.023, 0.03, 0.06, 0.005, 0.0042, 0.12, 0.3)),
}
"""Two sketches of one cache, by the coarser class and what is stored; widened for short ones (`prefill_limits`).

Measured on SmolLM2-135M-Instruct, English text, chunks of 1 to 512 tokens at positions 0 to 500, as sketches see it
(largest honest value; smallest of int8 weights; both over all chunks of 128 tokens and more):

    stored in bfloat16             K median  V median  K layer  V layer  K layer 0  V layer 0  K block  V block
    fp32: chunks of 17 or 64, eager
      attention, threads, SSE, AVX2 3.6e-5    6.2e-5   1.5e-4   1.4e-4   6.1e-5     6.1e-6     5.5e-4   4.1e-4
    fp16 against fp32               2.2e-3    3.3e-3   3.0e-3   5.4e-3   1.7e-3     1.9e-3     5.5e-3   1.7e-2
    bf16 against fp32, fp16, bf16   1.0e-2    2.0e-2   2.0e-2   4.2e-2   4.1e-3     3.2e-3     5.3e-2   1.5e-1
    int8 weights against fp32       1.4e-2    3.3e-2   2.2e-2   4.8e-2   3.1e-3     8.3e-3     3.0e-2   6.8e-2
    int8 weights against bf16       1.7e-2    3.7e-2   2.7e-2   5.3e-2   3.4e-3     9.3e-3     3.9e-2   8.0e-2
    one token of 256 changed        1.1e-2    3.3e-2   4.2e-2   8.8e-2   1.5e-2     3.4e-2     1.7e-1   3.1e-1

    fp32 stored in fp16             1.3e-5    2.0e-5   2.8e-5   3.7e-5   0          2e-7       8.3e-5   1.1e-4
    fp32 stored in fp32             6e-7      1.2e-6   9e-7     1.7e-6   1.9e-7     2.6e-7     1.5e-6   2.6e-6
    fp16 stored in fp16             1.2e-3    2.5e-3   2.5e-3   4.8e-3   5.0e-4     4.4e-4     5.2e-3   1.6e-2

Rounding to the store dtype widens tiny differences: numbers near the edge of a rounding step fall on either side.
In bf16, V of layer 0 and the median tell int8 weights apart; the worst layer and block are there for what the median
can't see (a skipped layer shows 1.6 in a block, RoPE off by one 0.15 in K). Starting values: recalibrate per model.
"""

LAYER0_STATISTICS = (
    "layer 0 K worst token", "layer 0 V worst token", "layer 0 K median token", "layer 0 V median token",
)  # fmt: skip
_LAYER0: dict[ComputeDtype, dict[StoreDtype, tuple[float, ...]]] = {
    _F32: {
        StoreDtype.BFLOAT16: (2e-3, 2e-3, 3e-4, 3e-4),
        StoreDtype.FLOAT16: (3e-4, 3e-4, 1e-4, 1e-4),
        StoreDtype.FLOAT32: (5e-5, 5e-5, 2e-5, 2e-5),
    },
    _F16: {
        StoreDtype.BFLOAT16: (6e-3, 6e-3, 2.5e-3, 2.5e-3),
        StoreDtype.FLOAT16: (3e-3, 3e-3, 1e-3, 1e-3),
        StoreDtype.FLOAT32: (3e-3, 3e-3, 1e-3, 1e-3),
    },
    _B16: dict.fromkeys(StoreDtype, (0.015, 0.01, 0.005, 0.0042)),
}
WINDOW_STATISTICS = (
    "window K median layer", "window V median layer", "window K worst layer", "window V worst layer",
    "window K worst block", "window V worst block", "window K worst token", "window V worst token",
    "first tokens K median layer", "first tokens V median layer",
    "first tokens K worst layer", "first tokens V worst layer",
)  # fmt: skip
_WINDOW: dict[ComputeDtype, dict[StoreDtype, tuple[float, ...]]] = {
    _F32: {
        StoreDtype.BFLOAT16: (6e-3, 9e-3, 9e-3, 1.4e-2, 1.5e-2, 2.2e-2, 4e-2, 5e-2, 1.2e-2, 2e-2, 1.8e-2, 3e-2),
        StoreDtype.FLOAT16: (9e-4, 1.3e-3, 1.3e-3, 2e-3, 2.2e-3, 3e-3, 6e-3, 7e-3, 1.8e-3, 3e-3, 2.7e-3, 4.5e-3),
        StoreDtype.FLOAT32: (5e-5, 5e-5, 1e-4, 1e-4, 2e-4, 2e-4, 5e-4, 5e-4, 1e-4, 1e-4, 2e-4, 2e-4),
    },
    _F16: {
        StoreDtype.BFLOAT16: (6.5e-3, 1e-2, 1e-2, 1.5e-2, 1.6e-2, 2.4e-2, 5e-2, 6e-2, 1.4e-2, 2.4e-2, 2e-2, 3.5e-2),
        StoreDtype.FLOAT16: (2.5e-3, 4.5e-3, 4e-3, 7e-3, 7e-3, 1.1e-2, 4e-2, 5e-2, 8e-3, 1.5e-2, 1.2e-2, 2.2e-2),
        StoreDtype.FLOAT32: (2.5e-3, 4.5e-3, 4e-3, 7e-3, 7e-3, 1.1e-2, 4e-2, 5e-2, 8e-3, 1.5e-2, 1.2e-2, 2.2e-2),
    },
    _B16: dict.fromkeys(
        StoreDtype, (1.8e-2, 3.2e-2, 6e-2, 8e-2, 1e-1, 1.4e-1, 2e-1, 3e-1, 7e-2, 1.6e-1, 1.2e-1, 2.2e-1)
    ),
}
"""Pieces of a cache, computed again in float32: layer 0 of every token, windows over the claimed cache before them.

Measured on SmolLM2-135M-Instruct, English text, units of 128, 256 and 400 tokens, of which the middle one continues
144 others, of three texts; two draws each, 294 honest and 81 false audits, of which none came out wrong (largest
honest value; smallest of int8 weights):

    stored in bfloat16         layer 0: worst token   median token    windows: median layer  worst layer
                                K        V        K        V          K        V        K        V
    fp32: chunks of 64, eager   0        0        0        0          1.8e-3   3.2e-3   2.8e-3   4.3e-3
    fp16                        4.1e-3   4.3e-3   1.4e-3   1.2e-3     2.2e-3   3.7e-3   3.0e-3   4.4e-3
    bf16: chunks of 64, eager   8.1e-3   6.0e-3   3.7e-3   2.9e-3     6.8e-3   1.5e-2   1.0e-2   1.8e-2
    int8 weights, then fp32     6.5e-3   1.9e-2   3.7e-3   1.2e-2     9.1e-3   2.3e-2   1.4e-2   2.9e-2
    int8 weights, then bf16     7.2e-3   2.0e-2   4.6e-3   1.2e-2     1.1e-2   2.6e-2   1.6e-2   3.1e-2

                                windows: worst block  worst token     first tokens: median   worst layer
                                K        V        K        V          K        V        K        V
    fp32: chunks of 64, eager   3.7e-3   5.4e-3   7.1e-3   1.0e-2     0        0        9.2e-5   1.9e-4
    fp16                        3.7e-3   5.2e-3   5.2e-3   7.8e-3     4.5e-3   8.3e-3   6.4e-3   1.2e-2
    bf16: chunks of 64, eager   1.5e-2   2.5e-2   2.6e-2   4.5e-2     3.1e-2   6.6e-2   4.6e-2   9.6e-2
    int8 weights, then fp32     1.5e-2   3.1e-2   1.7e-2   3.7e-2     1.4e-2   3.3e-2   2.1e-2   5.3e-2

    fp32 stored in fp16         layer 0: 0            windows: 2.1e-4 3.9e-4 3.2e-4 5.1e-4 3.8e-4 6.8e-4 5.7e-4 9.7e-4
    fp32 stored in fp32         layer 0: 0            windows: 3.7e-7 9.1e-7 6.6e-7 1.1e-6 8.6e-7 1.4e-6 1.2e-6 1.9e-6

What is stored coarsely is a coarse past for a window: an honest float32 host lies as far off in bfloat16 as the
rounding of what the window reads. Layer 0 has no past, so V's median token there tells int8 weights apart in every
class, at twice the limit; a changed token shows 0.3 to 1.3 there, RoPE off by one 0.25 in K. Limits leave a factor of
two to four, for a few layers of random weights (`tests/unit/test_prefill_audit.py`) round off more than a real model.

In bfloat16 one text in some thirty has a window on which honest answers lie far apart: of 33 texts in seven ways,
worst layer 4.5e-2 and 5.9e-2, worst block 7.8e-2 and 1.1e-1, while the median layer stays at 2.7e-2 in V. So limits
of what is worst stand above that; cheats in that class show at layer 0 and in medians, at twice the limit and more.
"""

STUDY_SKETCH_STATISTICS = ("conversations that differ", "log-likelihood of equal answers")
STUDY_STATISTICS = (
    "question margin", "mean question margin", "answer margin", "mean answer margin",
    "mean log-probability difference", "99th percentile of log-probability differences",
    "log-probability difference", "probability mass difference",
)  # fmt: skip
RANK_EDGE = "rank edge"
"""How far apart in logits two candidates may swap ranks; no statistic, but it decides what margins count."""
_STUDY = {
    _F32: (0.02, 2e-5, 0.02, 2e-5, 2e-4, 4e-3, 2e-2, 2e-3, 0.02),
    _F16: (0.2, 3e-4, 0.2, 3e-4, 1.2e-2, 5e-2, 0.12, 3e-2, 0.1),
    _B16: (1.0, 2.7e-3, 1.0, 2.7e-3, 8e-2, 0.33, 1.0, 0.3, 0.5),
}
_OTHER_TALK = {_F32: 0.1, _F16: 0.5, _B16: 1.0}
"""The share of conversations that two honest hosts may have otherwise."""
_STUDY_SKETCH = {dtype: (_OTHER_TALK[dtype], _STUDY[dtype][4]) for dtype in ORDER}
"""Conversations and their replay in float32; margins in logits; means are for 2048 tokens (`study_limits`).

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

TRAIN_SKETCH_STATISTICS = ("relative L2", "worst part", "norm ratio")
SEGMENT_STATISTICS = (
    "relative L2", "relative L2 of the largest", "worst part", "norm ratio", "Adam m", "Adam v", "loss",
)  # fmt: skip
_SEGMENT = {
    _F32: (2e-3, 5e-4, 6e-3, 5e-4, 4e-3, 4e-3, 5e-4),
    _F16: (0.010, 0.0025, 0.03, 0.002, 0.02, 0.02, 2e-3),
    _B16: (0.030, 0.0075, 0.08, 0.005, 0.08, 0.08, 0.01),
}
_TRAIN_SKETCH = {dtype: tuple(2 * _SEGMENT[dtype][place] for place in (0, 2, 3)) for dtype in ORDER}
"""Relative differences of a segment to its replay in float32, from a warm Adam; cold ones get more (`train_limits`).

Two whole units drift further apart than a segment from its replay, and a sketch's estimate adds its own: twice.
What they were drawn from: SmolLM2-135M, five steps of a LoRA and of a prefix, one start and shard each.

| | relative L2 | of the largest |
| --- | --- | --- |
| honest float32: threads, kernels, micro-batch | 0 | 0 |
| honest float16, loss scaled | .0021 to .0027 | .0005 to .0006 |
| honest bfloat16, three kernels | .017 to .021 | .0038 to .0051 |
| 8-bit weights | .038 to .050 | .0098 to .0124 |
| 5 % noise, a step fewer | .18 to .21 | .09 to .20 |
| half the batch, half the text | .21 to .35 | .08 to .15 |
| other data or order, extrapolated, poisoned | .42 to .55 | .13 to .17 |

Measured again with this code (a prefix of 16, steps of one row): bfloat16 .020 and .0034, worst part .057, Adam's m
.046; 8-bit weights .055 and .0104, worst part .13.

Two layers of a tiny model (`tests/unit/test_train_audit.py`) lose less: bfloat16 .002 to .005, 8-bit weights .005 to
.011. Where a model is that shallow, 8-bit weights pass as 16 bits, and are caught as float32 only.
"""

_OF_ARM = ("NLL of an item", "NLL of all", "KL of an item", "KL of all", "first choices")
SCORE_STATISTICS = ("items", *(f"{arm}: {what}" for arm in ("none", "cube") for what in _OF_ARM))
_ARM = {
    _F32: (2e-4, 5e-5, 2e-4, 5e-5, 1e-3),
    _F16: (2e-3, 1e-3, 2e-3, 1e-3, 1e-2),
    _B16: (1.5e-2, 6e-3, 1.5e-2, 6e-3, 4e-2),
}
_SCORES = {dtype: (0.0, *_ARM[dtype], *_ARM[dtype]) for dtype in ORDER}
"""Scores of the same items, in nats a token; that they are scores of the same items is a rule, so nothing is allowed.

Measured on SmolLM2-135M, 24 items of 128 tokens against float32, NLL: an item at most 1.4e-3 off in float16, 1.06e-2
in bfloat16; all together 1.4e-3 in bfloat16. 8-bit weights: an item 1.7e-2, all 1.7e-3; a light fine-tune 4e-2 and
2e-2. Float32 against itself, other kernels and packing: below 1e-6.
"""

CHECKS: dict[str, tuple[str, ...]] = {
    "prefill.sketch": SKETCH_STATISTICS,
    "prefill.layer0": LAYER0_STATISTICS,
    "prefill.window": WINDOW_STATISTICS,
    "study.sketch": STUDY_SKETCH_STATISTICS,
    "study.replay": (*STUDY_STATISTICS, RANK_EDGE),
    "train.sketch": TRAIN_SKETCH_STATISTICS,
    "train.segment": SEGMENT_STATISTICS,
    "evaluate.sketch": SCORE_STATISTICS,
    "evaluate.replay": SCORE_STATISTICS,
}
"""Every check, and what its rows give the limits of."""


def _all_rows() -> Iterator[tuple[str, Row]]:
    # Two hosts are compared in any two classes; a replay is always in float32.
    for finer, coarser in combinations_with_replacement(ORDER, 2):
        pair = f"{coarser}+{finer}"
        for store in StoreDtype:
            yield f"prefill.sketch/{pair}/{store}", _row("prefill.sketch", _SKETCH[coarser][store])
            if finer is _F32:
                yield f"prefill.layer0/{pair}/{store}", _row("prefill.layer0", _LAYER0[coarser][store])
                yield f"prefill.window/{pair}/{store}", _row("prefill.window", _WINDOW[coarser][store])
        yield f"study.sketch/{pair}", _row("study.sketch", _STUDY_SKETCH[coarser])
        yield f"train.sketch/{pair}", _row("train.sketch", _TRAIN_SKETCH[coarser])
        yield f"evaluate.sketch/{pair}", _row("evaluate.sketch", _SCORES[coarser])
        if finer is _F32:
            yield f"study.replay/{pair}", _row("study.replay", _STUDY[coarser])
            yield f"train.segment/{pair}", _row("train.segment", _SEGMENT[coarser])
            yield f"evaluate.replay/{pair}", _row("evaluate.replay", _SCORES[coarser])


def _row(check: str, limits: tuple[float, ...]) -> Row:
    return dict(zip(CHECKS[check], limits, strict=True))


BUILT_IN_ROWS: dict[str, Row] = dict(_all_rows())
