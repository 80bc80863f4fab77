"""memcube.json: what a cube is, for which model, from what, at what cost. Canonical, so its digest is the cube.

Nothing measured and no time stands here: the same text, model and recipe give the same bytes wherever they were
computed. What happened on the way is told by the signed provenance.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.oci import KV_TYPE, PROVENANCE_TYPE, README_TYPE, Descriptor, is_repository, is_tag, safe_path
from memgrid.cube.parts import (
    Chunk,
    Cost,
    CubeKind,
    Layout,
    LayoutKind,
    Numerics,
    Parent,
    SourceText,
    Validation,
    Wrap,
    read_part,
    text,
    whole_number,
)
from memgrid.digest import Digest, canonical_json, digest_of, parse_digest
from memgrid.errors import InvalidError

__all__ = [
    "Chunk",
    "Cost",
    "CubeKind",
    "CubeManifest",
    "Layout",
    "LayoutKind",
    "Numerics",
    "Parent",
    "SourceText",
    "Validation",
    "Wrap",
]

CUBE_FORMAT = "memgrid.cube.v1"
MANIFEST_FILE = "memcube.json"
PROVENANCE_FILE = "memcube.intoto.jsonl"
README_FILE = "README.md"
MANIFEST_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeManifest:
    """The whole of memcube.json.

    `files` are the cube's other files except the provenance, which signs this manifest and so cannot stand in it.
    """

    kind: CubeKind
    name: str
    version: str
    title: str
    licence: str
    base: ModelIdentity
    layout: Layout
    numerics: Numerics
    token_count: int
    tokens: Digest
    chunks: tuple[Chunk, ...]
    files: tuple[Descriptor, ...]
    sources: tuple[SourceText, ...]
    lineage: tuple[Parent, ...]
    cost: Cost
    validation: Validation

    @property
    def digest(self) -> Digest:
        """The cube's identity."""
        return digest_of(self.to_bytes())

    @property
    def payload_bytes(self) -> int:
        return sum(chunk.size_bytes for chunk in self.chunks)

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        value = {key: part for key, part in _plain(self).items() if key not in ("base", "files")}
        return canonical_json({
            "format": CUBE_FORMAT,
            **value,
            "cost": {**value["cost"], "flops": str(self.cost.flops)},
            "base": {**self.base.to_json(), "digest": self.base.digest},
            "files": [file.to_json() for file in self.files],
        })  # fmt: skip

    @staticmethod
    def from_bytes(content: bytes) -> CubeManifest:
        """Parse and check a manifest from outside; raises InvalidError naming the field."""
        if len(content) > MANIFEST_BYTES_MAX:
            raise InvalidError(f"{MANIFEST_FILE}: {len(content)} bytes, at most {MANIFEST_BYTES_MAX} are allowed")
        try:
            manifest = _parse(json.loads(content))
        except InvalidError as error:
            raise InvalidError(f"{MANIFEST_FILE}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidError(f"{MANIFEST_FILE}: {type(error).__name__}: {error}"[:300]) from None
        if manifest.to_bytes() != content:
            raise InvalidError(f"{MANIFEST_FILE}: not in canonical form, or with fields this version does not know")
        _check(manifest)
        return manifest

    def oci_layers(self, provenance: bytes) -> tuple[Descriptor, ...]:
        """The layers of the cube's OCI manifest: every file but memcube.json, which is its config."""
        chunks = (
            Descriptor(media_type=KV_TYPE, digest=chunk.digest, size_bytes=chunk.size_bytes, title=chunk.path)
            for chunk in self.chunks
        )
        return (*self.files, Descriptor.of(provenance, PROVENANCE_TYPE, PROVENANCE_FILE), *chunks)


def readme_descriptor(content: bytes) -> Descriptor:
    return Descriptor.of(content, README_TYPE, README_FILE)


def _plain(manifest: CubeManifest) -> dict[str, Any]:
    """The fields as JSON; asdict would take mappings inside `base` apart, so that one is left to its own method."""
    shallow = {name: getattr(manifest, name) for name in manifest.__slots__ if name not in ("base", "files")}
    return {name: _jsonable(part) for name, part in shallow.items()}


def _jsonable(part: Any) -> Any:
    if isinstance(part, tuple):
        return [_jsonable(each) for each in part]
    if hasattr(part, "__dataclass_fields__"):
        return asdict(part)
    return part


def _parse(value: dict[str, Any]) -> CubeManifest:
    if value.pop("format") != CUBE_FORMAT:
        raise InvalidError(f"expected format {CUBE_FORMAT}")
    base = dict(value.pop("base"))
    identity_digest = base.pop("digest")
    identity = ModelIdentity.from_json(base)
    if identity.digest != identity_digest:
        raise InvalidError("base.digest does not belong to the base it stands in")
    return CubeManifest(
        base=identity,
        kind=CubeKind(value.pop("kind")),
        name=text(value.pop("name")),
        version=text(value.pop("version")),
        title=text(value.pop("title")),
        licence=text(value.pop("licence")),
        layout=read_part(Layout, value.pop("layout")),
        numerics=read_part(Numerics, value.pop("numerics")),
        token_count=whole_number(value.pop("token_count")),
        tokens=parse_digest(text(value.pop("tokens"))),
        chunks=tuple(read_part(Chunk, chunk) for chunk in value.pop("chunks")),
        files=tuple(Descriptor.from_json(file) for file in value.pop("files")),
        sources=tuple(read_part(SourceText, source) for source in value.pop("sources")),
        lineage=tuple(read_part(Parent, parent) for parent in value.pop("lineage")),
        cost=_cost(value.pop("cost")),
        validation=read_part(Validation, value.pop("validation")),
    )


def _cost(value: Any) -> Cost:
    return read_part(Cost, {**value, "flops": int(text(value["flops"]))})


def _check(manifest: CubeManifest) -> None:
    """What the parts must have to do with each other."""
    paths = [safe_path(chunk.path) for chunk in manifest.chunks] + [file.title or "" for file in manifest.files]
    lowered = [path.lower() for path in paths]
    # On some systems case does not tell two files apart.
    if len(set(lowered)) != len(lowered) or {MANIFEST_FILE, PROVENANCE_FILE, ""} & set(lowered):
        raise InvalidError(f"{MANIFEST_FILE}: a file is listed twice, has no path, or is the manifest itself")
    if not (is_repository(manifest.name) and is_tag(manifest.version)):
        raise InvalidError(f"{MANIFEST_FILE}: expected name namespace/name and a version that can be a tag")
    if not manifest.chunks:
        raise InvalidError(f"{MANIFEST_FILE}: chunks: an {manifest.kind} cube needs at least one")
    if manifest.layout.kind is LayoutKind.CHAINED:
        _check_chained(manifest)
    else:
        _check_independent(manifest)


def _check_chained(manifest: CubeManifest) -> None:
    ends = [0] + [chunk.start + chunk.token_count for chunk in manifest.chunks]
    if [chunk.start for chunk in manifest.chunks] != ends[:-1] or ends[-1] != manifest.token_count:
        raise InvalidError(f"{MANIFEST_FILE}: chunks do not follow one another up to token {manifest.token_count}")
    if any(later <= earlier for earlier, later in pairwise(ends)) or manifest.layout.sink_tokens:
        raise InvalidError(f"{MANIFEST_FILE}: a chained cube has no empty chunk and no sink")


def _check_independent(manifest: CubeManifest) -> None:
    sink = manifest.layout.sink_tokens
    own = [chunk.token_count - sink for chunk in manifest.chunks]
    if any(chunk.start for chunk in manifest.chunks) or min(own) < 1 or sink + sum(own) != manifest.token_count:
        raise InvalidError(f"{MANIFEST_FILE}: independent chunks start at 0 and share the sink of {sink} tokens")
