"""Run an evaluate unit: scores of held-out conversations, with and without an adapter.

Knows a unit's files; knows neither leases nor network, nor how scores are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memgrid.clock import Clock
from memgrid.distill.adapters import load_adapter
from memgrid.distill.evaluate import BATCH_ROWS, Sums, count_rows, evaluate
from memgrid.errors import InvalidError
from memgrid.kinds.evaluate import (
    ADAPTER_FILE,
    CUBE,
    NONE,
    SCORES_FILE,
    Scores,
    read_items,
    scores_bytes,
    teacher_scores,
)
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import EvaluateSpec
from memgrid.units import WorkFacts
from memgrid_volunteer.kinds.committed import COMMIT_EVERY_S, Checkpoint
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job
from memgrid_volunteer.kinds.models import Fitted, checked_inputs, facts_of, load_causal
from memgrid_volunteer.kinds.pace import Pace
from memgrid_volunteer.kinds.telling import Tell, Telling
from memgrid_volunteer.numerics import Device, resolve

_FORMAT = "memgrid.scores-part.v1"


class Evaluate:
    """Runs evaluate units on one device; `tell` hears how far the running one has got."""

    def __init__(
        self,
        device: Device,
        clock: Clock,
        tell: Tell,
        pace: Pace | None = None,
        *,
        commit_every_s: float = COMMIT_EVERY_S,
        batch_rows: int | None = None,
    ) -> None:
        self._device = device
        self._tell = Telling(tell, clock)
        self._pace = pace or Pace(clock)
        self._commit_every_s = commit_every_s
        # One row keeps a CPU busy, and the fewer there are at once, the sooner its owner is heard.
        self._batch_rows = batch_rows or (BATCH_ROWS if device.facts.kind == "cuda" else 1)
        self._fitted = Fitted()

    def run(self, job: Job) -> WorkFacts:
        """Write the scores, which are their own sketch, into the job's output folder, going on from what lies there.

        Raises InvalidError when the inputs are not the spec's, MemoryError when not even one row fits.
        """
        spec = EvaluateSpec.from_bytes((job.unit_dir / "spec.json").read_bytes())
        inputs = checked_inputs(spec, job.unit_dir)
        frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
        items = read_items(spec, inputs)
        resolved = resolve(spec.compute_dtype, self._device)
        checkpoint = Checkpoint(
            job.out_dir, spec.key, wanted=spec.compute_dtype, resolved=resolved, every_s=self._commit_every_s
        )
        model = load_causal(job.model_dir, checkpoint.compute_dtype, self._device)
        adapter = None if spec.adapter is None else load_adapter(inputs[ADAPTER_FILE], spec.adapter, model)
        sums = read_sums(spec, checkpoint)
        answered = int(teacher_scores(items)[0].sum())
        tokens = answered * (1 if adapter is None else 2)

        def between(done: float, sums: dict[str, Sums]) -> None:
            self._device.finish()
            computed_s = self._pace.computed_s
            if done < 1 and checkpoint.is_due(computed_s):
                checkpoint.replace_parts([sums_bytes(sums)], computed_s, done=done)
            text = f"{done:.0%} of {spec.items} conversations scored"
            self._tell.say(done, text, tokens=done * tokens, computed_s=computed_s)
            self._pace.rest()

        def compute(batch_size: int) -> Scores:
            return evaluate(model, frame, items, adapter, batch_rows=batch_size, former=sums, between=between)

        if sums:
            arms, rows = 1 if adapter is None else 2, count_rows(items, frame)
            self._tell.say_it_goes_on(min(1.0, sum(arm.rows for arm in sums.values()) / max(1, arms * rows)))
        self._pace.begin(checkpoint.computed_s if sums else 0.0)
        scores = self._fitted.run(str(job.model_dir), compute, self._batch_rows)
        content = scores_bytes(scores)
        (job.out_dir / SCORES_FILE).write_bytes(content)
        (job.out_dir / SKETCH_FILE).write_bytes(content)
        checkpoint.clear()
        return facts_of(self._device, checkpoint.compute_dtype, tokens=tokens, compute_s=self._pace.spent_s)


def sums_bytes(sums: Mapping[str, Sums]) -> bytes:
    """How far the arms have got, as a file."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, arm in sums.items():
        tensors |= {f"{name}.nll": arm.nll, f"{name}.kl": arm.kl, f"{name}.correct": arm.correct}
        tensors[f"{name}.rows"] = np.array([arm.rows], dtype=np.int64)
    content: bytes = save(tensors, metadata={"format": _FORMAT})
    return content


def read_sums(spec: EvaluateSpec, checkpoint: Checkpoint) -> dict[str, Sums]:
    """What a former run left of this unit; nothing when there is none, or it could not be of it."""
    for path in checkpoint.whole()[-1:]:
        try:
            sums = _sums(spec, TensorFile.open(path))
        except (OSError, InvalidError):
            break
        checkpoint.go_on_from([path])
        return sums
    checkpoint.go_on_from([])
    return {}


def _sums(spec: EvaluateSpec, file: TensorFile) -> dict[str, Sums]:
    expected = {"nll": ("F64", (spec.items,)), "kl": ("F64", (spec.items,)), "correct": ("I64", (spec.items,))}
    expected |= {"rows": ("I64", (1,))}
    arms = [arm for arm in (NONE, CUBE) if f"{arm}.rows" in file.tensors]
    found = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
    if file.metadata != {"format": _FORMAT} or arms not in ([NONE], [NONE, CUBE] if spec.adapter else [NONE]):
        raise InvalidError("not a part of this unit's scores")
    if found != {f"{arm}.{name}": form for arm in arms for name, form in expected.items()}:
        raise InvalidError("not a part of this unit's scores")
    if not all(file.is_finite(name) for name in found if found[name][0] == "F64"):
        raise InvalidError("scores that are no numbers")
    sums = {arm: {name: file.bits(f"{arm}.{name}").copy() for name in expected} for arm in arms}
    if any(not 0 <= each["rows"][0] <= spec.items for each in sums.values()):
        raise InvalidError("more rows than conversations")
    return {
        arm: Sums(rows=int(each["rows"][0]), nll=each["nll"], kl=each["kl"], correct=each["correct"])
        for arm, each in sums.items()
    }
