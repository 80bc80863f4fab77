"""Train as hosts do, honestly or not, and replay segments as the grid does: a prefix and a LoRA, a few steps each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from memgrid.campaign_distill import Start
from memgrid.digest import digest_of_file, token_ids
from memgrid.distill.audit import audit
from memgrid.distill.model import load_model
from memgrid.distill.starts import start_state
from memgrid.distill.state import read_state, write_state
from memgrid.distill.study import study
from memgrid.distill.train_inputs import read_course
from memgrid.distill.training import train
from memgrid.kinds.built_in_rows import CHECKS
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.shard import write_shard
from memgrid.kinds.tolerances import row_key
from memgrid.kinds.train import STATE_FILE, drawn_segment, shard_name
from memgrid.specs import AdapterKind, AdapterSpec, Schedule, TrainSpec
from memgrid.units import ComputeDtype
from memgrid_coordinator.heavy.calibration.lessons import PREFIX, study_spec
from memgrid_coordinator.heavy.calibration.orders import LessonOrder
from memgrid_coordinator.heavy.calibration.probing import UNIT_LIMITS
from memgrid_coordinator.heavy.calibration.replaying import claims, shares_of
from memgrid_coordinator.heavy.calibration.train_cheats import (
    FIRST,
    LAST,
    TRAIN_CHEATS,
    Unit,
    compute,
    write_outputs,
)
from memgrid_coordinator.heavy.calibration.weights import model_of
from memgrid_coordinator.policy.calibrating import HONEST, Samples

ADAPTERS = {
    "prefix": PREFIX,
    "lora": AdapterSpec(kind=AdapterKind.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj")),
}
WARM_STEPS, STEPS, SEGMENT_STEPS = 10, 6, 3
_TORCH = {ComputeDtype.FLOAT16: torch.float16, ComputeDtype.BFLOAT16: torch.bfloat16}


def prepare_course(order: LessonOrder) -> None:
    """Conversations to train on, others, and for each adapter a warm state and an older one."""
    model = load_model(order.model_folder, torch.float32, torch.device("cpu"))
    frame = ChatFrame.from_bytes((order.folder / FRAME_FILE).read_bytes())
    tokens = token_ids((order.folder / TOKENS_FILE).read_bytes())
    for number in range(2):
        asked = dataclasses.replace(study_spec(order), first=number * order.sizes.conversations)
        write_shard(order.folder / f"train-{number}.safetensors", study(model, asked, frame, tokens))
    for name, adapter in ADAPTERS.items():
        path = order.folder / f"{name}-cold.safetensors"
        start_state(model, adapter, Start.FIRST_TOKENS, tokens, order.seed, path)
        spec = _spec(order, name, path, first=0, stop=WARM_STEPS)
        course = read_course(spec, _inputs(order, path, 0), model)
        older, trace = train(model, spec, read_state(path), course, stop_step=WARM_STEPS // 2)
        warm, _ = train(model, spec, older, course, trace=trace)
        write_state(order.folder / f"{name}-older.safetensors", older)
        write_state(order.folder / f"{name}-warm.safetensors", warm)


def train_and_replay(order: LessonOrder) -> list[Samples]:
    """Both adapters trained in one way; limits are fitted to the first segments and tried on the last ones."""
    found: dict[tuple[ComputeDtype, str], list[tuple[int, list[float]]]] = {}
    for place, name in enumerate(ADAPTERS):
        unit = _unit(order, name)
        files = _answer(order, unit, order.folder / f"{name}-{order.number}")
        touched = TRAIN_CHEATS[order.cheat][1] if order.cheat else ""
        for segment in range(unit.spec.segments):
            is_last = segment == unit.spec.segments - 1
            if (touched == LAST and not is_last) or (touched == FIRST and segment):
                continue
            # Cheats in one segment alone are tried, not fitted to.
            is_tried = is_last or touched in (LAST, FIRST)
            piece = place + (order.sizes.fit_chunks if is_tried else -len(ADAPTERS))
            values = _replayed(order, unit, files, segment)
            for claim in claims(order.way, order.cheat):
                found.setdefault(claim, []).append((piece, values))
    return [
        Samples(
            row=row_key("train.segment", claim, ComputeDtype.FLOAT32),
            cheat=called,
            ways=order.way.name,
            names=CHECKS["train.segment"],
            values=np.array([values for _, values in listed]),
            pieces=np.array([piece for piece, _ in listed]),
        )
        for (claim, called), listed in found.items()
    ]


def _answer(order: LessonOrder, unit: Unit, where: Path) -> Mapping[str, Path]:
    if order.cheat == HONEST:
        # The weights stay in float32, and so do norms and sums; autocast takes products in half precision.
        way = dataclasses.replace(order.way, compute_dtype=ComputeDtype.FLOAT32)
        model, _ = model_of(order.model_folder, way, "", ())
        dtype = _TORCH.get(order.way.compute_dtype, torch.float32)
        return write_outputs(where, *compute(unit, model=model, compute_dtype=dtype))
    honest, trace = compute(unit)
    return write_outputs(where, TRAIN_CHEATS[order.cheat][0](unit, honest), trace)


def _replayed(order: LessonOrder, unit: Unit, files: Mapping[str, Path], segment: int) -> list[float]:
    numbers = (sha256(f"segment {number}".encode()).digest() for number in range(1000))
    draw = next(draw for draw in numbers if drawn_segment(unit.spec, draw) == segment)
    found = audit(
        unit.spec,
        model_folder=order.model_folder,
        inputs=unit.inputs,
        files=files,
        compute_dtype=ComputeDtype.FLOAT32,
        draw=draw,
        tolerances=UNIT_LIMITS,
    )
    shares = shares_of(found)
    return [shares.get(name, np.inf if not shares else 0.0) for name in CHECKS["train.segment"]]


def _unit(order: LessonOrder, name: str) -> Unit:
    path = order.folder / f"{name}-warm.safetensors"
    return Unit(
        folder=order.model_folder,
        spec=_spec(order, name, path, first=WARM_STEPS, stop=WARM_STEPS + STEPS),
        start=read_state(path),
        older=read_state(order.folder / f"{name}-older.safetensors"),
        inputs=_inputs(order, path, 0),
        other_inputs=_inputs(order, path, 1),
        load=lambda: load_model(order.model_folder, torch.float32, torch.device("cpu")),
    )


def _inputs(order: LessonOrder, state: Path, shard: int) -> dict[str, Path]:
    return {
        FRAME_FILE: order.folder / FRAME_FILE,
        STATE_FILE: state,
        shard_name(0): order.folder / f"train-{shard}.safetensors",
    }


def _spec(order: LessonOrder, name: str, state: Path, *, first: int, stop: int) -> TrainSpec:
    adapter = ADAPTERS[name]
    return TrainSpec(
        model=order.model,
        frame=digest_of_file(order.folder / FRAME_FILE),
        adapter=adapter,
        state=digest_of_file(state),
        shards=(digest_of_file(order.folder / "train-0.safetensors"),),
        distractors=(),
        distractor_share=0.0,
        first_step=first,
        stop_step=stop,
        total_steps=100,
        segment_steps=SEGMENT_STEPS if first else WARM_STEPS,
        batch_rows=1,
        row_tokens=order.sizes.train_row_tokens,
        learning_rate=0.02 if adapter.kind is AdapterKind.PREFIX else 0.002,
        warmup_steps=2,
        schedule=Schedule.CONSTANT,
        seed=order.seed,
        round=0,
        stream=0,
        streams=1,
        compute_dtype=ComputeDtype.AUTO,
    )
