"""The pool's client against the real data plane: find, price, pull, verify, keep and push."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memgrid import Pool
from memgrid.clock import ManualClock
from memgrid.cube.cube import MemCube
from memgrid.cube.manifest import MANIFEST_FILE, PROVENANCE_FILE, README_FILE, CubeManifest
from memgrid.cube.oci import (
    CUBE_ARTIFACT_TYPE,
    CUBE_CONFIG_TYPE,
    EMPTY_CONTENT,
    MODEL_ARTIFACT_TYPE,
    OCI_MANIFEST_TYPE,
    Descriptor,
    OciManifest,
)
from memgrid.digest import Digest, digest_of
from memgrid.endpoint import fingerprint_of
from memgrid.errors import (
    DigestMismatchError,
    InvalidError,
    NotVerifiedError,
    TokenRequiredError,
    TooLargeError,
    UnavailableError,
    UnknownCubeError,
    UntrustedGridError,
)
from memgrid.pool.cache import CubeCache
from memgrid.pool.patient import PatientClient
from memgrid.pool.registry import Registry
from memgrid.signing import SigningKey
from memgrid.units import StoreDtype
from memgrid_coordinator.recipes.facts import cube_facts
from tests.cubes import make_cube, write_cube
from tests.integration.data_plane import OPERATOR, DataPlane, running

KEY = SigningKey.generate()
NAME = "docs/valves"
TEXT = "The manual says that the valve opens at three bar and closes at two. " * 10
T = TypeVar("T")


@dataclass(frozen=True)
class Made:
    """A cube's folder and the model it is for."""

    folder: Path
    manifest: CubeManifest
    model: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Made:
    folder = tmp_path_factory.mktemp("made") / "cube"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    manifest = make_cube(
        folder,
        model=model,
        model_folder=tiny_model_folder,
        tokenizer=tokenizer,
        text=TEXT,
        key=KEY,
        store_dtype=StoreDtype.BFLOAT16,
        name=NAME,
    )
    return Made(folder=folder, manifest=manifest, model=model, tokenizer=tokenizer)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with running(tmp_path / "grid", tls=False, grid_key=KEY.public_key) as plane:
        yield plane


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 3, 1, tzinfo=UTC))


async def publish(plane: DataPlane, folder: Path, name: str = NAME, version: str = "1.0.0") -> Digest:
    """Put a cube's folder into the pool as the coordinator does; returns the OCI manifest's digest."""
    manifest = CubeManifest.from_bytes((folder / MANIFEST_FILE).read_bytes())
    provenance = (folder / PROVENANCE_FILE).read_bytes()
    oci = OciManifest(
        artifact_type=CUBE_ARTIFACT_TYPE,
        config=Descriptor.of(manifest.to_bytes(), CUBE_CONFIG_TYPE, MANIFEST_FILE),
        layers=manifest.oci_layers(provenance),
    )
    for content in contents_of(folder):
        plane.blobs.put_bytes(content)
    return await plane.publishing.publish_cube(
        repository=name,
        version=version,
        tags=("latest",),
        manifest=oci.to_bytes(),
        media_type=OCI_MANIFEST_TYPE,
        facts=cube_facts(manifest),
    )


async def with_pool(
    plane: DataPlane, tmp_path: Path, action: Callable[[Pool], T], *, token: str | None = None, **cache: Any
) -> T:
    def run() -> T:
        with Pool(plane.url, token, CubeCache(tmp_path / "cache", **cache)) as pool:
            return action(pool)

    return await asyncio.to_thread(run)


async def test_cube_is_found_priced_pulled_and_attached(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    manifest_digest = await publish(plane, made.folder)
    [listing] = await with_pool(plane, tmp_path, lambda pool: pool.search("valves", kind="activation"))
    assert (listing.repository, listing.tag, listing.digest) == (NAME, "1.0.0", made.manifest.digest)
    assert await with_pool(plane, tmp_path, lambda pool: pool.search("pumps")) == []

    offer = await with_pool(plane, tmp_path, lambda pool: pool.info(NAME))
    assert offer.manifest_digest == manifest_digest
    assert offer.info.saved_flops == made.manifest.cost.flops > 0
    assert offer.missing_bytes == offer.download_bytes > made.manifest.payload_bytes

    moved: list[int] = []
    cube = await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME, progress=moved.append))
    assert sum(moved) == offer.download_bytes
    assert cube.digest == made.manifest.digest
    prompt = cube.attach(made.model).prompt(made.tokenizer, "When does the valve open?")
    answer = made.model.generate(
        **prompt, max_new_tokens=4, do_sample=False, pad_token_id=made.tokenizer.pad_token_id
    )
    assert answer.shape[1] == prompt["input_ids"].shape[1] + 4
    assert (await with_pool(plane, tmp_path, lambda pool: pool.info(NAME))).missing_bytes == 0


