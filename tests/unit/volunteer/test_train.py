"""Train units on a volunteer: what is written, what survives an interruption, and what failures are called."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from memgrid.clock import ManualClock
from memgrid.digest import digest_of
from memgrid.distill.model import load_model
from memgrid.distill.state import read_state, without_moments
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.errors import InvalidError
from memgrid.kinds.kind import UnitKind
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.trace import TRACE_FILE, read_trace
from memgrid.kinds.train import STATE_FILE, TrainKind, output_names
from memgrid.specs import Purpose, TrainSpec
from memgrid.units import ComputeDtype, ReasonCode
from memgrid_volunteer.kinds.committed import COMMITTED_FILE
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job, Progress
from memgrid_volunteer.kinds.train import Train
from memgrid_volunteer.numerics import find_devices
from tests.models import make_tiny_model
from tests.training import PREFIX, make_spec, random_shard, random_start, write_inputs

KIND: UnitKind[TrainSpec] = TrainKind()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def model_of(folder: Path) -> Any:
    return load_model(folder, torch.float32, torch.device("cpu"))


def lay_out(where: Path, model_folder: Path, **changes: Any) -> tuple[TrainSpec, Job]:
    asked = make_spec(**changes)
    start = replace(random_start(PREFIX, model_of(model_folder)), step=asked.first_step)
    if asked.round:
        start = without_moments(start)
    spec, _ = write_inputs(where / "in", asked, start, [random_shard(1), random_shard(2)])
    (where / "in" / "spec.json").write_bytes(spec.to_bytes())
    (where / "out").mkdir()
    return spec, Job(kind="train", unit_dir=where / "in", model_dir=model_folder, out_dir=where / "out")


class Stopped(Exception):  # noqa: N818 - an event of a test
    """The unit was interrupted here."""


class Listener:
    """Hears how a unit gets on, and can end it at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.heard: list[Progress] = []
        self.gone_on_at: float | None = None
        self._stop_at = stop_at

    def __call__(self, progress: Progress) -> None:
        if progress.text.startswith("goes on"):
            self.gone_on_at = progress.done
            return
        self.heard.append(progress)
        if len(self.heard) == self._stop_at:
            raise Stopped


class Ticking(ManualClock):
    """A second passes with every look at it, so that each step is told."""

    def __init__(self) -> None:
        super().__init__(datetime(2026, 1, 1, tzinfo=UTC))

    def monotonic_s(self) -> float:
        self.advance(timedelta(seconds=1))
        return super().monotonic_s()


def run(job: Job, listener: Listener | None = None) -> Any:
    return Train(find_devices()[-1], Ticking(), listener or Listener()).run(job)


def contents(job: Job, spec: TrainSpec) -> dict[str, bytes]:
    return {name: (job.out_dir / name).read_bytes() for name in [*output_names(spec), SKETCH_FILE]}


def test_unit_leaves_what_the_grid_checks(model_folder: Path, tmp_path: Path) -> None:
    spec, job = lay_out(tmp_path, model_folder)
    listener = Listener()
    facts = run(job, listener)
    files = {name: job.out_dir / name for name in output_names(spec)}
    inputs = {file.name: job.unit_dir / file.name for file in KIND.inputs(spec)}
    sketch = (job.out_dir / SKETCH_FILE).read_bytes()
    KIND.check_files(spec, files, inputs, sketch, geometry_of_model(model_of(model_folder)))
    assert (facts.tokens, facts.compute_dtype) == (12 * 4 * 64, ComputeDtype.FLOAT32)
    assert [progress.done for progress in listener.heard] == [pytest.approx(step / 12) for step in range(1, 13)]
    loss = read_trace((job.out_dir / TRACE_FILE).read_bytes())[4].loss
    assert listener.heard[4].text == f"step 5 of 12, loss {loss:.2f}"


def test_member_of_a_round_hands_in_parameters_alone(model_folder: Path, tmp_path: Path) -> None:
    spec, job = lay_out(tmp_path, model_folder, first_step=12, stop_step=24, round=2, streams=3, stream=1)
    run(job)
    files = {name: job.out_dir / name for name in output_names(spec)}
    inputs = {file.name: job.unit_dir / file.name for file in KIND.inputs(spec)}
    sketch = (job.out_dir / SKETCH_FILE).read_bytes()
    KIND.check_files(spec, files, inputs, sketch, geometry_of_model(model_of(model_folder)))
    states = {name: read_state(path) for name, path in files.items() if name != TRACE_FILE}
    assert [name for name, state in states.items() if not state.has_moments] == [STATE_FILE]
    numbers = sum(value.nbytes for value in states[STATE_FILE].parameters.values())
    exchanged = inputs[STATE_FILE].stat().st_size + files[STATE_FILE].stat().st_size
    assert 2 * numbers < exchanged < 2 * numbers + 1000


