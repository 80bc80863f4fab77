"""Score a few of a unit's items again, and see whether the numbers are the same.

Knows what scoring does; which items are drawn follows from a secret that exists only after the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from memgrid.distill.adapters import load_adapter
from memgrid.distill.evaluate import BATCH_ROWS, evaluate
from memgrid.distill.model import load_model, without_fused_attention
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.kinds.audit import Audit, judge
from memgrid.kinds.draws import sample
from memgrid.kinds.evaluate import (
    ADAPTER_FILE,
    SCORES_FILE,
    ArmScores,
    EvaluateKind,
    Items,
    Scores,
    furthest_item,
    parse_scores,
    read_items,
    score_differences,
)
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.kinds.part import Part
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import EvaluateSpec
from memgrid.units import ComputeDtype


def audit_evaluate(
    spec: EvaluateSpec,
    *,
    model_folder: Path,
    inputs: Mapping[str, Path],
    files: Mapping[str, Path],
    compute_dtype: ComputeDtype,
    draw: bytes,
    tolerances: Tolerances,
    again: bool = False,
    part: Part | None = None,
) -> Audit:
    """Score the items that `draw` picks, in float32 on the CPU; `again`, row by row and without fused attention."""
    claimed = parse_scores(files[SCORES_FILE].read_bytes(), spec)
    items = read_items(spec, inputs)
    picked = audited_items(spec, draw) if part is None else part.pieces
    model = load_model(model_folder, torch.float32, torch.device("cpu"))
    adapter = None if spec.adapter is None else load_adapter(inputs[ADAPTER_FILE], spec.adapter, model)
    frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
    drawn = Items(shards=items.shards, places=tuple(items.places[index] for index in picked))
    with without_fused_attention(model, again):
        found = evaluate(model, frame, drawn, adapter, batch_rows=1 if again else BATCH_ROWS)
    claim = _part(claimed, picked)
    statistics = score_differences(found, claim)
    limits = tolerances.row("evaluate.replay", compute_dtype, ComputeDtype.FLOAT32)
    cost = EvaluateKind().flops(spec, geometry_of_model(model)) * len(picked) // spec.items
    return judge(statistics, limits, where=f"item {picked[furthest_item(found, claim)]}", flops=cost)


def audited_items(spec: EvaluateSpec, draw: bytes) -> tuple[int, ...]:
    """Which items are scored again: one in sixteen, two at least, as `draw` has it."""
    count = min(spec.items, max(2, -(-spec.items // 16)))
    return sample(draw, "evaluate item", range(spec.items), count)


def _part(scores: Scores, picked: tuple[int, ...]) -> Scores:
    chosen = list(picked)
    return Scores(
        tokens=scores.tokens[chosen],
        text_nll=scores.text_nll[chosen],
        arms={
            name: ArmScores(nll=arm.nll[chosen], kl=arm.kl[chosen], correct=arm.correct[chosen])
            for name, arm in scores.arms.items()
        },
    )
