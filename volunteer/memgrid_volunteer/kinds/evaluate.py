"""Run an evaluate unit: scores of held-out conversations, with and without an adapter.

Knows a unit's files; knows neither leases nor network, nor how scores are made.
"""

from __future__ import annotations

from collections.abc import Callable

from memgrid.clock import Clock
from memgrid.distill.adapters import load_adapter
from memgrid.distill.evaluate import BATCH_ROWS, evaluate
from memgrid.kinds.evaluate import ADAPTER_FILE, SCORES_FILE, Scores, read_items, scores_bytes
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.specs import EvaluateSpec
from memgrid.units import WorkFacts
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job, Progress
from memgrid_volunteer.kinds.models import as_many_as_fit, checked_inputs, facts_of, load_causal
from memgrid_volunteer.numerics import Device, resolve

Tell = Callable[[Progress], None]


class Evaluate:
    """Runs evaluate units on one device; `tell` hears how far the running one has got."""

    def __init__(self, device: Device, clock: Clock, tell: Tell) -> None:
        self._device = device
        self._clock = clock
        self._tell = tell

    def run(self, job: Job) -> WorkFacts:
        """Write the scores, which are their own sketch, into the job's output folder.

        Raises InvalidError when the inputs are not the spec's, MemoryError when not even one row fits.
        """
        spec = EvaluateSpec.from_bytes((job.unit_dir / "spec.json").read_bytes())
        inputs = checked_inputs(spec, job.unit_dir)
        frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
        items = read_items(spec, inputs)
        compute_dtype = resolve(spec.compute_dtype, self._device)
        model = load_causal(job.model_dir, compute_dtype, self._device)
        adapter = None if spec.adapter is None else load_adapter(inputs[ADAPTER_FILE], spec.adapter, model)
        began_s = self._clock.monotonic_s()

        def tell(done: float) -> None:
            self._tell(Progress(done=done, text=f"{done:.0%} of {spec.items} conversations scored"))

        def compute(batch_size: int) -> Scores:
            return evaluate(model, frame, items, adapter, batch_rows=batch_size, progress=tell)

        scores = as_many_as_fit(compute, BATCH_ROWS)
        content = scores_bytes(scores)
        (job.out_dir / SCORES_FILE).write_bytes(content)
        (job.out_dir / SKETCH_FILE).write_bytes(content)
        return facts_of(
            self._device,
            compute_dtype,
            tokens=int(scores.tokens.sum()) * len(scores.arms),
            compute_s=self._clock.monotonic_s() - began_s,
        )
