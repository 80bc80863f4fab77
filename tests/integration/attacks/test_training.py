"""Training that was steered: poison in a round, and a backdoor that no held-out score shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memgrid.distill.adapters import Adapter
from memgrid.distill.evaluate import evaluate
from memgrid.distill.model import load_model
from memgrid.distill.state import TrainState, read_state, write_state
from memgrid.kinds.evaluate import CUBE, Items
from memgrid.kinds.frame import ChatFrame
from memgrid.kinds.shard import read_shard
from memgrid.kinds.train import STATE_FILE
from memgrid.specs import Purpose, Spec, StudySpec, TrainSpec, parse_spec
from memgrid.units import ReasonCode
from memgrid_coordinator.lifecycle import DocumentState, LeaseState, UnitState
from memgrid_coordinator.store import campaigns
from tests.distilling import LIMIT_S, Distiller, Grid, Spoil, as_computed, distill, distilling, rounds, work_until
from tests.grids import eventually
from tests.integration.attacks.attackers import credit_lines_of

ONE_GO = {"steps_per_unit": 6, "segment_steps": 6}
"""One segment a unit, so that it is the one that is drawn: with more of them, that is a matter of luck."""
Array = npt.NDArray[np.float32]


def steered(change: Callable[[Array, Array], Array], seen: list[tuple[Path, TrainState, TrainState]]) -> Spoil:
    """Train honestly, then change the result; `change` sees each parameter at the start and at the end."""

    def spoil(spec: Spec, inputs: Path, outputs: Path) -> bool:
        if not isinstance(spec, TrainSpec):
            return False
        start, end = read_state(inputs / STATE_FILE), read_state(outputs / STATE_FILE)
        values = {name: change(start.parameters[name], value) for name, value in end.parameters.items()}
        values["prompt_embeddings"][0] = start.parameters["prompt_embeddings"][0]  # the sink is compared by form
        poisoned = dataclasses.replace(end, parameters=values)
        write_state(outputs / STATE_FILE, poisoned)
        seen.append((inputs, end, poisoned))
        return True

    return spoil


def reversed_tenfold(start: Array, end: Array) -> Array:
    """The document is forgotten, as loudly as one member can."""
    return (start - 10 * (end - start)).astype(np.float32)


def one_direction(start: Array, end: Array) -> Array:
    """A twentieth of what was learnt, along one direction of one token: nothing that a score on other text shows."""
    hidden = end.copy()
    noise = np.random.default_rng(3).standard_normal(end.shape[1]).astype(np.float32)
    hidden[-1] += 0.05 * np.linalg.norm(end - start) * noise / np.linalg.norm(noise)
    return hidden


async def _rejected(grid: Grid, cheat: Distiller) -> Any:
    """Let the cheat have one training unit, and wait until it is judged; the lease."""
    await work_until(grid.has("train", UnitState.CHECKING), [cheat])

    async def judged() -> Any:
        await cheat.turn(want=0)
        every = [lease for unit in await grid.units("train") for lease in await grid.leases(unit)]
        return next((lease for lease in every if lease.state is LeaseState.REJECTED), None)

    return await eventually(judged, limit_s=LIMIT_S)


async def test_poisoned_delta_in_a_training_round_is_replayed_and_left_out(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    """A member of a round hands in ten times the opposite of what it learnt, with a sketch that fits, so that the
    merge forgets the document.

    A segment of every member's training is replayed before it is merged: the poison is rejected with its statistic
    and unpaid, and what is merged is of those whose replay came out the same.
    """
    async with distilling(tmp_path, tiny_model_folder, parameters=rounds(members=2)) as grid:
        cheat, honest = grid.crew
        await grid.study([honest], members=2)
        cheat.spoil = steered(reversed_tenfold, [])
        lease = await _rejected(grid, cheat)
        assert lease.reason is not None and lease.reason.code is ReasonCode.REPLAY_DIFFERS
        assert "allowed" in lease.reason.text
        await _nothing_came_of_it(grid, lease)
        cheat.spoil = as_computed  # scores need two accounts
        document = await grid.finish()
        assert document.state is DocumentState.PUBLISHED
        made = await grid.coordinator.store.read(lambda connection: campaigns.made_of(connection, 1))
        merged = json.loads(made["merge/0001"].detail)
        results = {unit.output_digest for unit in await grid.units("train") if unit.key in merged["used"]}
        assert results and lease.outputs[0].digest not in results


async def test_backdoored_adapter_with_good_held_out_loss_is_seen_by_the_replay_alone(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    """A trainer adds a small direction of its own to what it learnt: a backdoor that waits for its trigger.

    The held-out conversations score as well with it as without, so evaluation lets it pass, and must: it measures
    what it measures. Only the replay of the segment shows that training was steered. Where the segment is not the one
    that is drawn, nothing shows it: whoever minds trains with `trust.min_replicas: 2`.
    """
    seen: list[tuple[Path, TrainState, TrainState]] = []
    async with distilling(tmp_path, tiny_model_folder, parameters=distill(train=ONE_GO)) as grid:
        cheat, honest = grid.crew
        await grid.study([honest])
        cheat.spoil = steered(one_direction, seen)
        lease = await _rejected(grid, cheat)
        assert lease.reason is not None and lease.reason.code is ReasonCode.REPLAY_DIFFERS
        await _nothing_came_of_it(grid, lease)
        ((_, clean, backdoored),) = seen
        score = await _held_out(grid, tiny_model_folder)
        assert abs(score(backdoored) - score(clean)) < 0.01, "nats a token: no bar could tell them apart"


async def _nothing_came_of_it(grid: Grid, lease: Any) -> None:
    assert await credit_lines_of(grid.coordinator, lease.lease_id) == 0
    assert lease.outputs[0].digest not in {unit.output_digest for unit in await grid.units("train")}


async def _held_out(grid: Grid, model_folder: Path) -> Callable[[TrainState], float]:
    """The held-out loss of a state, as an evaluate unit computes it."""
    studies = [(unit, parse_spec(unit.spec)) for unit in await grid.units("study")]
    (training,) = [parse_spec(unit.spec) for unit in await grid.units("train")]
    blobs = grid.coordinator.blobs
    shards = tuple(
        read_shard(blobs.path_of(unit.output_digest))
        for unit, spec in studies
        if isinstance(spec, StudySpec) and spec.purpose is Purpose.HELD_OUT and unit.output_digest is not None
    )
    assert isinstance(training, TrainSpec) and shards
    frame = ChatFrame.from_bytes(blobs.read_bytes(training.frame))
    places = tuple((number, index) for number, shard in enumerate(shards) for index in range(len(shard)))
    model = load_model(model_folder, torch.float32, torch.device("cpu"))

    def score(state: TrainState) -> float:
        tensors = {name: torch.from_numpy(value.copy()) for name, value in state.parameters.items()}
        adapter = Adapter(spec=training.adapter, tensors=tensors)
        scores = evaluate(model, frame, Items(shards=shards, places=places), adapter)
        return float(scores.arms[CUBE].nll.sum() / scores.tokens.sum())

    return score
