"""The training loop: some steps of an adapter on a frozen model, to the bit the same however rows are grouped.

Knows rows and gradients; knows nothing of units' folders, leases or checks. A row is the grain: each has a
gradient of its own, and these are added in order, so neither the micro-batch nor a halved one changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch

from memgrid.distill.adam import Adam, gradient_norm, learning_rate
from memgrid.distill.adapters import Tensors, applied, expected_shapes, hidden_states, seeded
from memgrid.distill.batches import Batches, Conversation, Packed, pack
from memgrid.distill.loss import distillation_loss
from memgrid.distill.mixing import Mixer
from memgrid.distill.model import CausalLM
from memgrid.distill.state import Arrays, TrainState
from memgrid.errors import InvalidError
from memgrid.kinds.frame import ChatFrame
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.trace import StepTrace
from memgrid.specs import AdapterKind, AdapterSpec, TrainSpec
from memgrid.units import ReasonCode

LOSS_SCALE = 1024.0
"""In float16 small gradients would vanish; a power of two changes nothing else."""
DIVERGED_FACTOR = 3.0
DIVERGED_STEPS = 3
"""Training has diverged when so many steps in a row lose so many times the lowest mean of as many before them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """What is trained on: the conversations in their order, the words around them, the distractors beside them."""

    conversations: Sequence[Conversation]
    frame: ChatFrame
    batches: Batches
    mixer: Mixer | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepSoFar:
    """The first rows of the step that `state` stands before: their summed gradient, and each answer token's loss.

    `rows` 0 is between two steps. Nothing else is needed to come to the bits of a run that was not interrupted.
    """

    state: TrainState
    trace: tuple[StepTrace, ...]
    rows: int
    gradient: Arrays
    losses: npt.NDArray[np.float32]


OnStep = Callable[[StepTrace], None]
OnRows = Callable[[Callable[[], StepSoFar]], None]
"""Called after every micro-batch with what gives the state of that moment."""
OnSegment = Callable[[TrainState, tuple[StepTrace, ...]], None]


def make_course(
    spec: TrainSpec, conversations: Sequence[Conversation], frame: ChatFrame, mixer: Mixer | None = None
) -> Course:
    """The course of a unit; raises InvalidError when nothing fits into its rows."""
    batches = Batches(
        conversations,
        frame,
        seed=spec.seed,
        stream=spec.stream,
        streams=spec.streams,
        batch_rows=spec.batch_rows,
        row_tokens=spec.row_tokens,
    )
    return Course(conversations=conversations, frame=frame, batches=batches, mixer=mixer)


def train(
    model: CausalLM,
    spec: TrainSpec,
    start: TrainState,
    course: Course,
    *,
    trace: Sequence[StepTrace] = (),
    stop_step: int | None = None,
    compute_dtype: torch.dtype = torch.float32,
    micro_batch: int | None = None,
    so_far: StepSoFar | None = None,
    on_rows: OnRows | None = None,
    on_step: OnStep | None = None,
    on_segment: OnSegment | None = None,
    on_halved: Callable[[int], None] = lambda rows: None,
) -> tuple[TrainState, tuple[StepTrace, ...]]:
    """Train from `start` to `stop_step` (the spec's by default): the state reached, and `trace` gone on with.

    `start` may be the spec's start or any state committed since: what follows is the same to the bit. `so_far` is
    what `on_rows` gave in the middle of a step: training goes on from there, and `start` and `trace` do not count.
    `on_segment` is called with every state the spec commits, the last included. When memory runs out the micro-batch
    is halved, which `on_halved` hears, and the present step gone on with. Raises RefusedError (DIVERGED, naming the
    step), InvalidError when the state is not of the spec's adapter, MemoryError when not even one row fits.
    """
    from accelerate.utils import find_executable_batch_size  # a second that only training should pay

    if so_far is not None:
        start, trace = so_far.state, so_far.trace
    run = _Run(model, spec, start, course, compute_dtype, list(trace))
    run.take_up(so_far)
    stop = spec.stop_step if stop_step is None else stop_step
    size = micro_batch or (spec.batch_rows if model.device.type == "cuda" else 1)

    def halved() -> int:
        nonlocal size
        size //= 2
        on_halved(size)
        return size

    @find_executable_batch_size(starting_batch_size=size, reduce_batch_size_fn=halved)  # type: ignore[untyped-decorator]
    def go_on(rows_at_once: int) -> None:
        while run.adam.step < stop:
            entry = run.advance(rows_at_once, on_rows)
            if on_step is not None:
                on_step(entry)
            if on_segment is not None and is_committed(spec, run.adam.step):
                on_segment(run.adam.state(), tuple(run.trace))

    try:
        go_on()
    except RuntimeError as error:
        if "reached zero" not in str(error):
            raise
        raise MemoryError(f"step {run.adam.step}: not even one row of {spec.row_tokens} tokens fits") from None
    return run.adam.state(), tuple(run.trace)