@pytest.mark.parametrize("changes", [{}, {"first_step": 12, "stop_step": 24, "round": 2}], ids=["relay", "round"])
@pytest.mark.parametrize("stop_at", [2, 5, 12])
def test_interrupted_unit_goes_on_to_the_same_bytes(
    model_folder: Path, tmp_path: Path, stop_at: int, changes: dict[str, Any]
) -> None:
    spec, calm = lay_out(tmp_path / "calm", model_folder, **changes)
    run(calm)
    _, job = lay_out(tmp_path / "rough", model_folder, **changes)
    with pytest.raises(Stopped):
        run(job, Listener(stop_at))
    listener = Listener()
    facts = run(job, listener)
    assert contents(job, spec) == contents(calm, spec)
    # By this clock a micro-batch takes longer than what may be lost: nearly all of them are committed.
    first = int(listener.heard[0].text.split()[1])
    assert stop_at - 1 <= first <= stop_at + 1 and len(listener.heard) == 13 - first
    if listener.gone_on_at is None:
        assert first == 1, "so little was done that nothing was committed yet"
    else:
        assert (first - 1) / 12 <= listener.gone_on_at < first / 12
    # What was done before counts: a host's speed is judged by it.
    assert facts.compute_s > 12


def test_goes_on_before_a_damaged_state(model_folder: Path, tmp_path: Path) -> None:
    spec, job = lay_out(tmp_path, model_folder)
    run(job)
    whole = contents(job, spec)
    path = job.out_dir / "state-0002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    listener = Listener()
    run(job, listener)
    assert listener.heard[0].text.startswith("step 4 of 12")
    assert contents(job, spec) == whole


@pytest.mark.parametrize("spoil", ["unit", "states", "json"])
def test_begins_anew_when_what_lies_there_is_not_its_own(model_folder: Path, tmp_path: Path, spoil: str) -> None:
    spec, job = lay_out(tmp_path, model_folder)
    run(job)
    whole = contents(job, spec)
    line = json.loads((job.out_dir / COMMITTED_FILE).read_bytes())
    changed = {"unit": {**line, "unit": "0" * 64}, "states": {**line, "states": {"../x": "y"}}, "json": None}[spoil]
    (job.out_dir / COMMITTED_FILE).write_text(json.dumps(changed))
    listener = Listener()
    run(job, listener)
    assert len(listener.heard) == 12
    assert contents(job, spec) == whole


def test_other_input_than_the_specs_is_refused(model_folder: Path, tmp_path: Path) -> None:
    _, job = lay_out(tmp_path, model_folder)
    shutil.copy(job.unit_dir / "shards" / "0000.safetensors", job.unit_dir / "shards" / "0001.safetensors")
    with pytest.raises(InvalidError, match=r"shards/0001\.safetensors is not what the unit's spec names"):
        run(job)


@pytest.mark.parametrize(
    ("shard", "code", "says"),
    [
        (
            replace(random_shard(1), tokenizer=digest_of(b"another")),
            ReasonCode.VOCABULARY_MISMATCH,
            "made with tokenizer",
        ),
        (random_shard(1, purpose=Purpose.HELD_OUT), ReasonCode.HELD_OUT_LEAKED, "held out"),
    ],
    ids=["vocabulary", "held out"],
)
def test_shards_that_must_not_be_trained_on(
    model_folder: Path, tmp_path: Path, shard: Any, code: ReasonCode, says: str
) -> None:
    spec, _ = write_inputs(
        tmp_path / "in", make_spec(), random_start(PREFIX, model_of(model_folder)), [random_shard(2), shard]
    )
    (tmp_path / "in" / "spec.json").write_bytes(spec.to_bytes())
    (tmp_path / "out").mkdir()
    job = Job(kind="train", unit_dir=tmp_path / "in", model_dir=model_folder, out_dir=tmp_path / "out")
    with pytest.raises(RefusedError, match=says) as refused:
        run(job)
    assert refused.value.reason.code is code


def test_divergence_names_the_step_and_keeps_the_last_good_state(model_folder: Path, tmp_path: Path) -> None:
    _, job = lay_out(tmp_path, model_folder, learning_rate=1e39, warmup_steps=0, segment_steps=1)
    with pytest.raises(RefusedError, match="step 1: ") as refused:
        run(job)
    assert refused.value.reason.code is ReasonCode.DIVERGED
