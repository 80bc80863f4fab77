"""Adam as training states keep it: written out, so that no fused operation rounds differently on another device.

Knows parameters, moments and rates; knows nothing of models, rows or losses.
"""

from __future__ import annotations

import math

import torch

from memgrid.distill.adapters import Tensors
from memgrid.distill.state import Arrays, TrainState
from memgrid.specs import Schedule, TrainSpec

BETA_1 = 0.9
BETA_2 = 0.95
EPSILON = 1e-8
_NORM_PIECE = 4096


class Adam:
    """Parameters and their moments in float32 on one device; `step` updates are done.

    At `cold_step` the moments are nought, whatever the start says, and from there their bias is corrected.
    """

    def __init__(self, start: TrainState, device: torch.device, cold_step: int = 0) -> None:
        self.step = start.step
        self._cold_step = cold_step
        self.parameters = _on(device, start.parameters)
        if start.step == cold_step or not start.has_moments:
            self._m, self._v = (
                {name: torch.zeros_like(value) for name, value in self.parameters.items()} for _ in range(2)
            )
        else:
            self._m, self._v = _on(device, start.m), _on(device, start.v)

    def update(self, gradient: Tensors, rate: float) -> None:
        """One step ("Adam: A Method for Stochastic Optimization", arXiv 1412.6980); no weight decay."""
        count = self.step + 1 - self._cold_step
        for name, by_name in gradient.items():
            m, v = self._m[name], self._v[name]
            m.mul_(BETA_1).add_(by_name * (1 - BETA_1))
            v.mul_(BETA_2).add_(by_name * by_name * (1 - BETA_2))
            spread = (v / (1 - BETA_2**count)).sqrt_().add_(EPSILON)
            self.parameters[name].sub_((m / (1 - BETA_1**count)).mul_(rate).div_(spread))
        self.step += 1

    def state(self) -> TrainState:
        """A copy, as it is committed."""
        parameters, m, v = (_copied(group) for group in (self.parameters, self._m, self._v))
        return TrainState(step=self.step, parameters=parameters, m=m, v=v)


def learning_rate(spec: TrainSpec, step: int) -> float:
    """Of a step: up in a line over the warm-up, then down by the schedule to nought after the last step."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / (spec.warmup_steps + 1)
    if spec.schedule is Schedule.CONSTANT:
        return spec.learning_rate
    done = (step - spec.warmup_steps) / max(1, spec.total_steps - spec.warmup_steps)
    if spec.schedule is Schedule.LINEAR:
        return spec.learning_rate * (1 - done)
    return spec.learning_rate * (1 + math.cos(math.pi * done)) / 2


def gradient_norm(gradient: Tensors) -> float:
    """Over all parameters, in pieces of fixed length: the threads a machine has don't change the order of sums.

    >>> gradient_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    5.0
    """
    squares = []
    for value in gradient.values():
        flat = value.flatten().double()
        padded = torch.nn.functional.pad(flat, (0, -flat.numel() % _NORM_PIECE)).view(-1, _NORM_PIECE)
        squares.append((padded * padded).sum(1))
    return math.sqrt(math.fsum(torch.cat(squares).tolist()))


def _on(device: torch.device, group: Arrays) -> Tensors:
    return {name: torch.from_numpy(value.copy()).to(device) for name, value in group.items()}


def _copied(group: Tensors) -> Arrays:
    return {name: value.cpu().numpy().copy() for name, value in group.items()}