def is_committed(spec: TrainSpec, step: int) -> bool:
    """Whether a state is committed when so many steps are done."""
    return step == spec.stop_step or (step - spec.first_step) % spec.segment_steps == 0


class _Run:
    """The state of training on its device, between two steps."""

    def __init__(
        self,
        model: CausalLM,
        spec: TrainSpec,
        start: TrainState,
        course: Course,
        compute_dtype: torch.dtype,
        trace: list[StepTrace],
    ) -> None:
        _check_start(model, spec, start)
        self._model, self._spec, self._course, self._dtype = model, spec, course, compute_dtype
        self.adam = Adam(start, model.device, spec.cold_step)
        self._fixed = seeded(spec.adapter, model)
        self.trace = trace
        self._begin_step()

    def _begin_step(self) -> None:
        self._rows, self._losses = 0, list[torch.Tensor]()
        self._total = {name: torch.zeros_like(value) for name, value in self.adam.parameters.items()}

    def take_up(self, so_far: StepSoFar | None) -> None:
        """Go on in the middle of a step."""
        if so_far is not None and so_far.rows:
            device = self._model.device
            self._rows, self._losses = so_far.rows, [torch.from_numpy(so_far.losses.copy()).to(device)]
            self._total = {name: torch.from_numpy(value.copy()).to(device) for name, value in so_far.gradient.items()}

    def so_far(self) -> StepSoFar:
        """A copy of where training stands."""
        losses = torch.cat(self._losses).float() if self._losses else torch.empty(0)
        return StepSoFar(
            state=self.adam.state(),
            trace=tuple(self.trace),
            rows=self._rows,
            gradient={name: value.cpu().numpy().copy() for name, value in self._total.items()},
            losses=losses.cpu().numpy(),
        )

    def advance(self, micro_batch: int, on_rows: OnRows | None = None) -> StepTrace:
        """One logical step; nothing is changed before all of its gradient is there."""
        packed = self._pack()
        gradient, loss = self._gradient(packed, micro_batch, on_rows)
        norm, step = gradient_norm(gradient), self.adam.step
        entry = StepTrace(step=step, loss=loss, tokens=packed.answer_tokens, gradient_norm=norm)
        _check_course(entry, self.trace)
        self.adam.update(gradient, learning_rate(self._spec, step))
        self.trace.append(entry)
        self._begin_step()
        return entry

    def _pack(self) -> Packed:
        course = self._course
        rows = course.batches.step(self.adam.step)
        return pack(
            rows,
            course.conversations,
            course.frame,
            row_tokens=self._spec.row_tokens,
            device=self._model.device,
        )

    def _gradient(self, packed: Packed, micro_batch: int, on_rows: OnRows | None) -> tuple[Tensors, float]:
        """The gradient of the mean loss over all answer tokens of the step, and that loss."""
        count = len(packed.bounds) - 1
        scale = LOSS_SCALE if self._dtype is torch.float16 else 1.0
        while self._rows < count:
            numbers = range(self._rows, min(self._rows + micro_batch, count))
            lost, by_row = self._gradient_of_rows(packed.rows(numbers.start, numbers.stop), numbers, scale)
            self._losses.append(lost)
            for name, gradients in by_row.items():
                for gradient in gradients:  # one row after the other: the order is the result's
                    self._total[name].add_(gradient)
            self._rows = numbers.stop
            if on_rows is not None:
                on_rows(self.so_far)
        # Not in place: should memory run out from here on, the sum is still what it was.
        mean = {name: gradient * (1 / (scale * packed.answer_tokens)) for name, gradient in self._total.items()}
        for gradient in mean.values():
            _freeze(self._spec.adapter, gradient)
        lost = torch.cat(self._losses).double().cpu().numpy()
        return mean, float(lost.sum()) / packed.answer_tokens

    def _gradient_of_rows(self, packed: Packed, numbers: range, scale: float) -> tuple[torch.Tensor, Tensors]:
        """Loss of each answer token [n], and for each parameter a gradient a row [m, ...] of the summed loss."""
        model, spec = self._model, self._spec
        leaves = {
            name: value.expand(len(numbers), *value.shape).clone().requires_grad_()
            for name, value in self.adam.parameters.items()
        }
        fixed = {name: value.expand(len(numbers), *value.shape) for name, value in self._fixed.items()}
        with torch.enable_grad(), _autocast(model, self._dtype):
            with applied(model, spec.adapter, {**fixed, **leaves}) as own:
                past, visible = own, None
                if self._course.mixer is not None:
                    past, visible = self._course.mixer.mix(own, self.adam.step, numbers)
                hidden = hidden_states(model, packed.ids, packed.positions, packed.segments, past, visible)
            picked = hidden[packed.row_of_answers(), packed.columns]  # [n, hidden]
        losses, gradient = distillation_loss(picked.detach(), model.get_output_embeddings(), packed.targets)
        found = torch.autograd.grad(picked, list(leaves.values()), (gradient * scale).to(picked.dtype))
        return losses, dict(zip(leaves, found, strict=True))


