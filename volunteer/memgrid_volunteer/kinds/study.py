"""Run a study unit: conversations about one chunk of text, written as one shard.

Knows a unit's files; knows neither leases nor network, nor how conversations are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from memgrid.clock import Clock
from memgrid.digest import token_ids
from memgrid.distill.prefill import flops_per_token
from memgrid.distill.study import conversations_at_once, study
from memgrid.errors import InvalidError
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.shard import SHARD_FILE, Shard, read_shard, shard_bytes, write_shard
from memgrid.kinds.study import sketch_shard
from memgrid.specs import StudySpec
from memgrid.units import WorkFacts
from memgrid_volunteer.kinds.committed import COMMIT_EVERY_S, Checkpoint
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job
from memgrid_volunteer.kinds.models import Fitted, checked_inputs, facts_of, load_causal
from memgrid_volunteer.kinds.pace import Pace
from memgrid_volunteer.kinds.telling import Tell, Telling
from memgrid_volunteer.numerics import Device, resolve


class Study:
    """Runs study units on one device; `tell` hears how far the running one has got."""

    def __init__(
        self,
        device: Device,
        clock: Clock,
        tell: Tell,
        pace: Pace | None = None,
        *,
        commit_every_s: float = COMMIT_EVERY_S,
        batch: int | None = None,
    ) -> None:
        self._device = device
        self._tell = Telling(tell, clock)
        self._pace = pace or Pace(clock)
        self._commit_every_s = commit_every_s
        self._batch = batch
        self._fitted = Fitted()

    def run(self, job: Job) -> WorkFacts:
        """Write the shard and its sketch into the job's output folder, going on from what lies there.

        Raises InvalidError when the inputs are not the spec's, MemoryError when not even one conversation fits.
        """
        spec = StudySpec.from_bytes((job.unit_dir / "spec.json").read_bytes())
        inputs = checked_inputs(spec, job.unit_dir)
        frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
        tokens = token_ids(inputs[TOKENS_FILE].read_bytes())
        if len(tokens) != spec.token_count:
            raise InvalidError(f"the unit's spec says {spec.token_count} tokens, {TOKENS_FILE} holds {len(tokens)}")
        resolved = resolve(spec.compute_dtype, self._device)
        checkpoint = Checkpoint(
            job.out_dir, spec.key, wanted=spec.compute_dtype, resolved=resolved, every_s=self._commit_every_s
        )
        model = load_causal(job.model_dir, checkpoint.compute_dtype, self._device)
        unit = _Talking(model=model, spec=spec, frame=frame, tokens=tokens, checkpoint=checkpoint)
        unit.shard = read_former(spec, frame, checkpoint)
        if unit.shard is not None:
            self._tell.say_it_goes_on(share_done(spec, unit.shard))
        self._pace.begin(0.0 if unit.shard is None else checkpoint.computed_s)
        at_once = self._batch or conversations_at_once(spec, flops_per_token(model), self._device.facts.kind)
        shard = self._fitted.run(str(job.model_dir), lambda batch: self._study(unit, batch), at_once)
        write_shard(job.out_dir / SHARD_FILE, shard)
        (job.out_dir / SKETCH_FILE).write_bytes(sketch_shard(shard))
        checkpoint.clear()
        return facts_of(
            self._device,
            checkpoint.compute_dtype,
            tokens=len(tokens) + _written(shard),
            compute_s=self._pace.spent_s,
        )

    def _study(self, unit: _Talking, batch: int) -> Shard:
        def between(thirds: int, shard: Callable[[], Shard]) -> None:
            unit.shard = shard()
            computed_s, share = self._pace.computed_s, thirds / (3 * unit.spec.conversations)
            if share < 1 and unit.checkpoint.is_due(computed_s):
                unit.checkpoint.replace_parts([shard_bytes(unit.shard)], computed_s, done=share)
            text = f"{round(share * unit.spec.conversations)} of {unit.spec.conversations} conversations"
            tokens = len(unit.tokens) + _written(unit.shard)
            self._tell.say(share, text, tokens=tokens, computed_s=computed_s)

        return study(
            unit.model,
            unit.spec,
            unit.frame,
            unit.tokens,
            batch=batch,
            former=unit.shard,
            between=between,
            rest=self._rest,
        )

    def _rest(self) -> None:
        # Waiting for a GPU after every token would cost more than it gives; at full speed nobody rests.
        if self._pace.duty < 1:
            self._device.finish()
        self._pace.rest()


@dataclass(slots=True, kw_only=True, eq=False)
class _Talking:
    """A unit at work, and what there is of its shard."""

    model: Any
    spec: StudySpec
    frame: ChatFrame
    tokens: list[int]
    checkpoint: Checkpoint
    shard: Shard | None = None


def read_former(spec: StudySpec, frame: ChatFrame, checkpoint: Checkpoint) -> Shard | None:
    """What a former run left of this unit, None when that is nothing, or could not be of it."""
    for path in checkpoint.whole()[-1:]:
        try:
            shard = read_shard(path)
        except (OSError, InvalidError):
            break
        found = (shard.tokenizer, shard.vocab, shard.purpose, shard.top_k)
        if found != (frame.tokenizer, frame.vocab, spec.purpose, spec.top_k) or len(shard) > spec.conversations:
            break
        longest = [int(np.diff(each).max(initial=0)) for each in (shard.question_offsets, shard.answer_offsets)]
        if longest[0] > spec.question_tokens or longest[1] > spec.answer_tokens:
            break
        checkpoint.go_on_from([path])
        return shard
    checkpoint.go_on_from([])
    return None


def share_done(spec: StudySpec, shard: Shard) -> float:
    """An answer is about twice the work of a question."""
    answered = int((np.diff(shard.answer_offsets) > 0).sum())
    return min(1.0, (len(shard) + 2 * answered) / (3 * spec.conversations))


def _written(shard: Shard) -> int:
    return len(shard.question_ids) + len(shard.answer_ids)
