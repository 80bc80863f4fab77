"""Volunteers study and score: their outputs are what the grid checks, and their inputs what the spec names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.numpy import save_file

from memgrid.clock import SystemClock
from memgrid.digest import Digest, digest_of, digest_of_file
from memgrid.distill.adapters import PREFIX_TENSOR
from memgrid.distill.audit import audit
from memgrid.errors import InvalidError
from memgrid.kinds.evaluate import ADAPTER_FILE, SCORES_FILE, EvaluateKind
from memgrid.kinds.frame import FRAME_FILE
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.registry import kind_of
from memgrid.kinds.shard import SHARD_FILE, write_shard
from memgrid.kinds.study import StudyKind
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.specs import (
    AdapterKind,
    AdapterSpec,
    EvaluateSpec,
    PrefillSpec,
    Purpose,
    Schedule,
    Spec,
    StudySpec,
    TrainSpec,
)
from memgrid.units import BlobRef, ComputeDtype, LeaseId, LeaseOffer, StoreDtype, UnitKey
from memgrid_volunteer.inputs import check_offer
from memgrid_volunteer.kinds.evaluate import Evaluate
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job, Progress
from memgrid_volunteer.kinds.models import as_many_as_fit, load_base
from memgrid_volunteer.kinds.study import Study
from memgrid_volunteer.numerics import find_devices
from tests.studies import Studied, make_studied

DEVICE = find_devices()[-1]
DIGEST = digest_of(b"x")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    return make_studied(tmp_path_factory.mktemp("kinds") / "tiny")


def job_of(grid: Studied, folder: Path, spec: Spec, inputs: dict[str, Path]) -> Job:
    for name, path in inputs.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).symlink_to(path)
    (folder / "in" / "spec.json").write_bytes(spec.to_bytes())
    (folder / "out").mkdir()
    return Job(kind=spec.kind, unit_dir=folder / "in", model_dir=grid.folder, out_dir=folder / "out")


def test_a_study_units_output_passes_every_check(grid: Studied, tmp_path: Path) -> None:
    told: list[Progress] = []
    job = job_of(grid, tmp_path, grid.spec, grid.inputs)
    facts = Study(DEVICE, SystemClock(), told.append).run(job)
    files = {SHARD_FILE: job.out_dir / SHARD_FILE}
    sketch = (job.out_dir / SKETCH_FILE).read_bytes()
    StudyKind().check_files(grid.spec, files, grid.inputs, sketch, grid.geometry)
    audit(
        grid.spec,
        model_folder=grid.folder,
        inputs=grid.inputs,
        files=files,
        compute_dtype=facts.compute_dtype,
        draw=b"d" * 32,
        tolerances=BUILT_IN,
    )
    assert facts.compute_dtype is ComputeDtype.FLOAT32
    assert facts.tokens == grid.spec.token_count + len(grid.honest.question_ids) + len(grid.honest.answer_ids)
    assert (told[-1].done, told[-1].text) == (1.0, "16 of 16 conversations") and told[-1].tokens_per_s


def test_a_study_unit_gives_the_same_bytes_twice(grid: Studied, tmp_path: Path) -> None:
    contents = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        job = job_of(grid, tmp_path / name, grid.spec, grid.inputs)
        Study(DEVICE, SystemClock(), lambda progress: None).run(job)
        contents.add((job.out_dir / SHARD_FILE).read_bytes())
    assert len(contents) == 1


def test_inputs_that_are_not_the_specs_are_refused(grid: Studied, tmp_path: Path) -> None:
    spec = dataclasses.replace(grid.spec, tokens=digest_of(b"other"))
    with pytest.raises(InvalidError, match=r"tokens\.bin is not what the unit's spec names"):
        Study(DEVICE, SystemClock(), lambda progress: None).run(job_of(grid, tmp_path, spec, grid.inputs))


def test_an_evaluate_units_output_passes_every_check(grid: Studied, tmp_path: Path) -> None:
    inputs = {FRAME_FILE: grid.inputs[FRAME_FILE]}
    inputs |= {name: tmp_path / Path(name).name for name in (ADAPTER_FILE, "shards/0000.safetensors")}
    write_shard(inputs["shards/0000.safetensors"], grid.made(purpose=Purpose.HELD_OUT))
    generator = torch.Generator().manual_seed(1)
    save_file({PREFIX_TENSOR: torch.randn(4, 3 * 2 * 32, generator=generator).numpy()}, inputs[ADAPTER_FILE])
    spec = EvaluateSpec(
        model=grid.spec.model,
        frame=grid.spec.frame,
        adapter=AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=4, frozen_tokens=1),
        adapter_file=digest_of_file(inputs[ADAPTER_FILE]),
        shards=(digest_of_file(inputs["shards/0000.safetensors"]),),
        first=2,
        items=9,
        compute_dtype=ComputeDtype.AUTO,
    )
    told: list[Progress] = []
    job = job_of(grid, tmp_path / "unit", spec, inputs)
    facts = Evaluate(DEVICE, SystemClock(), told.append).run(job)
    files = {SCORES_FILE: job.out_dir / SCORES_FILE}
    EvaluateKind().check_files(spec, files, inputs, (job.out_dir / SKETCH_FILE).read_bytes(), grid.geometry)
    audit(
        spec,
        model_folder=grid.folder,
        inputs=inputs,
        files=files,
        compute_dtype=facts.compute_dtype,
        draw=b"d" * 32,
        tolerances=BUILT_IN,
    )
    assert (told[-1].done, told[-1].text) == (1.0, "100% of 9 conversations scored") and told[-1].tokens_per_s


def test_the_shared_models_caches_have_the_bits_of_a_model_without_a_head(grid: Studied) -> None:
    from transformers import AutoModel

    bare = AutoModel.from_pretrained(grid.folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    shared = load_base(grid.folder, torch.float32, DEVICE)
    ids = torch.tensor([grid.tokens])
    with torch.inference_mode():
        one, other = (model(ids, use_cache=True).past_key_values for model in (bare, shared))
    for a, b in zip(one.layers, other.layers, strict=True):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


def test_when_memory_runs_out_half_as_many_are_tried() -> None:
    tried = []

    def compute(batch: int) -> str:
        tried.append(batch)
        if batch > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return "done"

    assert as_many_as_fit(compute, 32) == "done"
    assert tried == [32, 16, 8, 4]


def test_when_not_even_one_fits_it_is_said() -> None:
    def compute(batch: int) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(MemoryError, match="not even a batch of 1 fits"):
        as_many_as_fit(compute, 2)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    def compute(batch: int) -> str:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        as_many_as_fit(compute, 2)


SPECS: dict[str, Spec] = {
    "prefill": PrefillSpec(
        model=DIGEST, tokens=digest_of(b"t"), token_count=4, start=4, parent=UnitKey("0" * 64),
        compute_dtype=ComputeDtype.AUTO, store_dtype=StoreDtype.BFLOAT16,
    ),
    "study": StudySpec(
        model=DIGEST, frame=digest_of(b"f"), tokens=digest_of(b"t"), token_count=4, purpose=Purpose.TRAIN, seed=1,
        first=0, conversations=2, temperature=0.6, question_tokens=8, answer_tokens=8, top_k=4,
        compute_dtype=ComputeDtype.AUTO,
    ),
    "train": TrainSpec(
        model=DIGEST, frame=digest_of(b"f"), adapter=AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=4),
        state=digest_of(b"s"), shards=(digest_of(b"1"), digest_of(b"2")), distractors=(digest_of(b"d"),),
        distractor_share=0.5, first_step=0, stop_step=4, total_steps=4, segment_steps=2, batch_rows=1,
        row_tokens=64, learning_rate=0.01, warmup_steps=0, schedule=Schedule.CONSTANT, seed=1, round=0, stream=0,
        streams=1, compute_dtype=ComputeDtype.AUTO,
    ),
    "evaluate": EvaluateSpec(
        model=DIGEST, frame=digest_of(b"f"), adapter=AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=4),
        adapter_file=digest_of(b"a"), shards=(digest_of(b"1"),), first=0, items=1, compute_dtype=ComputeDtype.AUTO,
    ),
}  # fmt: skip


def blob(name: str, digest: Digest = DIGEST) -> BlobRef:
    return BlobRef(name=name, digest=digest, size_bytes=1, path="/blobs/x")


def offer_of(spec: Spec, *more: BlobRef, without: str = "") -> LeaseOffer:
    named = (blob(file.name, file.digest) for file in kind_of(spec).inputs(spec) if file.name != without)
    return LeaseOffer(
        lease_id=LeaseId("lease-1"),
        fence=1,
        unit_key=spec.key,
        spec=spec.to_bytes(),
        model=spec.model,
        inputs=(*named, *more),
        deadline_at=datetime(2026, 1, 1, tzinfo=UTC),
        estimate_s=1.0,
    )


@pytest.mark.parametrize("kind", SPECS)
def test_an_offer_of_each_kind_with_what_its_spec_names_is_taken(kind: str) -> None:
    assert check_offer(offer_of(SPECS[kind])) == SPECS[kind]


def test_only_a_prefill_that_continues_may_bring_caches() -> None:
    check_offer(offer_of(SPECS["prefill"], blob("past/0000.safetensors"), blob("past/0001.safetensors")))
    first = dataclasses.replace(SPECS["prefill"], parent=None, start=0)
    for spec in (first, SPECS["study"]):
        with pytest.raises(InvalidError, match=r"may not be named 'past/0000\.safetensors'"):
            check_offer(offer_of(spec, blob("past/0000.safetensors")))


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(
    "name",
    ["spec.json", "../escape", "shards/../../x", "/etc/passwd", "state.safetensors/x", "past/0000.safetensors\n"],
)
def test_an_input_of_any_other_name_is_refused(kind: str, name: str) -> None:
    with pytest.raises(InvalidError, match="may not be named"):
        check_offer(offer_of(SPECS[kind], blob(name)))


@pytest.mark.parametrize("kind", SPECS)
def test_an_input_twice_missing_or_of_another_digest_is_refused(kind: str) -> None:
    spec = SPECS[kind]
    for file in kind_of(spec).inputs(spec):
        with pytest.raises(InvalidError, match="is missing"):
            check_offer(offer_of(spec, without=file.name))
        with pytest.raises(InvalidError, match="may not be named"):
            check_offer(offer_of(spec, blob(file.name, file.digest)))
        with pytest.raises(InvalidError, match="is not that of the spec"):
            check_offer(offer_of(spec, blob(file.name, digest_of(b"false")), without=file.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda offer: dataclasses.replace(offer, model=digest_of(b"other")), "names another model"),
        (lambda offer: dataclasses.replace(offer, unit_key=UnitKey("1" * 64)), "is not that of unit"),
        (lambda offer: dataclasses.replace(offer, lease_id=LeaseId("../x")), "lease id"),
    ],
)
def test_an_offer_that_contradicts_itself_is_refused(
    change: Callable[[LeaseOffer], LeaseOffer], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        check_offer(change(offer_of(SPECS["study"])))


def test_a_kind_that_nobody_knows_is_refused() -> None:
    spec = json.dumps({"kind": "dig"}).encode()
    offer = dataclasses.replace(
        offer_of(SPECS["study"]), spec=spec, unit_key=UnitKey(digest_of(spec).removeprefix("sha256:"))
    )
    with pytest.raises(InvalidError, match="expected one of prefill, study, train, evaluate"):
        check_offer(offer)


def test_the_names_of_inputs_are_those_the_worker_reads() -> None:
    names = {kind: [file.name for file in kind_of(spec).inputs(spec)] for kind, spec in SPECS.items()}
    assert names == {
        "prefill": [TOKENS_FILE],
        "study": [FRAME_FILE, TOKENS_FILE],
        "train": [
            FRAME_FILE,
            "state.safetensors",
            "shards/0000.safetensors",
            "shards/0001.safetensors",
            "distractors/0000.safetensors",
        ],
        "evaluate": [FRAME_FILE, ADAPTER_FILE, "shards/0000.safetensors"],
    }
