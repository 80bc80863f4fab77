"""Merge what the members of a round moved their state by, so that a few liars among them move little.

Knows states and arithmetic; knows nothing of units, leases or who sent what. Everything is summed in float64, in an
order that follows from the files' content, so equal files give equal bytes, whoever came first. Memory: the merged
state, and `SLICE` numbers of every member. Shapes: n members, c coordinates of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memgrid.campaign_distill import Merge, Rounds
from memgrid.digest import digest_of_file
from memgrid.distill.state import Arrays, TrainState, read_state, write_state
from memgrid.distill.velocity import read_velocity, write_velocity
from memgrid.errors import InvalidError
from memgrid.specs import AdapterKind, AdapterSpec

SLICE = 1 << 16
CLIPPING_STEPS = 20
"""As in BTARD (arXiv 2106.11257)."""

Doubles = npt.NDArray[np.float64]
Rule = Callable[[Doubles], Doubles]
"""From the members' values [n, c] to the merged ones [c]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What went into a merge, and how alike it was; members in the order given."""

    step: int
    """Of the merged state."""
    late: int
    """Members that trained from an older state."""
    trimmed: int
    """Values left out at each end of every coordinate."""
    clipped_at: float | None
    """How far from the centre a delta may pull."""
    delta_norms: tuple[float, ...]
    agreements: tuple[float, ...]
    """Cosine of each delta with the merged one; a liar's is low or negative."""
    merged_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Where a merge writes: the state that the next round begins with, and the velocity that the next merge needs."""

    state: Path
    velocity: Path


def merge(
    base: Path,
    states: Sequence[Path],
    bases: Sequence[Path],
    rule: Rounds,
    adapter: AdapterSpec,
    into: Merged,
    *,
    velocity: Path | None = None,
) -> MergeReport:
    """Write the next round's state: `base` moved by the merged deltas of `states`, each trained from its base.

    A member whose base is not `base` is late: its delta counts all the same. Parameters move by an outer step of
    Nesterov's momentum (DiLoCo, arXiv 2311.08105); `velocity` is what the former merge wrote, None for the first.
    The step is the members'; there are no Adam moments, for every round begins them anew. Raises InvalidError naming
    the state that does not fit, is not finite, made no step, or is older than `rule.staleness` rounds.
    """
    if not states or len(states) != len(bases):
        raise InvalidError(f"merge: expected one base for each of one or more states, found {len(bases)}")
    round_ = _Round.of(base, states, bases, rule)
    trimmed = trimmed_at_each_end(len(states), rule)
    combine, clipped_at = _delta_rule(round_, rule, trimmed)
    merged = {name: _merged(round_.deltas(name), round_.base.parameters[name], combine) for name in round_.names}
    _keep_frozen(merged, adapter)
    before = {} if velocity is None else read_velocity(velocity, round_.base.parameters)
    state, speed = _stepped(round_, merged, before, rule)
    write_velocity(into.velocity, speed)
    write_state(into.state, state)
    norms, agreements, merged_norm = _likeness(round_, merged)
    given = [round_.order.index(index) for index in range(len(states))]
    return MergeReport(
        step=state.step,
        late=len(round_.members) - len(round_.present),
        trimmed=trimmed,
        clipped_at=clipped_at,
        delta_norms=tuple(norms[index] for index in given),
        agreements=tuple(agreements[index] for index in given),
        merged_norm=merged_norm,
    )


def trimmed_at_each_end(members: int, rule: Rounds) -> int:
    """How many values a trimmed mean leaves out: as many liars as `trim` allows for, while one value at least stays.

    >>> [trimmed_at_each_end(members, Rounds(trim=0.2)) for members in (1, 2, 3, 5, 10, 11)]
    [0, 0, 1, 1, 2, 3]
    """
    if rule.merge is not Merge.TRIMMED_MEAN:
        return 0
    return min(math.ceil(rule.trim * members - 1e-9), (members - 1) // 2)


def trimmed_mean(values: Doubles, trimmed: int) -> Doubles:
    """The mean of each coordinate without its smallest and largest values [n, c] -> [c].

    >>> trimmed_mean(np.array([[1.0], [2.0], [900.0]]), 1)
    array([2.])
    """
    ordered = np.sort(values, axis=0)[trimmed : len(values) - trimmed]
    # Summed in order of size, so that the order of members does not matter.
    total = np.zeros(values.shape[1])
    for row in ordered:
        total += row
    return total / len(ordered)


def centred_weights(products: Doubles) -> tuple[Doubles, float]:
    """Centred clipping (arXiv 2012.10333) by inner products alone: weights of the median and of each delta.

    `products` [n + 1, n + 1] are those of the coordinate-wise median, then the deltas. The centre starts at the
    median and goes to the mean of the deltas, none of which pulls further than the median of their norms, which is
    returned too.
    """
    count = len(products) - 1
    limit = float(np.median(np.sqrt(products.diagonal()[1:])))
    weights = np.zeros(count + 1)
    weights[0] = 1.0
    for _ in range(CLIPPING_STEPS):
        cross = products @ weights
        squares = products.diagonal()[1:] - 2 * cross[1:] + weights @ cross
        distances = np.sqrt(np.maximum(squares, 0.0))
        furthest = np.maximum(np.maximum(distances, limit), np.finfo(float).tiny)
        pull = np.where(distances > limit, limit / furthest, 1.0) / count
        weights *= 1 - pull.sum()
        weights[1:] += pull
    return weights, limit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Member:
    state: TrainState
    base: TrainState
    is_late: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Round:
    """The states of a round; their arrays are maps of the files, read slice by slice."""

    base: TrainState
    members: tuple[_Member, ...]
    order: tuple[int, ...]
    """Which of the members given stands where: they are in the order of their digests."""

    @staticmethod
    def of(base: Path, states: Sequence[Path], bases: Sequence[Path], rule: Rounds) -> _Round:
        here, here_digest = read_state(base), digest_of_file(base)
        digests = [(digest_of_file(state), digest_of_file(from_)) for state, from_ in zip(states, bases, strict=True)]
        order = tuple(sorted(range(len(states)), key=lambda index: digests[index]))
        members = []
        for index in order:
            is_late = digests[index][1] != here_digest
            member = _Member(
                state=_read(states[index], index, here),
                base=_read(bases[index], index, here) if is_late else here,
                is_late=is_late,
            )
            _check(member, here, index, rule)
            members.append(member)
        round_ = _Round(base=here, members=tuple(members), order=order)
        steps = sorted({member.state.step for member in round_.present})
        if len(steps) != 1:
            raise InvalidError(f"merge: expected members of this round with one step, found {steps}")
        return round_

    @property
    def names(self) -> list[str]:
        return sorted(self.base.parameters)

    @property
    def present(self) -> list[_Member]:
        return [member for member in self.members if not member.is_late]

    def deltas(self, name: str) -> Iterator[Doubles]:
        """Slices [n, c] of what the members moved a parameter by."""
        pairs = [(_flat(each.state.parameters[name]), _flat(each.base.parameters[name])) for each in self.members]
        for part in _slices(len(pairs[0][0])):
            yield np.stack([after[part].astype(np.float64) - before[part] for after, before in pairs])


def _read(path: Path, index: int, base: TrainState) -> TrainState:
    try:
        state = read_state(path)
    except InvalidError as error:
        raise InvalidError(f"merge: state {index}: {error}") from None
    shapes, found = ({name: value.shape for name, value in each.parameters.items()} for each in (base, state))
    for name in sorted(set(shapes) | set(found)):
        if shapes.get(name) != found.get(name):
            raise InvalidError(
                f"merge: state {index}: {name[:200]}: expected {shapes.get(name, 'none')}, "
                f"found {found.get(name, 'none')}"
            )
    return state


def _check(member: _Member, here: TrainState, index: int, rule: Rounds) -> None:
    if member.state.step <= member.base.step:
        raise InvalidError(f"merge: state {index}: step {member.state.step}, its base has {member.base.step}")
    behind = here.step - member.base.step
    if not 0 <= behind <= rule.staleness * rule.local_steps:
        raise InvalidError(
            f"merge: state {index}: its base is of step {member.base.step}, at most {rule.staleness} rounds of "
            f"{rule.local_steps} steps before step {here.step} are allowed"
        )


def _delta_rule(round_: _Round, rule: Rounds, trimmed: int) -> tuple[Rule, float | None]:
    if rule.merge is not Merge.CENTRED_CLIPPING:
        return lambda values: trimmed_mean(values, trimmed), None
    weights, limit = centred_weights(_products(round_))
    return lambda values: weights @ _with_median(values), limit


def _products(round_: _Round) -> Doubles:
    total = np.zeros((len(round_.members) + 1,) * 2)
    for name in round_.names:
        for values in round_.deltas(name):
            rows = _with_median(values)
            total += rows @ rows.T
    return total


def _with_median(values: Doubles) -> Doubles:
    return np.concatenate([np.median(values, axis=0, keepdims=True), values])


def _merged(slices: Iterator[Doubles], like: npt.NDArray[np.float32], combine: Rule) -> Doubles:
    return np.concatenate([combine(values) for values in slices]).reshape(like.shape)


def _keep_frozen(merged: Mapping[str, Doubles], adapter: AdapterSpec) -> None:
    if adapter.kind is AdapterKind.PREFIX:
        for value in merged.values():
            value[: adapter.frozen_tokens] = 0.0


def _stepped(
    round_: _Round, merged: Mapping[str, Doubles], velocity: Arrays, rule: Rounds
) -> tuple[TrainState, Arrays]:
    """Nesterov as torch's SGD has it, a merged delta standing for a step against the gradient."""
    parameters: Arrays = {}
    speeds: Arrays = {}
    for name, delta in merged.items():
        before = velocity.get(name)
        speed = delta if before is None else rule.outer_momentum * before.astype(np.float64) + delta
        moved = rule.outer_learning_rate * (delta + rule.outer_momentum * speed)
        parameters[name] = (round_.base.parameters[name] + moved).astype(np.float32)
        speeds[name] = speed.astype(np.float32)
    return TrainState(step=round_.present[0].state.step, parameters=parameters), speeds


def _likeness(round_: _Round, merged: Mapping[str, Doubles]) -> tuple[list[float], list[float], float]:
    """Norm of each delta, its cosine with the merged one, and the merged one's norm."""
    squares, products, total = np.zeros(len(round_.members)), np.zeros(len(round_.members)), 0.0
    for name in round_.names:
        flat = merged[name].reshape(-1)
        for part, values in zip(_slices(len(flat)), round_.deltas(name), strict=True):
            squares += np.square(values).sum(axis=1)
            products += values @ flat[part]
            total += float(flat[part] @ flat[part])
    norms, merged_norm = np.sqrt(squares), math.sqrt(total)
    cosines = products / np.maximum(norms * merged_norm, np.finfo(float).tiny)
    return norms.tolist(), cosines.tolist(), merged_norm


def _flat(value: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return value.reshape(-1)


def _slices(count: int) -> list[slice]:
    return [slice(start, min(start + SLICE, count)) for start in range(0, count, SLICE)]
