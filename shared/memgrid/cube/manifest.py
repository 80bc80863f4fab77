"""memcube.json: what a cube is, for which model, from what, at what cost. Canonical, so its digest is the cube.

No time and no host stands here: the same text, model and recipe give the same bytes wherever they were computed, on
one numerics class. What happened on the way is told by the signed provenance.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest_checks import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    MANIFEST_FILE,
    PROVENANCE_FILE,
    REPORT_FILE,
    check_activation,
    check_files,
    check_parameter,
)
from memgrid.cube.oci import KV_TYPE, PROVENANCE_TYPE, README_TYPE, Descriptor
from memgrid.cube.parts import (
    Chunk,
    Cost,
    CubeKind,
    Layout,
    LayoutKind,
    Numerics,
    Parent,
    Quality,
    SourceText,
    Validation,
    Wrap,
    read_part,
    text,
    texts,
    whole_number,
)
from memgrid.digest import Digest, canonical_json, digest_of, parse_digest
from memgrid.errors import InvalidError
from memgrid.specs import AdapterSpec

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_FILE",
    "MANIFEST_FILE",
    "PROVENANCE_FILE",
    "REPORT_FILE",
    "ActivationManifest",
    "Chunk",
    "Cost",
    "CubeKind",
    "CubeManifest",
    "Layout",
    "LayoutKind",
    "Numerics",
    "ParameterManifest",
    "Parent",
    "Quality",
    "SourceText",
    "Validation",
    "Wrap",
]

CUBE_FORMAT = "memgrid.cube.v1"
README_FILE = "README.md"
MANIFEST_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeManifest:
    """What memcube.json says of a cube of any kind; each kind is a class below.

    `files` are the cube's files except those that a kind lists by itself and the provenance, which signs this
    manifest and so cannot stand in it.
    """

    kind: ClassVar[CubeKind]

    name: str
    version: str
    title: str
    licence: str
    base: ModelIdentity
    numerics: Numerics
    token_count: int
    """Of the text that the cube holds, or was trained on."""
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
        """What a model is given, without what is there for people."""
        return sum(file.size_bytes for file in self.payload())

    def payload(self) -> tuple[Descriptor, ...]:
        """The files that a model is given."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises InvalidError where parts of this kind do not go together."""
        raise NotImplementedError

    def listed(self) -> tuple[Descriptor, ...]:
        """Every file of the cube but the manifest and its provenance."""
        return self.files

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        # asdict would take mappings inside `base` apart, so that one is left to its own method.
        plain = {field.name: _jsonable(getattr(self, field.name)) for field in fields(self) if field.name != "base"}
        return canonical_json({
            "format": CUBE_FORMAT,
            **plain,
            "kind": self.kind,
            "cost": {**plain["cost"], "flops": str(self.cost.flops)},
            "base": {**self.base.to_json(), "digest": self.base.digest},
            "files": [file.to_json() for file in self.files],
        })  # fmt: skip

    @staticmethod
    def from_bytes(content: bytes) -> ActivationManifest | ParameterManifest:
        """Parse and check a manifest from outside; raises InvalidError naming the field."""
        if len(content) > MANIFEST_BYTES_MAX:
            raise InvalidError(f"{MANIFEST_FILE}: {len(content)} bytes, at most {MANIFEST_BYTES_MAX} are allowed")
        try:
            manifest = _parse(json.loads(content))
            if manifest.to_bytes() != content:
                raise InvalidError("not in canonical form, or with fields this version does not know")
            check_files(manifest)
            manifest.check()
        except InvalidError as error:
            raise InvalidError(f"{MANIFEST_FILE}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidError(f"{MANIFEST_FILE}: {type(error).__name__}: {error}"[:300]) from None
        return manifest

    def oci_layers(self, provenance: bytes) -> tuple[Descriptor, ...]:
        """The layers of the cube's OCI manifest: every file but memcube.json, which is its config."""
        own = len(self.files)
        signature = Descriptor.of(provenance, PROVENANCE_TYPE, PROVENANCE_FILE)
        return (*self.listed()[:own], signature, *self.listed()[own:])


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationManifest(CubeManifest):
    """A text as the KV cache that a model made of it."""

    kind: ClassVar[CubeKind] = CubeKind.ACTIVATION

    layout: Layout
    tokens: Digest
    chunks: tuple[Chunk, ...]

    def payload(self) -> tuple[Descriptor, ...]:
        return tuple(
            Descriptor(media_type=KV_TYPE, digest=chunk.digest, size_bytes=chunk.size_bytes, title=chunk.path)
            for chunk in self.chunks
        )

    def check(self) -> None:
        check_activation(self)

    def listed(self) -> tuple[Descriptor, ...]:
        return (*self.files, *self.payload())


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterManifest(CubeManifest):
    """A text as an adapter that was trained to know it; `terms` are its most telling words, for finding it."""

    kind: ClassVar[CubeKind] = CubeKind.PARAMETER

    adapter: AdapterSpec
    quality: Quality
    terms: tuple[str, ...]

    @property
    def compression(self) -> float:
        """How many times smaller the adapter is than the KV cache of the text, stored in the same dtype."""
        return self.base.geometry.kv_bytes(self.token_count, self.numerics.store_dtype) / self.payload_bytes

    def payload(self) -> tuple[Descriptor, ...]:
        return tuple(file for file in self.files if file.title == ADAPTER_FILE)

    def check(self) -> None:
        check_parameter(self)


def readme_descriptor(content: bytes) -> Descriptor:
    return Descriptor.of(content, README_TYPE, README_FILE)


def _jsonable(part: Any) -> Any:
    if isinstance(part, tuple):
        return [_jsonable(each) for each in part]
    if hasattr(part, "__dataclass_fields__"):
        return asdict(part)
    return part


def _parse(value: dict[str, Any]) -> ActivationManifest | ParameterManifest:
    if value.pop("format") != CUBE_FORMAT:
        raise InvalidError(f"expected format {CUBE_FORMAT}")
    kind = CubeKind(value.pop("kind"))
    if kind is CubeKind.ACTIVATION:
        return ActivationManifest(
            **_common(value),
            layout=read_part(Layout, value.pop("layout")),
            tokens=parse_digest(text(value.pop("tokens"))),
            chunks=tuple(read_part(Chunk, chunk) for chunk in value.pop("chunks")),
        )
    if kind is CubeKind.PARAMETER:
        return ParameterManifest(
            **_common(value),
            adapter=read_part(AdapterSpec, value.pop("adapter")),
            quality=read_part(Quality, value.pop("quality")),
            terms=texts(value.pop("terms")),
        )
    raise InvalidError(f"cubes of kind {kind} are not known to this version")


def _common(value: dict[str, Any]) -> dict[str, Any]:
    base = dict(value.pop("base"))
    identity_digest = base.pop("digest")
    identity = ModelIdentity.from_json(base)
    if identity.digest != identity_digest:
        raise InvalidError("base.digest does not belong to the base it stands in")
    return {
        "base": identity,
        "name": text(value.pop("name")),
        "version": text(value.pop("version")),
        "title": text(value.pop("title")),
        "licence": text(value.pop("licence")),
        "numerics": read_part(Numerics, value.pop("numerics")),
        "token_count": whole_number(value.pop("token_count")),
        "files": tuple(Descriptor.from_json(file) for file in value.pop("files")),
        "sources": tuple(read_part(SourceText, source) for source in value.pop("sources")),
        "lineage": tuple(read_part(Parent, parent) for parent in value.pop("lineage")),
        "cost": _cost(value.pop("cost")),
        "validation": read_part(Validation, value.pop("validation")),
    }


def _cost(value: Any) -> Cost:
    return read_part(Cost, {**value, "flops": int(text(value["flops"]))})
