"""Texts to distil and what was said about them: studied by the real code once, then kept for the next benchmark."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.cubes import MODEL, ROOT
from memgrid.campaign_distill import LoraAdapter, PrefixAdapter, Start
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.parts import Quality
from memgrid.cube.peft import adapter_files
from memgrid.digest import digest_of, digest_of_file, token_bytes
from memgrid.distill.adapters import load_adapter
from memgrid.distill.evaluate import evaluate
from memgrid.distill.model import load_model
from memgrid.distill.starts import start_state
from memgrid.distill.state import TrainState, write_state
from memgrid.distill.study import study
from memgrid.kinds.evaluate import read_items, scores_bytes, summarise
from memgrid.kinds.evaluate import shard_name as held_out_name
from memgrid.kinds.frame import FRAME_FILE, ChatFrame, build_frame, context_ids
from memgrid.kinds.shard import conversation_digests, distinct, read_shard, select, write_shard
from memgrid.specs import AdapterSpec, EvaluateSpec, Purpose, Schedule, StudySpec, TrainSpec
from memgrid.units import ComputeDtype, StoreDtype

TEXTS = tuple(sorted((ROOT / "scripts" / "benchmarks" / "texts").glob("*.md")))
KEPT = ROOT / ".cache" / "benchmarks" / "distill"
"""Conversations, by the key of the unit that asks for them."""
SEED = 1
CONVERSATIONS_PER_UNIT = 32
PREFIX = PrefixAdapter(kind="prefix", compression=8.5)
"""Of a text's tokens, so that the published file is at least 8 times smaller than the KV cache."""
LORA = LoraAdapter(kind="lora", rank=2)
"""The largest rank whose file is that small beside the cache of a text of some 600 tokens."""


@dataclass(slots=True)
class Stopwatch:
    """Seconds on the wall and on the processor, which says more where other programs run beside."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall_s += time.perf_counter() - wall_s
            self.cpu_s += time.process_time() - cpu_s

    def to_json(self) -> dict[str, float]:
        return {"wall_s": round(self.wall_s, 1), "cpu_s": round(self.cpu_s, 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """A text and the conversations about it; those held out are none of those to train on."""

    name: str
    tokens: tuple[int, ...]
    frame: ChatFrame
    frame_path: Path
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]
    items: int
    time: Stopwatch = field(default_factory=Stopwatch)


@cache
def base() -> ModelIdentity:
    return identity_of_folder(MODEL)


def model() -> Any:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(MODEL, torch.float32, device)


def studied(path: Path, *, train: int, held_out: int) -> Studied:
    """Conversations about a text, made now or found as they were made before, with the seconds that took."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    frame, tokens = build_frame(tokenizer), tuple(context_ids(tokenizer, path.read_text()))
    KEPT.mkdir(parents=True, exist_ok=True)
    frame_path = KEPT / FRAME_FILE
    frame_path.write_bytes(frame.to_bytes())
    watch = Stopwatch()
    found = {
        purpose: [
            _unit(frame, tokens, purpose, first, min(CONVERSATIONS_PER_UNIT, count - first), watch)
            for first in range(0, count, CONVERSATIONS_PER_UNIT)
        ]
        for purpose, count in ((Purpose.TRAIN, train), (Purpose.HELD_OUT, held_out))
    }
    held, items = _kept(found[Purpose.HELD_OUT], set())
    seen = {digest for each in held for digest in conversation_digests(read_shard(each))}
    shards, _ = _kept(found[Purpose.TRAIN], seen)
    return Studied(
        name=path.stem,
        tokens=tokens,
        frame=frame,
        frame_path=frame_path,
        train=shards,
        held_out=held,
        items=items,
        time=watch,
    )


def study_spec(frame: ChatFrame, tokens: Sequence[int], purpose: Purpose, first: int, count: int) -> StudySpec:
    """With the recipe's own lengths and temperature."""
    return StudySpec(
        model=base().digest,
        frame=digest_of(frame.to_bytes()),
        tokens=digest_of(token_bytes(tokens)),
        token_count=len(tokens),
        purpose=purpose,
        seed=SEED,
        first=first,
        conversations=count,
        temperature=0.6,
        question_tokens=48,
        answer_tokens=96,
        top_k=20,
        compute_dtype=ComputeDtype.FLOAT32,
    )


