"""Train an adapter for some steps, committing a state every few, and go on from the last one after any interruption.

Knows a unit's files and their order on disk; knows neither leases nor network. Every state is on the disk before
training goes on, and between two of them what was done is written every few seconds, so a kill costs no more than
that and changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memgrid.clock import Clock
from memgrid.distill.state import TrainState, read_state, state_bytes, without_moments, write_whole
from memgrid.distill.train_inputs import geometry_of_model, read_course
from memgrid.distill.training import StepSoFar, train
from memgrid.errors import InvalidError
from memgrid.kinds.delta_sketch import delta_sketch_bytes, sketch_states
from memgrid.kinds.trace import TRACE_FILE, StepTrace, read_trace, trace_bytes
from memgrid.kinds.train import STATE_FILE, committed_name, has_moments
from memgrid.specs import TrainSpec
from memgrid.units import WorkFacts
from memgrid_volunteer.kinds.committed import COMMIT_EVERY_S, PART_NAME, Checkpoint
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job
from memgrid_volunteer.kinds.models import checked_inputs, facts_of, load_causal
from memgrid_volunteer.kinds.pace import Pace
from memgrid_volunteer.kinds.telling import Tell, Telling
from memgrid_volunteer.kinds.train_parts import fits, is_of, parts_bytes, read_parts
from memgrid_volunteer.numerics import TORCH_DTYPE, Device, resolve


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reached:
    """Where training stands: the last state that is handed in, the trace up to it, and what was done since."""

    state: TrainState
    trace: tuple[StepTrace, ...]
    so_far: StepSoFar | None = None


class Train:
    """Runs train units on one device; `tell` hears how far the running one has got."""

    def __init__(
        self,
        device: Device,
        clock: Clock,
        tell: Tell,
        pace: Pace | None = None,
        *,
        commit_every_s: float = COMMIT_EVERY_S,
    ) -> None:
        self._device = device
        self._tell = Telling(tell, clock)
        self._pace = pace or Pace(clock)
        self._commit_every_s = commit_every_s
        self._rows_at_once: dict[str, int] = {}
        """Of models for which memory ran out: the next unit need not find that out again."""

    def run(self, job: Job) -> WorkFacts:
        """Write the unit's states, trace and sketch into the job's output folder, going on from what lies there.

        Raises InvalidError when the inputs are not the spec's, RefusedError (DIVERGED, VOCABULARY_MISMATCH and
        the like) when they can't be trained on, MemoryError when not even one row fits.
        """
        spec = TrainSpec.from_bytes((job.unit_dir / "spec.json").read_bytes())
        inputs = checked_inputs(spec, job.unit_dir)
        resolved = resolve(spec.compute_dtype, self._device)
        checkpoint = Checkpoint(
            job.out_dir, spec.key, wanted=spec.compute_dtype, resolved=resolved, every_s=self._commit_every_s
        )
        model = load_causal(job.model_dir, checkpoint.compute_dtype, self._device)
        start = read_state(inputs[STATE_FILE])
        former = resume(spec, start, job.out_dir, checkpoint)
        if former is not None:
            so_far = former.so_far
            step, rows = (former.state.step, 0) if so_far is None else (so_far.state.step, so_far.rows)
            self._tell.say_it_goes_on(_share_done(spec, step, rows))
        self._pace.begin(0.0 if former is None else checkpoint.computed_s)
        self._train(spec, job, model, inputs, former or _Reached(state=start, trace=()), checkpoint)
        geometry = geometry_of_model(model)
        sketch = sketch_states(inputs[STATE_FILE], job.out_dir / STATE_FILE, spec.adapter, geometry, spec.key)
        write_whole(job.out_dir / SKETCH_FILE, delta_sketch_bytes(sketch))
        checkpoint.clear()
        tokens = (spec.stop_step - spec.first_step) * spec.batch_rows * spec.row_tokens
        return facts_of(self._device, checkpoint.compute_dtype, tokens=tokens, compute_s=self._pace.spent_s)

    def _train(
        self,
        spec: TrainSpec,
        job: Job,
        model: Any,
        inputs: dict[str, Path],
        reached: _Reached,
        checkpoint: Checkpoint,
    ) -> None:
        def commit(state: TrainState, trace: tuple[StepTrace, ...]) -> None:
            name = _name_of(spec, state.step)
            # A trace that is longer than its states harms nobody: it goes first.
            write_whole(job.out_dir / TRACE_FILE, trace_bytes(trace))
            content = state_bytes(state if has_moments(spec, name) else without_moments(state))
            checkpoint.add(name, content, self._pace.computed_s, done=_share_done(spec, state.step))

        def between(so_far: Callable[[], StepSoFar]) -> None:
            self._device.finish()
            if checkpoint.is_due(computed_s := self._pace.computed_s):
                found = so_far()
                done = _share_done(spec, found.state.step, found.rows)
                checkpoint.replace_parts(parts_bytes(found), computed_s, done=done)
            self._pace.rest()

        train(
            model,
            spec,
            reached.state,
            read_course(spec, inputs, model),
            trace=reached.trace,
            compute_dtype=TORCH_DTYPE[checkpoint.compute_dtype],
            so_far=reached.so_far,
            on_rows=between,
            on_step=lambda entry: self._tell_of(spec, entry),
            on_segment=commit,
            micro_batch=self._rows_at_once.get(str(job.model_dir)),
            on_halved=lambda rows: self._rows_at_once.update({str(job.model_dir): max(1, rows)}),
        )

    def _tell_of(self, spec: TrainSpec, entry: StepTrace) -> None:
        done, count = entry.step + 1 - spec.first_step, spec.stop_step - spec.first_step
        text = f"step {done} of {count}, loss {entry.loss:.2f}"
        tokens = done * spec.batch_rows * spec.row_tokens
        self._tell.say(done / count, text, tokens=tokens, computed_s=self._pace.computed_s)


def resume(spec: TrainSpec, start: TrainState, out_dir: Path, checkpoint: Checkpoint) -> _Reached | None:
    """The last committed state that is whole, with what led to it and what came after; None when the unit begins."""
    paths = checkpoint.whole()
    states = _states(spec, start, [path for path in paths if _is_of(spec, path.name)])
    parts = [path for path in paths if PART_NAME.fullmatch(path.name)][-2:]
    so_far = read_parts(spec, start, (parts[0], parts[1])) if len(parts) == 2 else None
    reached = _reached(spec, start, states, out_dir)
    if reached is None or (so_far is not None and so_far.state.step < reached.state.step):
        so_far = None
    kept = [] if reached is None else [path for path, _ in states]
    checkpoint.go_on_from([*kept, *(parts if so_far is not None else ())])
    if reached is None or (not states and so_far is None):
        return None
    return replace(reached, so_far=so_far)


def _reached(
    spec: TrainSpec, start: TrainState, states: list[tuple[Path, TrainState]], out_dir: Path
) -> _Reached | None:
    """The last of these states and its trace; the start when there are none, None when the trace is not theirs."""
    if not states:
        return _Reached(state=start, trace=())
    last = states[-1][1]
    try:
        trace = read_trace((out_dir / TRACE_FILE).read_bytes())[: last.step - spec.first_step]
    except (OSError, InvalidError):
        return None
    return _Reached(state=last, trace=trace) if fits(spec, last, trace) else None


def _states(spec: TrainSpec, start: TrainState, paths: list[Path]) -> list[tuple[Path, TrainState]]:
    """The states up to the first that is not this unit's: a chain is as good as its first fault."""
    states: list[tuple[Path, TrainState]] = []
    for number, path in enumerate(paths, start=1):
        try:
            state = read_state(path)
        except (OSError, InvalidError):
            break
        step = min(spec.first_step + number * spec.segment_steps, spec.stop_step)
        if state.step != step or path.name != _name_of(spec, step) or not is_of(start, state.parameters):
            break
        states.append((path, state))
    return states


def _share_done(spec: TrainSpec, step: int, rows: int = 0) -> float:
    return (step - spec.first_step + rows / spec.batch_rows) / (spec.stop_step - spec.first_step)


def _name_of(spec: TrainSpec, step: int) -> str:
    if step == spec.stop_step:
        return STATE_FILE
    return committed_name((step - spec.first_step) // spec.segment_steps)


def _is_of(spec: TrainSpec, name: str) -> bool:
    return name == STATE_FILE or name in {committed_name(number) for number in range(1, spec.segments)}
