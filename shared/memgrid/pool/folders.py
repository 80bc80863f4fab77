"""Push files as one OCI artefact: a layer a file, titled by its path."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from memgrid.cube.oci import FILE_TYPE, OCI_MANIFEST_TYPE, Descriptor, OciManifest, safe_path
from memgrid.digest import Digest, digest_of, digest_of_file
from memgrid.errors import InvalidError
from memgrid.pool.registry import Progress, Registry


def titled_files(source: Path | Sequence[Path] | Mapping[str, Path]) -> dict[str, Path]:
    """Files by the title they will have: paths inside a folder, names of single files, or as given."""
    if isinstance(source, Path):
        if not source.is_dir():
            raise InvalidError(f"{source}: no such folder")
        files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
    elif isinstance(source, Mapping):
        files = dict(source)
    else:
        files = {path.name: path for path in source}
        if len(files) != len(source):
            raise InvalidError("two files to push have the same name")
    if not files:
        raise InvalidError("nothing to push: no file there")
    for title, path in files.items():
        safe_path(title)
        if not path.is_file():
            raise InvalidError(f"{path}: no such file")
    return files


def push_bytes(registry: Registry, repository: str, content: bytes, progress: Progress) -> Digest:
    """Push content from memory as a blob."""
    digest = digest_of(content)
    registry.push_blob(repository, digest, len(content), lambda offset: io.BytesIO(content[offset:]), progress)
    return digest


def push_file(registry: Registry, repository: str, path: Path, progress: Progress) -> Descriptor:
    """Push a file as a blob, read as it goes."""
    digest, size_bytes = digest_of_file(path), path.stat().st_size

    def open_at(offset: int) -> BinaryIO:
        file = path.open("rb")
        file.seek(offset)
        return file

    registry.push_blob(repository, digest, size_bytes, open_at, progress)
    return Descriptor(media_type=FILE_TYPE, digest=digest, size_bytes=size_bytes)


def push_artifact(
    registry: Registry,
    repository: str,
    tag: str,
    files: Mapping[str, Path],
    *,
    artifact_type: str,
    config: bytes,
    config_type: str,
    annotations: Mapping[str, str],
    progress: Progress,
) -> Digest:
    """Push the files, then the manifest that names them; returns the manifest's digest."""
    push_bytes(registry, repository, config, lambda size_bytes: None)
    pushed = {title: push_file(registry, repository, path, progress) for title, path in sorted(files.items())}
    manifest = OciManifest(
        artifact_type=artifact_type,
        config=Descriptor.of(config, config_type),
        layers=tuple(
            Descriptor(media_type=FILE_TYPE, digest=blob.digest, size_bytes=blob.size_bytes, title=title)
            for title, blob in pushed.items()
        ),
        annotations=annotations,
    )
    return registry.push_manifest(repository, tag, manifest.to_bytes(), OCI_MANIFEST_TYPE)