def started(text: Studied, adapter: AdapterSpec, start: Start, path: Path) -> Stopwatch:
    """Write the state that training starts from; how long that took."""
    watch, ready = Stopwatch(), model()
    with watch.running():
        start_state(ready, adapter, start, text.tokens, SEED, path, frame=text.frame, shards=text.train)
    return watch


def train_spec(text: Studied, adapter: AdapterSpec, start: Path, **changed: Any) -> TrainSpec:
    """Training of one host; what a benchmark wants otherwise goes into `changed`."""
    spec = TrainSpec(
        model=base().digest,
        frame=digest_of(text.frame.to_bytes()),
        adapter=adapter,
        state=digest_of_file(start),
        shards=tuple(digest_of_file(path) for path in text.train),
        distractors=(),
        distractor_share=0.0,
        first_step=0,
        stop_step=16,
        total_steps=16,
        segment_steps=4,
        batch_rows=4,
        row_tokens=512,
        learning_rate=0.005,
        warmup_steps=2,
        schedule=Schedule.COSINE,
        seed=SEED,
        round=0,
        stream=0,
        streams=1,
        compute_dtype=ComputeDtype.FLOAT32,
    )
    return replace(spec, **changed)


def quality(text: Studied, adapter: AdapterSpec, state: TrainState, folder: Path) -> tuple[Quality, int]:
    """Scores on all held-out conversations of the adapter as it would be published; and its bytes."""
    write_state(folder / "scored.safetensors", state)
    _, content = adapter_files(folder / "scored.safetensors", adapter, base(), StoreDtype.BFLOAT16)
    published = folder / "adapter_model.safetensors"
    published.write_bytes(content)
    spec = evaluate_spec(text, adapter, published)
    items = read_items(spec, evaluate_inputs(text))
    scores = evaluate(model(), text.frame, items, load_adapter(published, adapter, model()))
    return summarise([scores_bytes(scores)], [spec]), len(content)


def evaluate_spec(text: Studied, adapter: AdapterSpec, published: Path) -> EvaluateSpec:
    return EvaluateSpec(
        model=base().digest,
        frame=digest_of(text.frame.to_bytes()),
        adapter=adapter,
        adapter_file=digest_of_file(published),
        shards=tuple(digest_of_file(path) for path in text.held_out),
        first=0,
        items=text.items,
        compute_dtype=ComputeDtype.FLOAT32,
    )


def evaluate_inputs(text: Studied) -> dict[str, Path]:
    return {FRAME_FILE: text.frame_path} | {held_out_name(number): path for number, path in enumerate(text.held_out)}


def _unit(
    frame: ChatFrame, tokens: Sequence[int], purpose: Purpose, first: int, count: int, watch: Stopwatch
) -> Path:
    spec = study_spec(frame, tokens, purpose, first, count)
    path, notes = KEPT / f"{spec.key}.safetensors", KEPT / f"{spec.key}.json"
    if not path.exists() or not notes.exists():
        took, ready = Stopwatch(), model()
        with took.running():
            shard = study(ready, spec, frame, list(tokens))
        write_shard(path, shard)
        notes.write_text(json.dumps(took.to_json()))
    took_before = json.loads(notes.read_text())
    watch.wall_s += took_before["wall_s"]
    watch.cpu_s += took_before["cpu_s"]
    return path


def _kept(paths: Sequence[Path], seen: set[bytes]) -> tuple[tuple[Path, ...], int]:
    """What is left of some shards without twins, and without conversations already seen; and how many those are."""
    shards = [read_shard(path) for path in paths]
    kept = distinct(shards, seen)
    found = []
    for number, (shard, path) in enumerate(zip(shards, paths, strict=True)):
        chosen = [index for owner, index in kept if owner == number]
        if len(chosen) == len(shard):
            found.append(path)
        elif chosen:
            rest = path.with_name(f"{path.stem}.kept.safetensors")
            write_shard(rest, select(shard, chosen))
            found.append(rest)
    return tuple(found), len(kept)
