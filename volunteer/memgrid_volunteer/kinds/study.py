"""Run a study unit: conversations about one chunk of text, written as one shard.

Knows a unit's files; knows neither leases nor network, nor how conversations are made.
"""

from __future__ import annotations

from collections.abc import Callable

from memgrid.clock import Clock
from memgrid.digest import token_ids
from memgrid.distill.study import BATCH, study
from memgrid.errors import InvalidError
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.shard import SHARD_FILE, Shard, write_shard
from memgrid.kinds.study import sketch_shard
from memgrid.specs import StudySpec
from memgrid.units import WorkFacts
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job, Progress
from memgrid_volunteer.kinds.models import as_many_as_fit, checked_inputs, facts_of, load_causal
from memgrid_volunteer.numerics import Device, resolve

Tell = Callable[[Progress], None]


class Study:
    """Runs study units on one device; `tell` hears how far the running one has got."""

    def __init__(self, device: Device, clock: Clock, tell: Tell) -> None:
        self._device = device
        self._clock = clock
        self._tell = tell

    def run(self, job: Job) -> WorkFacts:
        """Write the shard and its sketch into the job's output folder.

        Raises InvalidError when the inputs are not the spec's, MemoryError when not even one conversation fits.
        """
        spec = StudySpec.from_bytes((job.unit_dir / "spec.json").read_bytes())
        inputs = checked_inputs(spec, job.unit_dir)
        frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
        tokens = token_ids(inputs[TOKENS_FILE].read_bytes())
        if len(tokens) != spec.token_count:
            raise InvalidError(f"the unit's spec says {spec.token_count} tokens, {TOKENS_FILE} holds {len(tokens)}")
        compute_dtype = resolve(spec.compute_dtype, self._device)
        model = load_causal(job.model_dir, compute_dtype, self._device)
        began_s = self._clock.monotonic_s()

        def tell(done: float) -> None:
            text = f"{round(done * spec.conversations)} of {spec.conversations} conversations"
            self._tell(Progress(done=done, text=text))

        def compute(batch_size: int) -> Shard:
            return study(model, spec, frame, tokens, batch=batch_size, progress=tell)

        shard = as_many_as_fit(compute, min(BATCH, spec.conversations))
        write_shard(job.out_dir / SHARD_FILE, shard)
        (job.out_dir / SKETCH_FILE).write_bytes(sketch_shard(shard))
        written = len(shard.question_ids) + len(shard.answer_ids)
        return facts_of(
            self._device, compute_dtype, tokens=len(tokens) + written, compute_s=self._clock.monotonic_s() - began_s
        )
