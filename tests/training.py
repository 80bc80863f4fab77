"""Training in small: a frame, shards, a start and a spec for the tiny model, all from seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from memgrid.digest import digest_of, digest_of_file
from memgrid.distill.adapters import PREFIX_TENSOR, expected_shapes, prefix_geometry
from memgrid.distill.batches import Conversation, conversations_of
from memgrid.distill.state import TrainState, cold_state, write_state
from memgrid.distill.training import Course, make_course
from memgrid.kinds.frame import ChatFrame
from memgrid.kinds.lowrank import seeded_a
from memgrid.kinds.shard import Shard, make_shard, write_shard
from memgrid.specs import AdapterKind, AdapterSpec, Purpose, Schedule, TrainSpec
from memgrid.units import ComputeDtype

VOCAB = 300
TOKENIZER = digest_of(b"the tests' tokenizer")
PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=6, frozen_tokens=1)
LORA = AdapterSpec(kind=AdapterKind.LORA, rank=4, alpha=8, targets=("down_proj", "q_proj", "v_proj"))
FROZEN_A = replace(LORA, frozen_a_seed=5)
FRAME = ChatFrame(
    tokenizer=TOKENIZER,
    vocab=VOCAB,
    asks=((1, 2),),
    teacher_before=(9,),
    teacher_after=(10, 11),
    student_before=(3, 4, 5, 6),
    student_after=(7, 8),
    stops=(2,),
)


def random_shard(seed: int, *, conversations: int = 24, top_k: int = 5, purpose: Purpose = Purpose.TRAIN) -> Shard:
    """Conversations of 3 to 14 tokens a side, whose likely tokens are few of the vocabulary: something to learn."""
    draw = np.random.default_rng(seed)
    questions = [draw.integers(12, VOCAB, draw.integers(3, 9)).tolist() for _ in range(conversations)]
    answers = [draw.integers(12, VOCAB, draw.integers(4, 15)).tolist() for _ in range(conversations)]
    tokens = sum(map(len, answers))
    top_ids = 40 + np.argsort(draw.random((tokens, 12)), axis=1)[:, :top_k]
    logits = np.sort(draw.normal(0, 2, (tokens, top_k)), axis=1)[:, ::-1]
    weights = np.exp(logits) / (np.exp(logits).sum(axis=1, keepdims=True) * 1.1)
    return make_shard(
        tokenizer=TOKENIZER,
        vocab=VOCAB,
        purpose=purpose,
        questions=questions,
        answers=answers,
        top_ids=top_ids,
        top_logprobs=np.log(weights),
        tail=1 - np.exp(np.log(weights).astype(np.float16).astype(np.float32)).sum(axis=1),
    )


def random_start(adapter: AdapterSpec, model: Any, seed: int = 0) -> TrainState:
    """A cold state: a random prefix, or LoRA with a random A and B of nought."""
    draw = np.random.default_rng(seed)
    if adapter.kind is AdapterKind.PREFIX:
        layers, heads, dim = prefix_geometry(model)
        return cold_state(
            {PREFIX_TENSOR: draw.normal(0, 0.5, (adapter.virtual_tokens, layers * 2 * heads * dim)).astype("f4")}
        )
    parameters = {}
    for name, shape in expected_shapes(adapter, model).items():
        if name.endswith(".lora_B.weight"):
            parameters[name] = np.zeros(shape, dtype=np.float32)
        elif adapter.frozen_a_seed is None:
            parameters[name] = seeded_a(seed, name, *shape)
    return cold_state(parameters)


def make_spec(adapter: AdapterSpec = PREFIX, **changed: Any) -> TrainSpec:
    """12 steps in segments of 3, of 4 rows of 64 tokens."""
    spec = TrainSpec(
        model=digest_of(b"model"),
        frame=digest_of(FRAME.to_bytes()),
        adapter=adapter,
        state=digest_of(b"state"),
        shards=(),
        distractors=(),
        distractor_share=0.0,
        first_step=0,
        stop_step=12,
        total_steps=24,
        segment_steps=3,
        batch_rows=4,
        row_tokens=64,
        learning_rate=0.1 if adapter.kind is AdapterKind.PREFIX else 0.005,
        warmup_steps=2,
        schedule=Schedule.COSINE,
        seed=1,
        round=0,
        stream=0,
        streams=1,
        compute_dtype=ComputeDtype.FLOAT32,
    )
    return replace(spec, **changed)


def conversations(*seeds: int) -> list[Conversation]:
    return conversations_of([random_shard(seed) for seed in seeds or (1, 2)], FRAME)


def course(spec: TrainSpec, *seeds: int) -> Course:
    return make_course(spec, conversations(*seeds), FRAME)


def write_inputs(
    folder: Path,
    spec: TrainSpec,
    start: TrainState,
    shards: Sequence[Shard],
    distractors: Sequence[Path] = (),
    *,
    model: str | None = None,
) -> tuple[TrainSpec, dict[str, Path]]:
    """A unit's inputs as files, and its spec with their digests."""
    paths = {"frame.json": folder / "frame.json", "state.safetensors": folder / "state.safetensors"}
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    (folder / "distractors").mkdir(exist_ok=True)
    paths["frame.json"].write_bytes(FRAME.to_bytes())
    write_state(paths["state.safetensors"], start)
    for number, shard in enumerate(shards):
        paths[f"shards/{number:04d}.safetensors"] = folder / "shards" / f"{number:04d}.safetensors"
        write_shard(paths[f"shards/{number:04d}.safetensors"], shard)
    for number, path in enumerate(distractors):
        paths[f"distractors/{number:04d}.safetensors"] = path
    named = replace(
        spec,
        model=model or spec.model,
        state=digest_of_file(paths["state.safetensors"]),
        shards=tuple(digest_of_file(path) for name, path in paths.items() if name.startswith("shards/")),
        distractors=tuple(digest_of_file(path) for name, path in paths.items() if name.startswith("distractors/")),
    )
    return named, paths