async def test_second_pull_asks_for_the_manifest_only(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    digest = await publish(plane, made.folder)
    await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME))
    for path in (tmp_path / "grid" / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    cube = await with_pool(plane, tmp_path, lambda pool: pool.pull(f"{NAME}:1.0.0@{digest}"))
    assert cube.digest == made.manifest.digest


async def test_pull_goes_on_where_it_was_cut(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    await publish(plane, made.folder)
    chunk = made.manifest.chunks[0]
    content = (made.folder / chunk.path).read_bytes()
    partial = CubeCache(tmp_path / "cache").partial_path(chunk.digest)
    partial.write_bytes(content[:1000])
    moved: list[int] = []
    await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME, progress=moved.append))
    down = transferred_bytes(plane, "down", "cubes")
    small = sum((made.folder / name).stat().st_size for name in (MANIFEST_FILE, PROVENANCE_FILE))
    # memcube.json and its signature are read twice: once to be believed, once to be kept.
    assert down == sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file()) + small - 1000
    assert 1000 in moved


async def test_cut_download_is_resumed_by_the_same_pull(made: Made, tmp_path: Path) -> None:
    chunk = made.manifest.chunks[0]
    content = (made.folder / chunk.path).read_bytes()
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("range"))
        start = int(asked[-1].removeprefix("bytes=").removesuffix("-")) if asked[-1] else 0
        piece = content[start : start + len(content) // 3 + 1]
        return httpx.Response(206 if start else 200, stream=Cut(piece, is_last=start + len(piece) == len(content)))

    client = httpx.Client(base_url="http://grid.test", transport=httpx.MockTransport(answer))
    waits: list[float] = []
    registry = Registry(PatientClient(client, rng=random.Random(1), sleep=waits.append))
    partial = tmp_path / "partial"
    await asyncio.to_thread(registry.fetch_blob, NAME, chunk.digest, len(content), partial, lambda moved: None)
    assert partial.read_bytes() == content
    assert asked[0] is None and len(asked) == 3 and len(waits) == 2
    assert asked[1] == f"bytes={len(content) // 3 + 1}-"


class Cut(httpx.SyncByteStream):
    """A body whose connection breaks before its end."""

    def __init__(self, content: bytes, *, is_last: bool) -> None:
        self._content, self._is_last = content, is_last

    def __iter__(self) -> Any:
        yield self._content
        if not self._is_last:
            raise httpx.ReadError("connection reset by peer")


async def test_grid_that_stays_away_is_given_up_on_with_one_clear_line(tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    waits: list[float] = []
    client = httpx.Client(base_url="http://grid.test", transport=httpx.MockTransport(refuse))
    registry = Registry(PatientClient(client, rng=random.Random(1), sleep=waits.append))
    with pytest.raises(UnavailableError, match="gave up after 6 attempts: connection refused"):
        await asyncio.to_thread(registry.manifest, NAME, "latest")
    assert len(waits) == 5 and max(waits) <= 8


async def test_changed_byte_in_the_pool_never_gets_into_place(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    await publish(plane, made.folder)
    chunk = made.manifest.chunks[1]
    stored = plane.blobs.path_of(chunk.digest)
    content = bytearray(stored.read_bytes())
    content[-5] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(content)
    with pytest.raises(DigestMismatchError, match=chunk.digest):
        await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME))
    assert await with_pool(plane, tmp_path, lambda pool: pool.ls()) == []
    assert not CubeCache(tmp_path / "cache").partial_path(chunk.digest).exists()


async def test_cube_of_another_signer_is_refused_before_its_payload_is_fetched(
    plane: DataPlane, made: Made, tmp_path: Path
) -> None:
    folder = copy_of(made.folder, tmp_path / "forged")
    write_cube(folder, replace(made.manifest, title="Forged"), SigningKey.generate())
    await publish(plane, folder)
    with pytest.raises(NotVerifiedError, match="trusted keys are"):
        await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME))
    used_bytes = await with_pool(plane, tmp_path, lambda pool: pool.cache.used_bytes())
    assert used_bytes == 0
    with pytest.raises(NotVerifiedError, match="trusted keys are"):
        await with_pool(plane, tmp_path, lambda pool: pool.info(NAME))


