"""A unit of each kind on a tiny model, large enough to be cut off in the middle, and how to run it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from memgrid.clock import SystemClock
from memgrid.digest import digest_of, digest_of_file, token_bytes
from memgrid.distill.adapters import PREFIX_TENSOR
from memgrid.distill.model import load_model
from memgrid.kinds.evaluate import ADAPTER_FILE
from memgrid.kinds.frame import FRAME_FILE
from memgrid.kinds.shard import write_shard
from memgrid.specs import AdapterKind, AdapterSpec, EvaluateSpec, PrefillSpec, Purpose, Spec
from memgrid.units import ComputeDtype, StoreDtype, WorkFacts
from memgrid_volunteer.kinds.evaluate import Evaluate
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job, Progress
from memgrid_volunteer.kinds.pace import Pace
from memgrid_volunteer.kinds.prefill import Prefill
from memgrid_volunteer.kinds.study import Study
from memgrid_volunteer.kinds.train import Train
from memgrid_volunteer.numerics import find_devices
from memgrid_volunteer.outputs import output_names
from tests.studies import Studied
from tests.training import PREFIX, make_spec, random_shard, random_start, write_inputs

KINDS = ("prefill", "study", "train", "evaluate")
CPU = find_devices()[-1]


class Cut(Exception):  # noqa: N818 - an event of a test
    """The unit was cut off here."""


class Cutting(Pace):
    """Cuts the unit off at a rest; counts them."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__(SystemClock())
        self._at = at
        self.rests = 0

    def rest(self) -> float:
        self.rests += 1
        if self.rests == self._at:
            raise Cut
        return super().rest()


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit's folder, and where its outputs go."""

    spec: Spec
    job: Job

    def outputs(self) -> dict[str, bytes]:
        names = (*output_names(self.spec.to_bytes()), SKETCH_FILE)
        return {name: (self.job.out_dir / name).read_bytes() for name in names}

    def parts(self) -> list[str]:
        """What was only for going on."""
        return sorted(path.name for path in self.job.out_dir.glob("part-*"))

    def run(self, pace: Pace, *, tell: Callable[[Progress], None] = lambda progress: None) -> WorkFacts:
        """In micro-batches so small that there are several, each of them committed."""
        common: dict[str, Any] = {"commit_every_s": 0.0}
        match self.job.kind:
            case "prefill":
                runner: Any = Prefill(CPU, SystemClock(), tell, pace, at_once=lambda *_: 16, **common)
            case "study":
                runner = Study(CPU, SystemClock(), tell, pace, batch=3, **common)
            case "train":
                runner = Train(CPU, SystemClock(), tell, pace, **common)
            case _:
                runner = Evaluate(CPU, SystemClock(), tell, pace, batch_rows=1, **common)
        facts: WorkFacts = runner.run(self.job)
        return facts


def make_unit(kind: str, grid: Studied, folder: Path, *, tokens: int = 96) -> Unit:
    """Lay one out in `folder`."""
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    spec = {"prefill": _prefill, "study": _study, "train": _train, "evaluate": _evaluate}[kind](
        grid, folder / "in", tokens
    )
    (folder / "in" / "spec.json").write_bytes(spec.to_bytes())
    job = Job(kind=kind, unit_dir=folder / "in", model_dir=grid.folder, out_dir=folder / "out")
    return Unit(spec=spec, job=job)


def _prefill(grid: Studied, folder: Path, tokens: int) -> Spec:
    ids = [(token * 37) % 300 + 3 for token in range(tokens)]
    (folder / "tokens.bin").write_bytes(token_bytes(ids))
    return PrefillSpec(
        model=grid.spec.model,
        tokens=digest_of(token_bytes(ids)),
        token_count=tokens,
        start=0,
        parent=None,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=StoreDtype.BFLOAT16,
    )


def _study(grid: Studied, folder: Path, tokens: int) -> Spec:
    for name, path in grid.inputs.items():
        (folder / name).symlink_to(path)
    return replace(grid.spec, conversations=8, question_tokens=12, answer_tokens=8)


def _train(grid: Studied, folder: Path, tokens: int) -> Spec:
    model = load_model(grid.folder, torch.float32, CPU.torch_device)
    spec, _ = write_inputs(
        folder,
        make_spec(stop_step=4, total_steps=4, segment_steps=2),
        replace(random_start(PREFIX, model), step=0),
        [random_shard(1), random_shard(2)],
    )
    return spec


def _evaluate(grid: Studied, folder: Path, tokens: int) -> Spec:
    (folder / "shards").mkdir()
    (folder / FRAME_FILE).symlink_to(grid.inputs[FRAME_FILE])
    shard = folder / "shards" / "0000.safetensors"
    write_shard(shard, grid.made(purpose=Purpose.HELD_OUT, conversations=30))
    generator = torch.Generator().manual_seed(1)
    save_file({PREFIX_TENSOR: torch.randn(4, 3 * 2 * 32, generator=generator).numpy()}, folder / ADAPTER_FILE)
    return EvaluateSpec(
        model=grid.spec.model,
        frame=grid.spec.frame,
        adapter=AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=4, frozen_tokens=1),
        adapter_file=digest_of_file(folder / ADAPTER_FILE),
        shards=(digest_of_file(shard),),
        first=0,
        items=30,
        compute_dtype=ComputeDtype.AUTO,
    )
