"""A tiny model, a unit that asks it about a text, and the honest answer: for tests of studying and scoring."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from memgrid.digest import digest_of, token_bytes
from memgrid.distill.audit import audit
from memgrid.distill.model import CausalLM, load_model
from memgrid.distill.study import study
from memgrid.kinds.audit import Audit
from memgrid.kinds.frame import FRAME_FILE, ChatFrame, build_frame, context_ids
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.shard import SHARD_FILE, Shard, write_shard
from memgrid.kinds.study import StudyKind, audited, sketch_shard
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.specs import Purpose, StudySpec
from memgrid.units import ComputeDtype
from tests.models import make_tiny_model, make_tokenizer

KIND = StudyKind()
CPU = torch.device("cpu")
TEXT = (
    "The manual says that the valve opens at three bar and closes at two. Two replicas agree, one uploads, and nobody"
    " has to trust the donor. A volunteer computes the cache of a text once, and everybody else attaches it."
)
DRAW = bytes(32)


@dataclass(frozen=True, kw_only=True)
class Studied:
    """A tiny model, a unit that asks it about a text, and the honest answer."""

    folder: Path
    frame: ChatFrame
    tokens: list[int]
    spec: StudySpec
    inputs: dict[str, Path]
    honest: Shard
    geometry: ModelGeometry

    def model(self, dtype: torch.dtype = torch.float32) -> CausalLM:
        return load_model(self.folder, dtype, CPU)

    def made(self, **changes: object) -> Shard:
        """What another unit would have given, as if it were this one's."""
        return study(self.model(), dataclasses.replace(self.spec, **changes), self.frame, self.tokens)  # type: ignore[arg-type]

    def audit(
        self,
        shard: Shard,
        *,
        claimed: ComputeDtype = ComputeDtype.FLOAT32,
        draw: bytes = DRAW,
        again: bool = False,
    ) -> Audit:
        path = self.inputs[FRAME_FILE].parent / "claimed.safetensors"
        write_shard(path, shard)
        return audit(
            self.spec,
            model_folder=self.folder,
            inputs=self.inputs,
            files={SHARD_FILE: path},
            compute_dtype=claimed,
            draw=draw,
            tolerances=BUILT_IN,
            again=again,
        )

    def check(self, shard: Shard, *, sketch: bytes | None = None) -> None:
        path = self.inputs[FRAME_FILE].parent / "claimed.safetensors"
        write_shard(path, shard)
        KIND.check_files(
            self.spec,
            {SHARD_FILE: path},
            self.inputs,
            sketch_shard(shard) if sketch is None else sketch,
            self.geometry,
        )

    def draw_of(self, index: int) -> bytes:
        """A draw that picks this conversation."""
        return next(draw for number in range(1000) if index in audited(self.spec, draw := number.to_bytes(32, "big")))


def make_studied(folder: Path) -> Studied:
    """The model goes into `folder`, the unit's files beside it."""
    make_tiny_model(folder, layers=3)
    tokenizer = make_tokenizer()
    # A random model hardly ever says the one token that ends: let a good part of the vocabulary do it.
    frame = build_frame(tokenizer)
    given = {token for opening in frame.openings for token in opening}
    frame = dataclasses.replace(frame, stops=tuple(sorted({2, *range(2, 384, 9)} - given)))
    tokens = context_ids(tokenizer, TEXT)
    spec = StudySpec(
        model=digest_of(b"model"),
        frame=digest_of(frame.to_bytes()),
        tokens=digest_of(token_bytes(tokens)),
        token_count=len(tokens),
        purpose=Purpose.TRAIN,
        seed=5,
        first=40,
        conversations=16,
        temperature=0.8,
        question_tokens=40,
        answer_tokens=24,
        top_k=12,
        compute_dtype=ComputeDtype.AUTO,
    )
    inputs = {FRAME_FILE: folder.parent / FRAME_FILE, TOKENS_FILE: folder.parent / TOKENS_FILE}
    inputs[FRAME_FILE].write_bytes(frame.to_bytes())
    inputs[TOKENS_FILE].write_bytes(token_bytes(tokens))
    geometry = ModelGeometry(
        layers=3, heads=4, kv_heads=2, head_dim=16, hidden=64, vocab=384, parameters=150_000, tied_embeddings=True
    )
    honest = study(load_model(folder, torch.float32, CPU), spec, frame, tokens)
    return Studied(
        folder=folder, frame=frame, tokens=tokens, spec=spec, inputs=inputs, honest=honest, geometry=geometry
    )