async def test_oci_manifest_that_swaps_a_file_is_refused(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    await publish(plane, made.folder)
    evil = b"# buy this"
    plane.blobs.put_bytes(evil)
    provenance = (made.folder / PROVENANCE_FILE).read_bytes()
    layers = [
        Descriptor.of(evil, layer.media_type, layer.title) if layer.title == README_FILE else layer
        for layer in made.manifest.oci_layers(provenance)
    ]
    config = Descriptor.of(made.manifest.to_bytes(), CUBE_CONFIG_TYPE)
    oci = OciManifest(artifact_type=CUBE_ARTIFACT_TYPE, config=config, layers=tuple(layers))
    async with plane.client(OPERATOR) as client:
        pushed = await client.put(
            f"/v2/{NAME}/manifests/swapped", content=oci.to_bytes(), headers={"Content-Type": OCI_MANIFEST_TYPE}
        )
        assert pushed.status_code == 201
    with pytest.raises(NotVerifiedError, match=README_FILE):
        await with_pool(plane, tmp_path, lambda pool: pool.pull(f"{NAME}:swapped"))


async def test_damaged_copy_on_this_machine_is_fetched_anew(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    await publish(plane, made.folder)
    cube = await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME))
    damaged = cube.folder / made.manifest.chunks[0].path
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\0\1\2")
    with pytest.raises(NotVerifiedError, match=made.manifest.chunks[0].path):
        await with_pool(plane, tmp_path, lambda pool: pool.verify(NAME))
    again = await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME))
    assert again.digest == made.manifest.digest
    assert (await with_pool(plane, tmp_path, lambda pool: pool.verify(NAME))).digest == made.manifest.digest


async def test_cube_is_served_from_this_machine_when_the_grid_is_gone(made: Made, tmp_path: Path) -> None:
    async with running(tmp_path / "grid", tls=False, grid_key=KEY.public_key) as plane:
        await publish(plane, made.folder)
        await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME))
    cube = await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME))
    assert cube.attach(made.model).positions == made.manifest.token_count
    with pytest.raises(UnavailableError):
        await with_pool(plane, tmp_path, lambda pool: pool.pull("docs/other"))


async def test_pull_into_a_folder_makes_a_copy_of_its_own(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    await publish(plane, made.folder)
    cube = await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME, tmp_path / "mine" / "valves"))
    assert cube.folder == tmp_path / "mine" / "valves"
    (cube.folder / README_FILE).write_text("changed by its owner")
    await with_pool(plane, tmp_path, lambda pool: pool.verify(NAME))
    with pytest.raises(InvalidError, match="is there already"):
        await with_pool(plane, tmp_path, lambda pool: pool.pull(NAME, cube.folder))


