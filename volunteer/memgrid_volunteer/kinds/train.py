"""Train an adapter for some steps, committing a state every few, and go on from the last one after any interruption.

Knows a unit's files and their order on disk; knows neither leases nor network. Every state is on the disk before
training goes on, so a kill costs at most a segment and changes no bit of the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgrid.clock import Clock
from memgrid.digest import canonical_json, digest_of, digest_of_file
from memgrid.distill.state import TrainState, read_state, state_bytes, without_moments, write_whole
from memgrid.distill.train_inputs import geometry_of_model, read_course
from memgrid.distill.training import train
from memgrid.errors import InvalidError
from memgrid.kinds.delta_sketch import delta_sketch_bytes, sketch_states
from memgrid.kinds.trace import TRACE_FILE, StepTrace, read_trace, trace_bytes
from memgrid.kinds.train import COMMITTED_FILE, STATE_FILE, committed_name, committed_step, has_moments
from memgrid.specs import TrainSpec
from memgrid.units import WorkFacts
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job, Progress
from memgrid_volunteer.kinds.models import checked_inputs, facts_of, load_causal
from memgrid_volunteer.numerics import TORCH_DTYPE, Device, resolve

Tell = Callable[[Progress], None]
_TELL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reached:
    """Where training stands: the state, the trace up to it, the seconds it took, the digests of what is committed."""

    state: TrainState
    trace: tuple[StepTrace, ...]
    compute_s: float
    digests: dict[str, str]


class Train:
    """Runs train units on one device; `tell` hears how far the running one has got."""

    def __init__(self, device: Device, clock: Clock, tell: Tell) -> None:
        self._device = device
        self._clock = clock
        self._tell = tell
        self._told_s = float("-inf")

    def run(self, job: Job) -> WorkFacts:
        """Write the unit's states, trace and sketch into the job's output folder, going on from what lies there.

        Raises InvalidError when the inputs are not the spec's, RefusedError (DIVERGED, VOCABULARY_MISMATCH and
        the like) when they can't be trained on, MemoryError when not even one row fits.
        """
        spec = TrainSpec.from_bytes((job.unit_dir / "spec.json").read_bytes())
        inputs = checked_inputs(spec, job.unit_dir)
        compute_dtype = resolve(spec.compute_dtype, self._device)
        model = load_causal(job.model_dir, compute_dtype, self._device)
        reached = resume(spec, job.out_dir) or _Reached(
            state=read_state(inputs[STATE_FILE]), trace=(), compute_s=0.0, digests={}
        )
        compute_s = self._train(spec, job, model, inputs, reached, TORCH_DTYPE[compute_dtype])
        geometry = geometry_of_model(model)
        sketch = sketch_states(inputs[STATE_FILE], job.out_dir / STATE_FILE, spec.adapter, geometry, spec.key)
        write_whole(job.out_dir / SKETCH_FILE, delta_sketch_bytes(sketch))
        tokens = (spec.stop_step - spec.first_step) * spec.batch_rows * spec.row_tokens
        return facts_of(self._device, compute_dtype, tokens=tokens, compute_s=compute_s)

    def _train(
        self, spec: TrainSpec, job: Job, model: Any, inputs: dict[str, Path], reached: _Reached, dtype: Any
    ) -> float:
        """The seconds of all runs of this unit together."""
        began_s = self._clock.monotonic_s() - reached.compute_s
        digests = dict(reached.digests)

        def commit(state: TrainState, trace: tuple[StepTrace, ...]) -> None:
            compute_s = self._clock.monotonic_s() - began_s
            commit_state(spec, job.out_dir, _Reached(state=state, trace=trace, compute_s=compute_s, digests=digests))

        def tell(entry: StepTrace) -> None:
            self._tell_of(spec, entry)

        train(
            model,
            spec,
            reached.state,
            read_course(spec, inputs, model),
            trace=reached.trace,
            compute_dtype=dtype,
            on_step=tell,
            on_segment=commit,
        )
        return self._clock.monotonic_s() - began_s

    def _tell_of(self, spec: TrainSpec, entry: StepTrace) -> None:
        done, count = entry.step + 1 - spec.first_step, spec.stop_step - spec.first_step
        now_s = self._clock.monotonic_s()
        if done == count or now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            self._tell(Progress(done=done / count, text=f"step {done} of {count}, loss {entry.loss:.2f}"))


def commit_state(spec: TrainSpec, out_dir: Path, reached: _Reached) -> None:
    """State, then trace, then the line that says both are there: whatever comes between, the former state counts."""
    name = _name_of(spec, reached.state.step)
    content = state_bytes(reached.state if has_moments(spec, name) else without_moments(reached.state))
    write_whole(out_dir / name, content)
    write_whole(out_dir / TRACE_FILE, trace_bytes(reached.trace))
    reached.digests[name] = digest_of(content)
    line = {"unit": spec.key, "compute_s": reached.compute_s, "states": reached.digests}
    write_whole(out_dir / COMMITTED_FILE, canonical_json(line))


def resume(spec: TrainSpec, out_dir: Path) -> _Reached | None:
    """The last committed state that is whole, with what led to it; None when the unit begins."""
    try:
        committed = json.loads((out_dir / COMMITTED_FILE).read_bytes())
        trace = read_trace((out_dir / TRACE_FILE).read_bytes())
        if committed["unit"] != spec.key:
            return None
        states, compute_s = dict(committed["states"]), float(committed["compute_s"])
    except (OSError, ValueError, KeyError, TypeError, InvalidError):
        return None
    by_step = sorted((committed_step(spec, name), name) for name in states if _is_of(spec, name))
    kept: dict[str, str] = {}
    last: TrainState | None = None
    for step, name in by_step:
        # A chain is as good as its first fault: every state up to the last is handed in.
        if not (out_dir / name).is_file() or digest_of_file(out_dir / name) != states[name]:
            break
        last, kept[name] = read_state(out_dir / name), states[name]
        if last.step != step:
            return None
    if last is None or [entry.step for entry in trace[: last.step - spec.first_step]] != list(
        range(spec.first_step, last.step)
    ):
        return None
    return _Reached(state=last, trace=trace[: last.step - spec.first_step], compute_s=compute_s, digests=kept)


def _name_of(spec: TrainSpec, step: int) -> str:
    if step == spec.stop_step:
        return STATE_FILE
    return committed_name((step - spec.first_step) // spec.segment_steps)


def _is_of(spec: TrainSpec, name: str) -> bool:
    return name == STATE_FILE or name in {committed_name(number) for number in range(1, spec.segments)}
