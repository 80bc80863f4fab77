"""Other people's registry clients pull cubes from the pool, and operators push with them."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import oras.client
import pytest
import urllib3

from memgrid.cube.oci import CUBE_ARTIFACT_TYPE, KV_TYPE
from memgrid.digest import Digest, digest_of, digest_of_file
from tests.integration.data_plane import (
    OPERATOR,
    DataPlane,
    descriptor,
    manifest_of,
    push_blob,
    push_manifest,
    running,
)

REPOSITORY = "docs/quick-start"
CONFIG = b'{"kind":"activation"}'
CHUNKS = {f"kv/{index:04}.safetensors": bytes([index]) * 300_000 for index in range(3)}
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with running(tmp_path / "grid") as plane:
        yield plane


async def publish(plane: DataPlane) -> Digest:
    """Push a small cube as `1.0`; returns its manifest's digest."""
    async with plane.client(OPERATOR) as client:
        for content in (CONFIG, *CHUNKS.values()):
            await push_blob(client, REPOSITORY, content)
        manifest = manifest_of(CONFIG, *(descriptor(content, KV_TYPE, title) for title, content in CHUNKS.items()))
        assert (await push_manifest(client, REPOSITORY, "1.0", manifest)).status_code == 201
    return digest_of(manifest)


async def skopeo(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "skopeo", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@needs_skopeo
async def test_skopeo_copies_a_cube_into_a_folder(plane: DataPlane, tmp_path: Path) -> None:
    manifest_digest = await publish(plane)
    source = f"docker://127.0.0.1:{plane.port}/{REPOSITORY}:1.0"
    await skopeo("copy", "--src-tls-verify=false", source, f"dir:{tmp_path / 'out'}")
    assert digest_of_file(tmp_path / "out" / "manifest.json") == manifest_digest
    for content in (CONFIG, *CHUNKS.values()):
        blob = tmp_path / "out" / digest_of(content).removeprefix("sha256:")
        assert await asyncio.to_thread(blob.read_bytes) == content


@needs_skopeo
async def test_skopeo_copies_a_cube_into_an_image_layout(plane: DataPlane, tmp_path: Path) -> None:
    manifest_digest = await publish(plane)
    source = f"docker://127.0.0.1:{plane.port}/{REPOSITORY}@{manifest_digest}"
    await skopeo("copy", "--src-tls-verify=false", source, f"oci:{tmp_path / 'layout'}:cube")
    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    assert index["manifests"][0]["digest"] == manifest_digest
    blob = tmp_path / "layout" / "blobs" / "sha256" / manifest_digest.removeprefix("sha256:")
    assert json.loads(blob.read_text())["artifactType"] == CUBE_ARTIFACT_TYPE


@needs_skopeo
async def test_skopeo_lists_tags(plane: DataPlane) -> None:
    await publish(plane)
    listed = await skopeo("list-tags", "--tls-verify=false", f"docker://127.0.0.1:{plane.port}/{REPOSITORY}")
    assert json.loads(listed)["Tags"] == ["1.0"]


@needs_skopeo
async def test_skopeo_pushes_with_an_operators_token(plane: DataPlane, tmp_path: Path) -> None:
    manifest_digest = await publish(plane)
    at = f"docker://127.0.0.1:{plane.port}/"
    await skopeo("copy", "--src-tls-verify=false", f"{at}{REPOSITORY}:1.0", f"oci:{tmp_path / 'layout'}:cube")
    await skopeo(
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds",
        f"operator:{OPERATOR}",
        f"oci:{tmp_path / 'layout'}:cube",
        f"{at}mirror/quick-start:2.0",
    )
    async with plane.client() as anybody:
        copied = await anybody.get("/v2/mirror/quick-start/manifests/2.0")
        assert copied.headers["Docker-Content-Digest"] == manifest_digest


def oras_client(plane: DataPlane) -> oras.client.OrasClient:
    return oras.client.OrasClient(hostname=f"127.0.0.1:{plane.port}", tls_verify=False)


@pytest.fixture
def no_certificate_warnings() -> None:
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


@pytest.mark.usefixtures("no_certificate_warnings")
async def test_oras_pulls_a_cube_as_the_folder_it_is(plane: DataPlane, tmp_path: Path) -> None:
    await publish(plane)
    target = f"127.0.0.1:{plane.port}/{REPOSITORY}:1.0"
    pulled = await asyncio.to_thread(
        oras_client(plane).pull, target=target, outdir=str(tmp_path / "cube"), allowed_media_type=[KV_TYPE]
    )
    assert len(pulled) == len(CHUNKS)
    for title, content in CHUNKS.items():
        assert await asyncio.to_thread((tmp_path / "cube" / title).read_bytes) == content


@pytest.mark.usefixtures("no_certificate_warnings")
async def test_oras_pushes_with_an_operators_token(
    plane: DataPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.jsonl").write_text('{"text": "a fact"}\n')
    client = oras_client(plane)
    client.auth.set_basic_auth("operator", OPERATOR)
    target = f"127.0.0.1:{plane.port}/notes/mine:1.0"
    await asyncio.to_thread(client.push, target=target, files=["notes.jsonl:application/jsonl"])
    async with plane.client() as anybody:
        manifest = (await anybody.get("/v2/notes/mine/manifests/1.0")).json()
        blob = await anybody.get(f"/v2/notes/mine/blobs/{manifest['layers'][0]['digest']}")
        assert blob.text == '{"text": "a fact"}\n'
