"""A plan, computed by a real model, assembles into a cube that verifies, attaches and answers like the text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from memgrid.cube.cube import MemCube
from memgrid.cube.identity import identity_of_folder
from memgrid.cube.manifest import (
    MANIFEST_FILE,
    PROVENANCE_FILE,
    README_FILE,
    CubeManifest,
    Layout,
    LayoutKind,
    Numerics,
    SourceText,
    Wrap,
)
from memgrid.cube.oci import CUBE_ARTIFACT_TYPE, CUBE_CONFIG_TYPE, KV_TYPE, OciManifest
from memgrid.cube.provenance import check_provenance
from memgrid.digest import digest_of, digest_of_file, token_ids
from memgrid.errors import InvalidError, NotVerifiedError
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.signing import SigningKey
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_coordinator.heavy.assemble import AssembledCube, AssemblyOrder, Making, OrderedChunk, assemble_cube
from memgrid_coordinator.heavy.chunks import PlannedChunk, PlanParameters
from memgrid_coordinator.heavy.plan import plan_activation
from memgrid_coordinator.heavy.sources import SourceFile, SourceFormat
from tests.cubes import prefill, write_kv

TEXT = "The valve opens at three bar and closes at two. Nobody has to trust the donor. " * 3
QUESTION = "When does the valve close?"
MAKING = Making(
    builder="memgrid:test",
    campaign="c1",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    finished_at=datetime(2026, 1, 1, 0, 5, tzinfo=UTC),
    replicas=8,
    reports_rejected=1,
    spent_flops=3 << 60,
    device_seconds={"cpu": 12.34567},
    hosts=("b" * 64, "a" * 64),
    largest_distance=0.25,
)


@dataclass(frozen=True)
class Made:
    """A document, computed: what to assemble, and the KV files by digest."""

    order: AssemblyOrder
    files: dict[str, Path]


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=list(LayoutKind))
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, model: Any
) -> Made:
    return make(tmp_path_factory.mktemp("made"), tiny_model_folder, model, request.param)


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, model: Any) -> Made:
    return make(tmp_path_factory.mktemp("chained"), tiny_model_folder, model, LayoutKind.CHAINED)


def make(folder: Path, model_folder: Path, model: Any, layout: LayoutKind) -> Made:
    (folder / "source").write_text(TEXT)
    source = SourceFile(
        path=folder / "source",
        uri="docs/manual.md",
        digest=digest_of(TEXT.encode()),
        format=SourceFormat.MD,
        licence="CC-BY-4.0",
    )
    parameters = PlanParameters(
        layout=layout,
        wrap=Wrap.CHAT,
        chunk_tokens=32,
        target_unit_s=20,
        flops_per_s=1e9,
        compute_dtype=ComputeDtype.FLOAT32,
        store_dtype=StoreDtype.FLOAT32,
        sink_tokens=2,
    )
    identity = identity_of_folder(model_folder, "models/tiny")
    (document,) = plan_activation([source], model_folder, identity, parameters).documents
    chunks, files = compute(folder, model, document.chunks)
    order = AssemblyOrder(
        name="manuals/valve",
        version="1.0.0",
        title="The valve",
        licence="CC-BY-4.0",
        base=identity,
        layout=Layout(
            kind=layout, wrap=Wrap.CHAT, chunk_tokens=32, sink_tokens=2 if layout is LayoutKind.INDEPENDENT else 0
        ),
        numerics=Numerics(compute_dtype=ComputeDtype.FLOAT32, store_dtype=StoreDtype.FLOAT32),
        chunks=chunks,
        sources=(SourceText(uri=source.uri, digest=source.digest, licence="CC-BY-4.0", size_bytes=len(TEXT)),),
        min_replicas=2,
        tolerances=BUILT_IN,
        making=MAKING,
    )
    return Made(order=order, files=files)


def compute(
    folder: Path, model: Any, planned: tuple[PlannedChunk, ...]
) -> tuple[tuple[OrderedChunk, ...], dict[str, Path]]:
    """What volunteers do, in a loop."""
    chunks, files = [], {}
    past: DynamicCache | None = None
    for number, chunk in enumerate(planned):
        ids = token_ids(chunk.tokens)
        past = prefill(model, ids, past if chunk.spec.parent else None)
        path = folder / f"{number}.safetensors"
        write_kv(path, past, ids, chunk.spec.start, StoreDtype.FLOAT32)
        digest = digest_of_file(path)
        files[digest] = path
        chunks.append(
            OrderedChunk(
                spec=chunk.spec,
                tokens=chunk.tokens,
                flops=chunk.flops,
                output=digest,
                output_bytes=path.stat().st_size,
            )
        )
    return tuple(chunks), files


def pull(folder: Path, cube: AssembledCube, files: dict[str, Path]) -> MemCube:
    """What a consumer has after a pull: each blob of the OCI manifest under its title."""
    blobs = {digest_of(content): content for content in cube.blobs}
    blobs |= {digest_of_file(path): path.read_bytes() for path in files.values()}
    oci = OciManifest.from_bytes(cube.oci)
    for each in (oci.config, *oci.layers):
        path = folder / (each.title or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blobs[each.digest])
    return MemCube.open(folder)


def test_an_assembled_cube_verifies_and_attaches(
    tmp_path: Path, made: Made, model: Any, tiny_model_folder: Path
) -> None:
    key = SigningKey.generate()
    cube = pull(tmp_path, assemble_cube(made.order, key), made.files)
    assert cube.verify([key.public_key]).files == len(made.order.chunks) + 1
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    memory = cube.attach(model)
    prompt = memory.prompt(tokenizer, QUESTION)
    assert memory.cache().get_seq_length() == memory.positions == cube.manifest.token_count > 60
    expected_ids = tokenizer.apply_chat_template(
        [{"role": "system", "content": TEXT}, {"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    assert prompt["input_ids"][0].tolist() == expected_ids


def test_a_chained_cube_gives_the_logits_of_reading_the_text(
    tmp_path: Path, chained: Made, model: Any, tiny_model_folder: Path
) -> None:
    key = SigningKey.generate()
    cube = pull(tmp_path, assemble_cube(chained.order, key), chained.files)
    cube.verify([key.public_key])
    memory = cube.attach(model)
    ids = memory.prompt(AutoTokenizer.from_pretrained(tiny_model_folder), QUESTION)["input_ids"]
    cache = memory.cache()
    with torch.inference_mode():
        whole = model(ids).logits[0, -1]
        with_cube = model(ids[:, cache.get_seq_length() :], past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(with_cube, whole, rtol=1e-3, atol=1e-3)


def test_equal_results_make_the_same_cube_however_they_came_about(made: Made) -> None:
    later = replace(
        MAKING,
        started_at=MAKING.started_at + timedelta(days=9),
        finished_at=MAKING.finished_at + timedelta(days=9),
        replicas=2,
        device_seconds={"cuda": 0.1},
        hosts=("c" * 64,),
        largest_distance=0.0,
        builder="memgrid:another",
    )
    first = assemble_cube(made.order, SigningKey.generate())
    second = assemble_cube(replace(made.order, making=later), SigningKey.generate())
    assert first.blobs[:2] == second.blobs[:2]
    assert first.digest == second.digest
    assert first.blobs[2] != second.blobs[2]


def test_the_payload_is_referenced_and_not_copied(made: Made) -> None:
    cube = assemble_cube(made.order, SigningKey.generate())
    oci = OciManifest.from_bytes(cube.oci)
    assert oci.artifact_type == CUBE_ARTIFACT_TYPE
    assert (oci.config.media_type, oci.config.title, oci.config.digest) == (
        CUBE_CONFIG_TYPE,
        MANIFEST_FILE,
        cube.digest,
    )
    payload = [layer.digest for layer in oci.layers if layer.media_type == KV_TYPE]
    assert payload == [chunk.output for chunk in made.order.chunks]
    small = {layer.title: layer.digest for layer in oci.layers if layer.media_type != KV_TYPE}
    assert small == {README_FILE: digest_of(cube.blobs[0]), PROVENANCE_FILE: digest_of(cube.blobs[2])}
    assert sum(map(len, cube.blobs)) < 32_768


def test_the_card_is_one_that_hugging_face_reads(chained: Made) -> None:
    card = assemble_cube(chained.order, SigningKey.generate()).blobs[0].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "models/tiny"
    assert (front["base_model_relation"], front["library_name"]) == ("adapter", "memgrid")
    assert (front["license"], "memcube" in front["tags"]) == ("cc-by-4.0", True)


def test_the_provenance_tells_what_the_manifest_must_not(chained: Made) -> None:
    key = SigningKey.generate()
    _, manifest, provenance = assemble_cube(chained.order, key).blobs
    said = check_provenance(provenance, manifest, [key.public_key]).predicate
    (facts,) = [each["annotations"] for each in said["runDetails"]["byproducts"]]
    assert facts["device_seconds"] == {"cpu": 12.346}
    assert facts["hosts"] == ["a" * 64, "b" * 64]
    assert (facts["replicas"], facts["reports_rejected"]) == (8, 1)
    assert float(facts["spent_flops"]) == 3 << 60
    assert said["runDetails"]["metadata"]["startedOn"] == "2026-01-01T00:00:00+00:00"
    materials = {each["uri"]: each["digest"]["sha256"] for each in said["buildDefinition"]["resolvedDependencies"]}
    assert f"sha256:{materials['models/tiny']}" == chained.order.base.digest
    assert f"sha256:{materials['docs/manual.md']}" == digest_of(TEXT.encode())
    with pytest.raises(NotVerifiedError):
        check_provenance(provenance, manifest, [SigningKey.generate().public_key])


def test_the_cost_is_that_of_computing_once(made: Made) -> None:
    manifest = CubeManifest.from_bytes(assemble_cube(made.order, SigningKey.generate()).blobs[1])
    assert manifest.cost.flops == sum(chunk.flops for chunk in made.order.chunks)
    assert manifest.cost.units == len(made.order.chunks)
    assert manifest.validation.min_replicas == 2
    assert manifest.validation.limits["V median"] > 0


def test_chunks_that_do_not_follow_one_another_make_no_cube(chained: Made) -> None:
    first, _, *rest = chained.order.chunks
    with pytest.raises(InvalidError, match="chunks do not follow one another"):
        assemble_cube(replace(chained.order, chunks=(first, *rest)), SigningKey.generate())