def _check_start(model: CausalLM, spec: TrainSpec, start: TrainState) -> None:
    shapes = expected_shapes(spec.adapter, model)
    if spec.adapter.frozen_a_seed is not None:
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(".lora_A.weight")}
    found = {name: value.shape for name, value in start.parameters.items()}
    for name in sorted(set(shapes) | set(found)):
        if shapes.get(name) != found.get(name):
            expected, there = (group.get(name, "none") for group in (shapes, found))
            raise InvalidError(f"state: {name[:200]}: expected {expected}, found {there}")
    if not spec.first_step <= start.step <= spec.stop_step:
        raise InvalidError(f"state: step {start.step}: the unit trains steps {spec.first_step} to {spec.stop_step}")
    if not start.has_moments and start.step not in (spec.cold_step, spec.stop_step):
        raise InvalidError(
            f"state: step {start.step}: expected Adam's moments, which begin with step {spec.cold_step}"
        )


def _check_course(entry: StepTrace, before: Sequence[StepTrace]) -> None:
    """Raises RefusedError (DIVERGED) when training has gone wrong for good."""
    if not (math.isfinite(entry.loss) and math.isfinite(entry.gradient_norm)):
        raise RefusedError(
            ReasonCode.DIVERGED,
            f"step {entry.step}: loss {entry.loss:.3g}, gradient norm {entry.gradient_norm:.3g}: not finite",
        )
    losses = [each.loss for each in (*before, entry)]
    earlier, last = losses[:-DIVERGED_STEPS], losses[-DIVERGED_STEPS:]
    if not earlier:
        return
    # Steps of few rows differ by their texts alone: one easy step must not be what all others are measured by.
    width = min(DIVERGED_STEPS, len(earlier))
    lowest = min(fmean(earlier[start : start + width]) for start in range(len(earlier) - width + 1))
    if min(last) > DIVERGED_FACTOR * lowest:
        raise RefusedError(
            ReasonCode.DIVERGED,
            f"step {entry.step}: loss {entry.loss:.3g}, for {DIVERGED_STEPS} steps more than "
            f"{DIVERGED_FACTOR:g} times {lowest:.3g}, the lowest mean of {width}",
        )


def _freeze(adapter: AdapterSpec, gradient: torch.Tensor) -> None:
    if adapter.kind is AdapterKind.PREFIX:
        gradient[: adapter.frozen_tokens].zero_()


def _autocast(model: CausalLM, dtype: torch.dtype) -> AbstractContextManager[object]:
    if dtype is torch.float32:
        return nullcontext()
    context: AbstractContextManager[object] = torch.autocast(model.device.type, dtype=dtype)
    return context