async def test_two_cubes_share_what_they_have_in_common(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    await publish(plane, made.folder)
    folder = copy_of(made.folder, tmp_path / "second")
    second = write_cube(folder, replace(made.manifest, version="2.0.0", title="Second"), KEY)
    await publish(plane, folder, version="2.0.0")
    await with_pool(plane, tmp_path, lambda pool: pool.pull(f"{NAME}:1.0.0"))
    before = await with_pool(plane, tmp_path, lambda pool: pool.cache.used_bytes())
    await with_pool(plane, tmp_path, lambda pool: pool.pull(f"{NAME}:2.0.0"))
    after = await with_pool(plane, tmp_path, lambda pool: pool.cache.used_bytes())
    assert after - before < second.payload_bytes / 2
    freed = await with_pool(plane, tmp_path, lambda pool: pool.rm(f"{NAME}:1.0.0"))
    assert 0 < freed < made.manifest.payload_bytes / 2
    assert (await with_pool(plane, tmp_path, lambda pool: pool.verify(f"{NAME}:2.0.0"))).digest == second.digest


async def test_longest_unused_cube_makes_room(
    plane: DataPlane, made: Made, tmp_path: Path, clock: ManualClock
) -> None:
    limit_bytes = int(made.manifest.payload_bytes * 2.4)
    for number in range(3):
        folder = copy_of(made.folder, tmp_path / f"cube-{number}")
        chunk = made.manifest.chunks[0]
        path = folder / chunk.path
        chunks = []
        for chunk in made.manifest.chunks:
            path = folder / chunk.path
            path.write_bytes(path.read_bytes()[:-1] + bytes([number]))
            chunks.append(replace(chunk, digest=digest_of(path.read_bytes())))
        write_cube(folder, replace(made.manifest, chunks=tuple(chunks), name=f"docs/c{number}"), KEY)
        await publish(plane, folder, f"docs/c{number}")
    settings = {"limit_bytes": limit_bytes, "clock": clock}
    for name in ("docs/c0", "docs/c1", "docs/c0", "docs/c2"):
        clock.advance(timedelta(hours=1))
        await with_pool(plane, tmp_path, lambda pool, name=name: pool.pull(name), **settings)
    kept = await with_pool(plane, tmp_path, lambda pool: pool.ls(), **settings)
    assert [cube.names[-1].rpartition("/")[2] for cube in kept] == ["c0:latest", "c2:latest"]
    with pytest.raises(TooLargeError, match="raise the limit"):
        await with_pool(plane, tmp_path, lambda pool: pool.pull("docs/c1"), limit_bytes=1000, clock=clock)


async def test_what_is_not_there_and_what_is_no_cube_are_said_to_be_so(plane: DataPlane, tmp_path: Path) -> None:
    with pytest.raises(UnknownCubeError, match="docs/nothing"):
        await with_pool(plane, tmp_path, lambda pool: pool.pull("docs/nothing"))
    with pytest.raises(UnknownCubeError, match="not on this machine"):
        await with_pool(plane, tmp_path, lambda pool: pool.rm("docs/nothing"))
    (tmp_path / "note.txt").write_text("hello")
    await with_pool(
        plane,
        tmp_path,
        lambda pool: pool.push_folder("docs/note", "1", [tmp_path / "note.txt"], "application/vnd.test"),
        token=OPERATOR,
    )
    with pytest.raises(InvalidError, match=r"no cube but application/vnd\.test"):
        await with_pool(plane, tmp_path, lambda pool: pool.info("docs/note:1"))


async def test_model_is_pushed_once_and_a_stranger_may_not_push(
    plane: DataPlane, tmp_path: Path, tiny_model_folder: Path
) -> None:
    from memgrid.cube.identity import model_files

    def push(pool: Pool) -> tuple[Digest, int]:
        moved: list[int] = []
        files = model_files(tiny_model_folder)
        digest = pool.push_folder("models/tiny", "1.0", files, MODEL_ARTIFACT_TYPE, progress=moved.append)
        return digest, sum(moved)

    with pytest.raises(TokenRequiredError):
        await with_pool(plane, tmp_path, push)
    first = await with_pool(plane, tmp_path, push, token=OPERATOR)
    up_bytes = transferred_bytes(plane, "up", "models")
    assert up_bytes == first[1] + len(EMPTY_CONTENT)
    assert first[1] == sum(path.stat().st_size for path in model_files(tiny_model_folder))
    assert await with_pool(plane, tmp_path, push, token=OPERATOR) == first
    assert transferred_bytes(plane, "up", "models") == up_bytes
    stored = await plane.publishing.resolve("models/tiny:1.0")
    titles = {layer.title for layer in OciManifest.from_bytes(stored.content).layers}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= titles


@pytest.mark.parametrize("size_bytes", [0, 1, 100, (8 << 20) + 1])
async def test_blob_of_any_size_goes_up_and_comes_back(plane: DataPlane, tmp_path: Path, size_bytes: int) -> None:
    content = random.Random(size_bytes).randbytes(size_bytes)
    (tmp_path / "blob").write_bytes(content)
    digest = await with_pool(
        plane, tmp_path, lambda pool: pool.push_blob("docs/blob", tmp_path / "blob"), token=OPERATOR
    )
    assert digest == digest_of(content)
    assert plane.blobs.path_of(digest).read_bytes() == content


async def test_pinned_certificate_is_enough_and_its_lack_is_said(made: Made, tmp_path: Path) -> None:
    async with running(tmp_path / "grid", grid_key=KEY.public_key) as plane:
        await publish(plane, made.folder)
        pem = (tmp_path / "grid" / "test.crt").read_text()
        with pytest.raises(UntrustedGridError, match=fingerprint_of(pem)):
            await with_pool(plane, tmp_path, lambda pool: pool.info(NAME))

        def pull() -> MemCube:
            with Pool(f"{plane.url}#sha256={fingerprint_of(pem)}", cache=tmp_path / "cache") as pool:
                return pool.pull(NAME)

        assert (await asyncio.to_thread(pull)).digest == made.manifest.digest


async def test_line_is_measured_on_the_cube_itself(plane: DataPlane, made: Made, tmp_path: Path) -> None:
    await publish(plane, made.folder)
    rate = await with_pool(plane, tmp_path, lambda pool: pool.measure_line(NAME))
    info = (await with_pool(plane, tmp_path, lambda pool: pool.info(NAME))).info
    even = info.break_even(line_bytes_per_s=rate, compute_flops_per_s=1e9)
    assert even.pull_s == pytest.approx(info.bytes / rate) and even.compute_s == pytest.approx(info.saved_flops / 1e9)
    faster = info.break_even(line_bytes_per_s=even.line_needed_bytes_per_s * 1.01, compute_flops_per_s=1e9)
    assert faster.is_worth_pulling


def contents_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def transferred_bytes(plane: DataPlane, direction: str, repository_kind: str) -> float:
    """What the data plane says it moved."""
    labels = {"direction": direction, "repository_kind": repository_kind}
    value = plane.metrics.registry.get_sample_value("memgrid_transferred_bytes_total", labels)
    assert value is not None
    return value
