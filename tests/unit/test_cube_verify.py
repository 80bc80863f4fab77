"""A cube is its bytes: written the same every time, and any byte changed is noticed by the name of its file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from memgrid.cube.cube import MemCube
from memgrid.cube.info import CubeInfo
from memgrid.cube.manifest import MANIFEST_FILE, PROVENANCE_FILE, README_FILE, CubeManifest
from memgrid.cube.provenance import check_provenance, sign_cube
from memgrid.digest import canonical_json
from memgrid.errors import InvalidError, NotVerifiedError
from memgrid.signing import SigningKey
from tests.cubes import make_cube, write_cube

KEY = SigningKey.generate()
TEXT = "Two replicas agree, one uploads, and nobody has to trust the donor. " * 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("made") / "cube"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    make_cube(folder, model=model, model_folder=tiny_model_folder, tokenizer=tokenizer, text=TEXT, key=KEY)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cube"))


def manifest_of(folder: Path) -> CubeManifest:
    return CubeManifest.from_bytes((folder / MANIFEST_FILE).read_bytes())


def test_verified_cube_says_who_signed_what(folder: Path) -> None:
    found = MemCube.open(folder).verify([SigningKey.generate().public_key, KEY.public_key])
    assert found.digest == manifest_of(folder).digest
    assert found.provenance.public_key == KEY.public_key
    assert found.provenance.predicate == {"builder": "tests"}
    assert found.files == len(manifest_of(folder).chunks) + 1


def test_same_cube_made_twice_is_the_same_to_the_bit(tmp_path: Path, made: Path, tiny_model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    make_cube(tmp_path, model=model, model_folder=tiny_model_folder, tokenizer=tokenizer, text=TEXT, key=KEY)
    names = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    assert len(names) > 4
    for name in names:
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_noticed_by_the_name_of_its_file(made: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(path for path in made.rglob("*") if path.is_file())))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        with pytest.raises((NotVerifiedError, InvalidError)) as refused:
            MemCube.open(made).verify([KEY.public_key])
    finally:
        path.write_bytes(content)
    assert path.name in str(refused.value)
    MemCube.open(made).verify([KEY.public_key])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / README_FILE).unlink(), "README.md: missing"),
        (lambda folder: (folder / PROVENANCE_FILE).unlink(), "memcube.intoto.jsonl: missing"),
        (lambda folder: (folder / "kv/0001.safetensors").unlink(), "kv/0001.safetensors: missing"),
        (lambda folder: os.truncate(folder / "kv/0001.safetensors", 10), "10 bytes, the manifest says"),
        (lambda folder: (folder / "kv/9999.safetensors").write_bytes(b""), "kv/9999.safetensors: not part"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "adapter_model.safetensors: not"),
        (lambda folder: (folder / "modeling.py").symlink_to("/etc/passwd"), "modeling.py: not part"),
        (lambda folder: (folder / PROVENANCE_FILE).write_bytes(b""), "truncated"),
        (lambda folder: (folder / PROVENANCE_FILE).write_bytes(b"{}\n"), "not a DSSE envelope"),
        (lambda folder: (folder / PROVENANCE_FILE).write_bytes(b"[" * 100_000 + b"\n"), "not a DSSE envelope"),
    ],
)
def test_missing_added_or_spoiled_file_is_named(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(NotVerifiedError, match=message):
        MemCube.open(folder).verify([KEY.public_key])


def test_hidden_files_of_other_programs_do_not_matter(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    MemCube.open(folder).verify([KEY.public_key])


def test_signature_of_a_stranger_or_of_nobody_is_refused(folder: Path) -> None:
    cube = MemCube.open(folder)
    with pytest.raises(NotVerifiedError, match="but the trusted keys are"):
        cube.verify([SigningKey.generate().public_key])
    with pytest.raises(NotVerifiedError, match="the trusted keys are none"):
        cube.verify([])


def test_signature_of_another_cube_does_not_serve(folder: Path) -> None:
    other = replace(manifest_of(folder), title="Another")
    (folder / PROVENANCE_FILE).write_bytes(sign_cube(other.to_bytes(), {}, KEY))
    with pytest.raises(NotVerifiedError, match="not the manifest that was signed"):
        MemCube.open(folder).verify([KEY.public_key])


def test_manifest_changed_after_opening_is_noticed(folder: Path) -> None:
    cube = MemCube.open(folder)
    write_cube(folder, replace(manifest_of(folder), title="Another", files=()), KEY)
    with pytest.raises(NotVerifiedError, match="has changed since"):
        cube.verify([KEY.public_key])


def test_second_signer_may_stand_beside_the_first(folder: Path) -> None:
    second = SigningKey.generate()
    path, content = folder / PROVENANCE_FILE, (folder / MANIFEST_FILE).read_bytes()
    path.write_bytes(path.read_bytes() + sign_cube(content, {"builder": "second"}, second))
    assert check_provenance(path.read_bytes(), content, [second.public_key]).predicate == {"builder": "second"}
    assert check_provenance(path.read_bytes(), content, [KEY.public_key]).predicate == {"builder": "tests"}


def edited(folder: Path, edit: Callable[[dict[str, Any]], None]) -> bytes:
    value = json.loads((folder / MANIFEST_FILE).read_bytes())
    edit(value)
    return canonical_json(value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value.update(format="memgrid.cube.v2"),
        lambda value: value.update(more=1),
        lambda value: value.pop("licence"),
        lambda value: value.update(title=7),
        lambda value: value.update(kind="memory"),
        lambda value: value.update(name="docs/x\n```\nevil"),
        lambda value: value.update(version="1.0.0 beta"),
        lambda value: value.update(chunks=[]),
        lambda value: value.update(token_count=value["token_count"] + 1),
        lambda value: value.update(token_count=float(value["token_count"]) + 0.5),
        lambda value: value["chunks"].reverse(),
        lambda value: value["chunks"].pop(1),
        lambda value: value["chunks"][1].update(start=0),
        lambda value: value["chunks"][0].update(path="../../.ssh/authorized_keys"),
        lambda value: value["chunks"][0].update(path="/etc/passwd"),
        lambda value: value["chunks"][0].update(path="kv\\..\\x"),
        lambda value: value["chunks"][0].update(path=value["chunks"][1]["path"]),
        lambda value: value["chunks"][0].update(path="README.MD"),
        lambda value: value["chunks"][0].update(path=MANIFEST_FILE),
        lambda value: value["chunks"][0].update(size_bytes=-1),
        lambda value: value["chunks"][0].update(digest="sha256:0"),
        lambda value: value["layout"].update(sink_tokens=4),
        lambda value: value["layout"].update(kind="independent"),
        lambda value: value["base"].update(stored_dtype="F16"),
        lambda value: value["cost"].update(flops=12),
        lambda value: value["cost"].update(flops="007"),
        lambda value: value["files"][0].update(mediaType="text"),
        lambda value: value["files"][0].update(annotations={}),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(InvalidError) as refused:
        CubeManifest.from_bytes(edited(folder, edit))
    assert "\n" not in str(refused.value)


def test_manifest_has_one_spelling_only(folder: Path) -> None:
    content = (folder / MANIFEST_FILE).read_bytes()
    assert CubeManifest.from_bytes(content).to_bytes() == content
    with pytest.raises(InvalidError, match="canonical"):
        CubeManifest.from_bytes(json.dumps(json.loads(content), indent=1).encode())


@given(flops=st.integers(0, 10**24))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cost_of_any_size_is_kept_exactly(made: Path, flops: int) -> None:
    manifest = manifest_of(made)
    costly = replace(manifest, cost=replace(manifest.cost, flops=flops))
    assert CubeManifest.from_bytes(costly.to_bytes()).cost.flops == flops


def test_card_is_a_hugging_face_model_card(folder: Path) -> None:
    manifest = replace(manifest_of(folder), title="Evil](http://x) <script> | # x")
    write_cube(folder, replace(manifest, files=()), KEY)
    _, front, body = (folder / README_FILE).read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["base_model"] == "tiny" and card["base_model_relation"] == "adapter"
    assert card["license"] == "apache-2.0" and "memcube" in card["tags"]
    assert "<script>" not in body.replace(r"\<script\>", "") and r"Evil\]" in body
    assert f"{manifest.token_count}" in body


def test_price_tag_compares_pulling_with_computing(folder: Path) -> None:
    info = CubeInfo.of(manifest_of(folder))
    assert info.saved_flops == info.produced_flops and info.spent_flops == 2 * info.produced_flops
    slow = info.break_even(line_bytes_per_s=info.bytes / 10, compute_flops_per_s=info.saved_flops / 2)
    assert (slow.pull_s, slow.compute_s, slow.is_worth_pulling) == (10, 2, False)
    assert slow.line_needed_bytes_per_s == info.bytes / 2
    json.dumps(info.to_json())


def test_folder_without_a_cube_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="this is no cube"):
        MemCube.open(tmp_path)
