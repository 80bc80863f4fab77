"""Well-formed things to begin with, made by the program's own writers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from memgrid.cube.identity import ModelIdentity
from memgrid.digest import Digest, digest_of, token_bytes
from memgrid.distill.state import TrainState, cold_state, write_state
from memgrid.kinds.delta_sketch import delta_sketch_bytes, sketch_states
from memgrid.kinds.evaluate import ArmScores, Scores, scores_bytes
from memgrid.kinds.frame import ChatFrame
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.shard import Shard, make_shard, write_shard
from memgrid.kinds.trace import TRACE_FILE, StepTrace, trace_bytes
from memgrid.kinds.train import committed_name
from memgrid.specs import (
    AdapterKind,
    AdapterSpec,
    EvaluateSpec,
    PrefillSpec,
    Purpose,
    Schedule,
    StudySpec,
    TrainSpec,
)
from memgrid.testing import SimulatedGpu, SimulatedWork
from memgrid.units import BlobRef, ComputeDtype, LeaseId, LeaseOffer, StoreDtype
from memgrid_volunteer.kinds.committed import Checkpoint
from memgrid_volunteer.packing import pack

GEOMETRY = ModelGeometry(
    layers=2, heads=4, kv_heads=2, head_dim=8, hidden=32, vocab=300, parameters=40_000, tied_embeddings=True
)
BASE = ModelIdentity(
    name="tiny",
    architecture="LlamaForCausalLM",
    weights=digest_of(b"weights"),
    tokenizer=digest_of(b"tokenizer"),
    chat_template=None,
    stored_dtype="BF16",
    dtype_exceptions={},
    geometry=GEOMETRY,
    rope={"all": {"type": "default", "theta": 10000.0, "rotary_dim": 8}},
    sliding_window=None,
    config={"model_type": "llama", "intermediate_size": 64},
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TOKENS = tuple(range(20))
TOKENIZER = digest_of(b"tokenizer")
FRAME = ChatFrame(
    tokenizer=TOKENIZER,
    vocab=300,
    asks=((1, 2), (3,)),
    openings=((4,), ()),
    teacher_before=(9,),
    teacher_after=(10, 11),
    student_before=(3, 4),
    student_after=(7, 8),
    stops=(2,),
    question_stops=(5,),
)
PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=3, frozen_tokens=1)
LORA = AdapterSpec(kind=AdapterKind.LORA, rank=2, alpha=4, targets=("q_proj", "v_proj"))


def prefill_spec(store_dtype: StoreDtype = StoreDtype.BFLOAT16, parent: Any = None) -> PrefillSpec:
    return PrefillSpec(
        model=BASE.digest,
        tokens=digest_of(token_bytes(TOKENS)),
        token_count=len(TOKENS),
        start=0,
        parent=parent,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=store_dtype,
    )


def study_spec() -> StudySpec:
    return StudySpec(
        model=BASE.digest,
        frame=digest_of(FRAME.to_bytes()),
        tokens=digest_of(token_bytes(TOKENS)),
        token_count=len(TOKENS),
        purpose=Purpose.TRAIN,
        seed=7,
        first=0,
        conversations=4,
        temperature=0.7,
        question_tokens=4,
        answer_tokens=6,
        top_k=3,
        compute_dtype=ComputeDtype.FLOAT32,
    )


def train_spec(adapter: AdapterSpec = PREFIX) -> TrainSpec:
    return TrainSpec(
        model=BASE.digest,
        frame=digest_of(FRAME.to_bytes()),
        adapter=adapter,
        state=digest_of(b"state"),
        shards=(digest_of(b"shard"),),
        distractors=(),
        distractor_share=0.25,
        first_step=0,
        stop_step=4,
        total_steps=8,
        segment_steps=2,
        batch_rows=2,
        row_tokens=32,
        learning_rate=0.05,
        warmup_steps=1,
        schedule=Schedule.COSINE,
        seed=1,
        round=0,
        stream=0,
        streams=1,
        compute_dtype=ComputeDtype.FLOAT32,
    )


def evaluate_spec() -> EvaluateSpec:
    return EvaluateSpec(
        model=BASE.digest,
        frame=digest_of(FRAME.to_bytes()),
        adapter=PREFIX,
        adapter_file=digest_of(b"adapter"),
        shards=(digest_of(b"shard"),),
        first=0,
        items=4,
        compute_dtype=ComputeDtype.FLOAT32,
    )


def offer(spec: PrefillSpec) -> LeaseOffer:
    return LeaseOffer(
        lease_id=LeaseId("a" * 32),
        fence=1,
        unit_key=spec.key,
        spec=spec.to_bytes(),
        model=spec.model,
        inputs=(BlobRef(name="tokens.bin", digest=spec.tokens, size_bytes=80, path="/v2/grid/inputs/blobs/x"),),
        deadline_at=NOW + timedelta(hours=1),
        estimate_s=2.5,
    )


def prefill_work(store_dtype: StoreDtype) -> SimulatedWork:
    return SimulatedGpu(GEOMETRY).work(offer(prefill_spec(store_dtype)), token_bytes(TOKENS))


def shard() -> Shard:
    """Four conversations, as study makes them."""
    answers = [[20, 21, 22, 2], [30, 31, 32, 33, 34, 35], [40, 2], [50, 51, 2]]
    first = [token for answer in answers for token in answer]
    top_ids = np.array([[token, 100, 101] for token in first])
    weights = np.tile([0.5, 0.25, 0.125], (len(first), 1)).astype(np.float16)
    return make_shard(
        tokenizer=TOKENIZER,
        vocab=300,
        purpose=Purpose.TRAIN,
        questions=[[12, 13], [14], [15, 16, 17], [18]],
        answers=answers,
        top_ids=top_ids,
        top_logprobs=np.log(weights.astype(np.float64)),
        tail=np.full(len(first), 0.125),
    )


def shard_file() -> bytes:
    return _written(lambda path: write_shard(path, shard()))


def state(step: int = 4, adapter: AdapterSpec = PREFIX) -> TrainState:
    draw = np.random.default_rng(step)
    sink = np.random.default_rng(0).normal(size=(1, 64))
    if adapter.kind is AdapterKind.PREFIX:
        rows = np.concatenate([sink, draw.normal(size=(2, 64))]).astype(np.float32)
        made = cold_state({"prompt_embeddings": rows})
    else:
        made = cold_state({
            f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{side}.weight": draw.normal(
                size=shape
            ).astype(np.float32)
            for layer in range(GEOMETRY.layers)
            for target, width in (("q_proj", 32), ("v_proj", 16))
            for side, shape in (("A", (2, 32)), ("B", (width, 2)))
        })  # fmt: skip
    return TrainState(step=step, parameters=made.parameters, m=made.m, v=made.v)


def state_file(step: int = 4, adapter: AdapterSpec = PREFIX) -> bytes:
    return _written(lambda path: write_state(path, state(step, adapter)))


def delta_sketch() -> bytes:
    with TemporaryDirectory() as folder:
        start, end = Path(folder) / "start", Path(folder) / "end"
        write_state(start, state(0))
        write_state(end, state(4))
        return delta_sketch_bytes(sketch_states(start, end, PREFIX, GEOMETRY, train_spec().key))


def trace() -> bytes:
    return trace_bytes([StepTrace(step=step, loss=1.5, tokens=40, gradient_norm=0.25) for step in range(4)])


def half_done() -> bytes:
    """What is done of a training, packed: its line, its trace and a committed state."""
    spec = train_spec()
    with TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        place.mkdir()
        (place / TRACE_FILE).write_bytes(trace())
        dtype = spec.compute_dtype
        Checkpoint(place, spec.key, wanted=dtype, resolved=dtype).add(
            committed_name(1), state_file(2), 30.0, done=0.5
        )
        return pack(place, spec.to_bytes(), Path(folder) / "packed").path.read_bytes()


def scores() -> bytes:
    arm = ArmScores(nll=np.full(4, 2.5), kl=np.full(4, 0.5), correct=np.full(4, 1))
    tokens = np.array([4, 6, 2, 3])
    return scores_bytes(Scores(tokens=tokens, text_nll=np.full(4, 1.5), arms={"none": arm, "cube": arm}))


def _written(write: Any) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


def digest() -> Digest:
    return digest_of(b"content")
