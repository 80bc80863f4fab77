"""The OCI side of a cube: media types, descriptors and the image manifest that lists a cube's files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memgrid.digest import Digest, canonical_json, digest_of, parse_digest
from memgrid.errors import InvalidError

OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_CONTENT = b"{}"
CUBE_ARTIFACT_TYPE = "application/vnd.memgrid.cube.v1"
MODEL_ARTIFACT_TYPE = "application/vnd.memgrid.model.v1"
CUBE_CONFIG_TYPE = "application/vnd.memgrid.cube.config.v1+json"
KV_TYPE = "application/vnd.memgrid.kv.v1+safetensors"
ADAPTER_TYPE = "application/vnd.memgrid.adapter.v1+safetensors"
ADAPTER_CONFIG_TYPE = "application/vnd.memgrid.adapter.config.v1+json"
REPORT_TYPE = "application/vnd.memgrid.report.v1+json"
PLOT_TYPE = "image/svg+xml"
PROVENANCE_TYPE = "application/vnd.in-toto+json"
README_TYPE = "text/markdown"
FILE_TYPE = "application/octet-stream"
TITLE = "org.opencontainers.image.title"

MANIFEST_BYTES_MAX = 4 << 20
"""What OCI registries promise to take."""
_LAYERS_MAX = 10_000
_SIZE_MAX = 2**53 - 1
"""Numbers of JSON are exact up to here only."""
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+")
_REPOSITORY_CHARACTERS_MAX = 255
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Content by address: type, digest, size, and the path it has in its folder (the title annotation)."""

    media_type: str
    digest: Digest
    size_bytes: int
    title: str | None = None

    @staticmethod
    def of(content: bytes, media_type: str, title: str | None = None) -> Descriptor:
        return Descriptor(media_type=media_type, digest=digest_of(content), size_bytes=len(content), title=title)

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        return value if self.title is None else {**value, "annotations": {TITLE: self.title}}

    @staticmethod
    def from_json(value: Any) -> Descriptor:
        """Raises InvalidError; a title that could leave its folder is refused here."""
        if not isinstance(value, dict):
            raise InvalidError("OCI descriptor: expected an object")
        media_type, size = value.get("mediaType"), value.get("size")
        if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
            raise InvalidError(f"OCI descriptor: bad mediaType {str(media_type)[:80]!r}")
        if type(size) is not int or not 0 <= size <= _SIZE_MAX:
            raise InvalidError(f"OCI descriptor: bad size {str(size)[:40]!r}")
        annotations = value.get("annotations") or {}
        if not isinstance(annotations, dict):
            raise InvalidError("OCI descriptor: annotations: expected an object")
        title = annotations.get(TITLE)
        return Descriptor(
            media_type=media_type,
            digest=parse_digest(str(value.get("digest"))),
            size_bytes=size,
            title=None if title is None else safe_path(title),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OciManifest:
    """An OCI image manifest (v1.1) used as an artefact: one layer a file."""

    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """What a pull transfers when nothing is there yet."""
        return self.config.size_bytes + sum(layer.size_bytes for layer in self.layers)

    def to_bytes(self) -> bytes:
        """Canonical JSON, so that equal artefacts have equal digests."""
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST_TYPE,
            "artifactType": self.artifact_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return canonical_json(value)

    @staticmethod
    def from_bytes(content: bytes) -> OciManifest:
        """Parse a manifest from outside; raises InvalidError."""
        if len(content) > MANIFEST_BYTES_MAX:
            raise InvalidError(f"OCI manifest: {len(content)} bytes, at most {MANIFEST_BYTES_MAX} are allowed")
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InvalidError(f"OCI manifest: not JSON: {error}") from None
        if not isinstance(value, dict) or value.get("schemaVersion") != 2:
            raise InvalidError("OCI manifest: expected schemaVersion 2")
        if value.get("mediaType", OCI_MANIFEST_TYPE) != OCI_MANIFEST_TYPE:
            raise InvalidError(f"OCI manifest: expected {OCI_MANIFEST_TYPE}, found {str(value['mediaType'])[:80]!r}")
        layers = value.get("layers")
        if not isinstance(layers, list) or len(layers) > _LAYERS_MAX:
            raise InvalidError(f"OCI manifest: layers: expected a list of at most {_LAYERS_MAX}")
        config = Descriptor.from_json(value.get("config"))
        annotations = value.get("annotations") or {}
        if not isinstance(annotations, dict) or not all(map(is_text, (*annotations, *annotations.values()))):
            raise InvalidError("OCI manifest: annotations: expected text values")
        artifact_type = value.get("artifactType") or config.media_type
        if not isinstance(artifact_type, str) or not _MEDIA_TYPE.fullmatch(artifact_type):
            raise InvalidError(f"OCI manifest: bad artifactType {str(artifact_type)[:80]!r}")
        return OciManifest(
            artifact_type=artifact_type,
            config=config,
            layers=_without_doubles(tuple(Descriptor.from_json(layer) for layer in layers)),
            annotations=annotations,
        )


def is_repository(text: str) -> bool:
    """Whether a text is a repository's name as OCI allows it, with a namespace before it.

    >>> is_repository("peps/pep-0008"), is_repository("../etc")
    (True, False)
    """
    return len(text) <= _REPOSITORY_CHARACTERS_MAX and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether a text is a tag as OCI allows it."""
    return _TAG.fullmatch(text) is not None


def safe_path(title: object) -> str:
    """A path from outside that stays inside its folder on every system; raises InvalidError.

    >>> safe_path("kv/0000.safetensors")
    'kv/0000.safetensors'
    >>> safe_path("../key")
    Traceback (most recent call last):
    ...
    memgrid.errors.InvalidError: unsafe file name '../key': expected plain names joined by /
    """
    if isinstance(title, str) and len(title) <= 512 and all(_SEGMENT.fullmatch(part) for part in title.split("/")):
        return title
    raise InvalidError(f"unsafe file name {str(title)[:80]!r}: expected plain names joined by /")


def is_text(value: object) -> bool:
    """JSON may hold halves of characters, which nothing can be written with."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value


def _without_doubles(layers: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
    """Two layers of one title would overwrite each other; on some systems case does not tell them apart."""
    titles = [layer.title.lower() for layer in layers if layer.title is not None]
    if len(set(titles)) != len(titles):
        raise InvalidError("OCI manifest: two layers have the same title")
    return layers
