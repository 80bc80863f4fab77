"""Manifests, tags, referrers, cubes and models in the pool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from memgrid.cube.oci import (
    CUBE_ARTIFACT_TYPE,
    KV_TYPE,
    MANIFEST_BYTES_MAX,
    MODEL_ARTIFACT_TYPE,
    OCI_INDEX_TYPE,
    OCI_MANIFEST_TYPE,
)
from memgrid.digest import Digest, canonical_json, digest_of
from memgrid.errors import InvalidError, UnknownIdError, UnknownModelError
from memgrid_coordinator.records import CubeFacts
from tests.integration.data_plane import (
    OPERATOR,
    DataPlane,
    descriptor,
    error_of,
    manifest_of,
    push_blob,
    push_manifest,
    running,
)

REPOSITORY = "docs/quick-start"
CONFIG, CHUNK = b'{"kind":"activation"}', b"keys and values"
FACTS = CubeFacts(
    digest=digest_of(CONFIG),
    kind="activation",
    base="SmolLM2-135M-Instruct",
    title="Quick start",
    source_names=("docs/quick-start.md",),
    tokens=1234,
    payload_bytes=len(CHUNK),
    licence="Apache-2.0",
    produced_flops=10**15,
)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with running(tmp_path / "grid") as plane:
        yield plane


@pytest.fixture
async def operator(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client(OPERATOR) as client:
        yield client


@pytest.fixture
async def anybody(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client() as client:
        yield client


async def push_cube(
    client: httpx.AsyncClient, reference: str, repository: str = REPOSITORY, **more: object
) -> Digest:
    for content in (CONFIG, CHUNK):
        await push_blob(client, repository, content)
    manifest = manifest_of(CONFIG, descriptor(CHUNK, KV_TYPE, "kv/0000.safetensors"), **more)
    answer = await push_manifest(client, repository, reference, manifest)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Docker-Content-Digest"] == digest_of(manifest)
    return digest_of(manifest)


async def test_a_manifest_is_found_by_tag_and_by_digest(
    operator: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    digest = await push_cube(operator, "1.0")
    for reference in ("1.0", digest):
        got = await anybody.get(f"/v2/{REPOSITORY}/manifests/{reference}")
        assert digest_of(got.content) == digest == got.headers["Docker-Content-Digest"]
        assert got.headers["Content-Type"] == OCI_MANIFEST_TYPE
        head = await anybody.head(f"/v2/{REPOSITORY}/manifests/{reference}")
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(got.content)))
    assert error_of(await anybody.get(f"/v2/{REPOSITORY}/manifests/2.0")) == (404, "MANIFEST_UNKNOWN")


async def test_a_manifest_belongs_to_one_repository(operator: httpx.AsyncClient, anybody: httpx.AsyncClient) -> None:
    digest = await push_cube(operator, "1.0")
    assert (await anybody.get(f"/v2/docs/other/manifests/{digest}")).status_code == 404


async def test_a_tag_moves_to_what_was_pushed_last(operator: httpx.AsyncClient) -> None:
    first = await push_cube(operator, "latest")
    second = await push_cube(operator, "latest", annotations={"version": "2"})
    got = await operator.get(f"/v2/{REPOSITORY}/manifests/latest")
    assert first != second == got.headers["Docker-Content-Digest"]
    assert (await operator.get(f"/v2/{REPOSITORY}/manifests/{first}")).status_code == 200


async def test_a_manifest_whose_blobs_are_missing_is_refused(operator: httpx.AsyncClient) -> None:
    await push_blob(operator, REPOSITORY, CONFIG)
    answer = await push_manifest(operator, REPOSITORY, "1.0", manifest_of(CONFIG, descriptor(b"absent")))
    assert error_of(answer) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert digest_of(b"absent") in answer.json()["errors"][0]["message"]
    assert (await operator.get(f"/v2/{REPOSITORY}/manifests/1.0")).status_code == 404


async def test_a_manifest_that_lies_about_a_size_is_refused(operator: httpx.AsyncClient) -> None:
    await push_blob(operator, REPOSITORY, CONFIG)
    wrong = manifest_of(CONFIG, {**descriptor(CONFIG), "size": 1 << 50})
    assert error_of(await push_manifest(operator, REPOSITORY, "1.0", wrong)) == (400, "MANIFEST_INVALID")


async def test_a_manifest_under_another_digest_is_refused(operator: httpx.AsyncClient) -> None:
    await push_blob(operator, REPOSITORY, CONFIG)
    manifest = manifest_of(CONFIG)
    answer = await push_manifest(operator, REPOSITORY, digest_of(b"other"), manifest)
    assert error_of(answer) == (400, "DIGEST_INVALID")
    assert (await push_manifest(operator, REPOSITORY, digest_of(manifest), manifest)).status_code == 201


@pytest.mark.parametrize("reference", ["a b", ".hidden", "-x", "t" * 129, "ä"])
async def test_a_tag_that_oci_does_not_allow_is_refused(operator: httpx.AsyncClient, reference: str) -> None:
    await push_blob(operator, REPOSITORY, CONFIG)
    answer = await push_manifest(operator, REPOSITORY, reference, manifest_of(CONFIG))
    assert error_of(answer) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize("with_length", [True, False])
async def test_a_manifest_has_a_largest_size(operator: httpx.AsyncClient, with_length: bool) -> None:
    content = b" " * (MANIFEST_BYTES_MAX + 1)

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    headers = {"Content-Type": OCI_MANIFEST_TYPE}
    answer = await operator.put(
        f"/v2/{REPOSITORY}/manifests/1.0", content=content if with_length else pieces(), headers=headers
    )
    assert error_of(answer) == (413, "SIZE_INVALID")


async def test_a_manifest_under_a_false_content_type_is_refused(operator: httpx.AsyncClient) -> None:
    await push_blob(operator, REPOSITORY, CONFIG)
    for media_type in ("text/html", OCI_INDEX_TYPE):
        answer = await operator.put(
            f"/v2/{REPOSITORY}/manifests/1.0", content=manifest_of(CONFIG), headers={"Content-Type": media_type}
        )
        assert error_of(answer) == (400, "MANIFEST_INVALID")


async def test_an_index_needs_its_manifests_first(operator: httpx.AsyncClient) -> None:
    entry = descriptor(manifest_of(CONFIG, descriptor(CHUNK, KV_TYPE, "kv/0000.safetensors")), OCI_MANIFEST_TYPE)
    index = canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": [entry]})

    async def push() -> httpx.Response:
        headers = {"Content-Type": OCI_INDEX_TYPE}
        return await operator.put(f"/v2/{REPOSITORY}/manifests/all", content=index, headers=headers)

    assert error_of(await push()) == (404, "MANIFEST_BLOB_UNKNOWN")
    await push_cube(operator, "1.0")
    assert (await push()).status_code == 201


async def test_tags_come_in_pages(operator: httpx.AsyncClient, anybody: httpx.AsyncClient) -> None:
    for tag in ("1.0", "1.1", "2.0", "latest"):
        await push_cube(operator, tag)
    path = f"/v2/{REPOSITORY}/tags/list"
    assert (await anybody.get(path)).json() == {"name": REPOSITORY, "tags": ["1.0", "1.1", "2.0", "latest"]}
    seen: list[str] = []
    url = f"{path}?n=3"
    while url:
        page = await anybody.get(url)
        seen += page.json()["tags"]
        url = page.links["next"]["url"] if "next" in page.links else ""
    assert seen == ["1.0", "1.1", "2.0", "latest"]
    assert (await anybody.get(path, params={"n": "0"})).json()["tags"] == []
    assert (await anybody.get(path, params={"n": "x"})).status_code == 400
    assert error_of(await anybody.get("/v2/docs/absent/tags/list")) == (404, "NAME_UNKNOWN")


async def test_the_catalogue_shows_what_the_caller_may_read(
    operator: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    for repository in ("docs/a", "docs/b", "sources/secret"):
        await push_cube(operator, "1.0", repository)
    assert (await anybody.get("/v2/_catalog")).json() == {"repositories": ["docs/a", "docs/b"]}
    everything = ["docs/a", "docs/b", "sources/secret"]
    assert (await operator.get("/v2/_catalog")).json() == {"repositories": everything}
    page = await operator.get("/v2/_catalog", params={"n": "1", "last": "docs/a"})
    assert page.json() == {"repositories": ["docs/b"]}


async def test_what_is_about_a_manifest_is_listed(operator: httpx.AsyncClient, anybody: httpx.AsyncClient) -> None:
    cube = await push_cube(operator, "1.0")
    subject = {"mediaType": OCI_MANIFEST_TYPE, "digest": cube, "size": 1}
    evaluation = manifest_of(CONFIG, artifact_type="application/x-eval", subject=subject, annotations={"score": "1"})
    answer = await push_manifest(operator, REPOSITORY, digest_of(evaluation), evaluation)
    assert answer.headers["OCI-Subject"] == cube
    path = f"/v2/{REPOSITORY}/referrers/{cube}"
    listed = await anybody.get(path)
    assert listed.headers["Content-Type"].startswith(OCI_INDEX_TYPE)
    assert listed.json()["manifests"] == [
        {
            "mediaType": OCI_MANIFEST_TYPE,
            "digest": digest_of(evaluation),
            "size": len(evaluation),
            "artifactType": "application/x-eval",
            "annotations": {"score": "1"},
        }
    ]
    filtered = await anybody.get(path, params={"artifactType": "application/other"})
    assert (filtered.json()["manifests"], filtered.headers["OCI-Filters-Applied"]) == ([], "artifactType")
    nothing = await anybody.get(f"/v2/{REPOSITORY}/referrers/{digest_of(b'absent')}")
    assert (nothing.status_code, nothing.json()["manifests"]) == (200, [])


async def test_a_tag_is_taken_away_without_its_manifest(operator: httpx.AsyncClient) -> None:
    digest = await push_cube(operator, "1.0")
    assert (await operator.delete(f"/v2/{REPOSITORY}/manifests/1.0")).status_code == 202
    assert (await operator.get(f"/v2/{REPOSITORY}/manifests/1.0")).status_code == 404
    assert (await operator.get(f"/v2/{REPOSITORY}/manifests/{digest}")).status_code == 200
    assert error_of(await operator.delete(f"/v2/{REPOSITORY}/manifests/1.0")) == (404, "MANIFEST_UNKNOWN")


async def test_what_only_a_removed_manifest_named_is_readable_no_more(
    operator: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    removed = await push_cube(operator, "1.0")
    await push_blob(operator, REPOSITORY, b"{}")
    kept = manifest_of(CONFIG, descriptor(b"{}"))
    assert (await push_manifest(operator, REPOSITORY, "2.0", kept)).status_code == 201
    assert (await operator.delete(f"/v2/{REPOSITORY}/manifests/{removed}")).status_code == 202
    path = f"/v2/{REPOSITORY}/blobs/"
    statuses = [(await anybody.get(path + digest_of(content))).status_code for content in (CONFIG, b"{}", CHUNK)]
    assert statuses == [200, 200, 404]
    assert (await anybody.get(f"/v2/{REPOSITORY}/tags/list")).json()["tags"] == ["2.0"]


async def publish(plane: DataPlane, repository: str, facts: CubeFacts = FACTS, version: str = "1.0") -> Digest:
    for content in (CONFIG, CHUNK):
        plane.blobs.put_bytes(content)
    return await plane.publishing.publish_cube(
        repository=repository,
        version=version,
        tags=["latest"],
        manifest=manifest_of(CONFIG, descriptor(CHUNK, KV_TYPE, "kv/0000.safetensors")),
        media_type=OCI_MANIFEST_TYPE,
        facts=facts,
    )


async def test_a_published_cube_can_be_searched_and_pulled(plane: DataPlane, anybody: httpx.AsyncClient) -> None:
    digest = await publish(plane, REPOSITORY)
    assert await publish(plane, REPOSITORY) == digest
    found = (await anybody.get("/v1/cubes", params={"q": "QUICK smollm2"})).json()["cubes"]
    assert found == [
        {
            "repository": REPOSITORY,
            "tag": "1.0",
            "digest": digest_of(CONFIG),
            "manifest_digest": digest,
            "kind": "activation",
            "base": "SmolLM2-135M-Instruct",
            "title": "Quick start",
            "tokens": 1234,
            "bytes": len(CHUNK),
            "licence": "Apache-2.0",
            "produced_flops": 10**15,
            "gap_closed": None,
            "created_at": "2026-01-01T00:00:00+00:00",
        }
    ]
    for tag in ("1.0", "latest"):
        manifest = (await anybody.get(f"/v2/{REPOSITORY}/manifests/{tag}")).json()
        assert manifest["artifactType"] == CUBE_ARTIFACT_TYPE
        for part in (manifest["config"], *manifest["layers"]):
            blob = await anybody.get(f"/v2/{REPOSITORY}/blobs/{part['digest']}")
            assert digest_of(blob.content) == part["digest"]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({}, 3),
        ({"q": "quick-start.md"}, 3),
        ({"q": "docs/b"}, 1),
        ({"q": "absent"}, 0),
        ({"q": "100%"}, 0),
        ({"q": "_"}, 0),
        ({"q": "';--"}, 0),
        ({"base": "SmolLM2-135M-Instruct"}, 3),
        ({"base": "other"}, 0),
        ({"kind": "activation"}, 3),
        ({"kind": "plaintext"}, 0),
        ({"limit": "2"}, 2),
        ({"limit": "0"}, 0),
        ({"limit": "999999999"}, 3),
    ],
)
async def test_a_search_finds_what_it_names(
    plane: DataPlane, anybody: httpx.AsyncClient, query: dict[str, str], count: int
) -> None:
    for name in ("docs/a", "docs/b", "docs/c"):
        await publish(plane, name)
    assert len((await anybody.get("/v1/cubes", params=query)).json()["cubes"]) == count
    assert (await anybody.get("/v1/cubes", params={"limit": "-1"})).status_code == 400


async def test_another_cube_under_the_same_version_replaces_it(plane: DataPlane) -> None:
    await publish(plane, REPOSITORY)
    plane.blobs.put_bytes(b"{}")
    await plane.publishing.publish_cube(
        repository=REPOSITORY,
        version="1.0",
        tags=["latest"],
        manifest=manifest_of(b"{}"),
        media_type=OCI_MANIFEST_TYPE,
        facts=replace(FACTS, title="Second edition"),
    )
    assert [cube.title for cube in await plane.publishing.search("")] == ["Second edition"]


async def test_a_cube_whose_blobs_are_missing_is_not_published(plane: DataPlane) -> None:
    with pytest.raises(UnknownIdError):
        await plane.publishing.publish_cube(
            repository=REPOSITORY,
            version="1.0",
            tags=["latest"],
            manifest=manifest_of(b"absent"),
            media_type=OCI_MANIFEST_TYPE,
            facts=FACTS,
        )
    assert await plane.publishing.search("") == []


MODEL_FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "tokenizer.json": b'{"a":1}'}


async def push_model(client: httpx.AsyncClient, files: dict[str, bytes]) -> httpx.Response:
    for content in files.values():
        await push_blob(client, "models/tiny", content)
    layers = [descriptor(content, title=name) for name, content in files.items()]
    manifest = manifest_of(b"{}", *layers, artifact_type=MODEL_ARTIFACT_TYPE)
    return await push_manifest(client, "models/tiny", "latest", manifest)


async def test_a_pushed_model_becomes_a_folder(plane: DataPlane, operator: httpx.AsyncClient) -> None:
    assert (await push_model(operator, MODEL_FILES)).status_code == 201
    model = await plane.models.find("models/tiny")
    assert {file.name: file.digest for file in model.files} == {
        name: digest_of(content) for name, content in MODEL_FILES.items()
    }
    for file in model.files:
        got = await operator.get(file.path)
        assert (digest_of(got.content), len(got.content)) == (file.digest, file.size_bytes)
    for _ in range(2):
        folder = await plane.models.folder_of(model)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL_FILES
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    weights = next(file for file in model.files if file.name == "model.safetensors")
    assert (folder / "model.safetensors").samefile(plane.blobs.path_of(weights.digest))


async def test_a_model_with_code_in_it_is_refused(operator: httpx.AsyncClient) -> None:
    answer = await push_model(operator, {**MODEL_FILES, "modeling.py": b"import os"})
    assert error_of(answer) == (400, "MANIFEST_INVALID")
    assert "modeling.py" in answer.json()["errors"][0]["message"]


async def test_a_model_that_is_not_there_is_unknown(plane: DataPlane, operator: httpx.AsyncClient) -> None:
    with pytest.raises(UnknownModelError, match="models/absent"):
        await plane.models.find("models/absent")
    await push_cube(operator, "1.0")
    with pytest.raises(InvalidError, match="expected a model"):
        await plane.models.find(f"{REPOSITORY}:1.0")


async def test_manifests_are_kept_as_they_were_pushed(operator: httpx.AsyncClient) -> None:
    """The digest is of the bytes: a manifest written with other spaces is another manifest."""
    await push_blob(operator, REPOSITORY, CONFIG)
    spaced = json.dumps(json.loads(manifest_of(CONFIG)), indent=4).encode()
    assert (await push_manifest(operator, REPOSITORY, "1.0", spaced)).status_code == 201
    assert (await operator.get(f"/v2/{REPOSITORY}/manifests/1.0")).content == spaced
