"""Read OCI manifests that somebody pushed: strictly, and without trusting a number in them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from memgrid.cube.oci import (
    MANIFEST_BYTES_MAX,
    MODEL_ARTIFACT_TYPE,
    OCI_INDEX_TYPE,
    OCI_MANIFEST_TYPE,
    Descriptor,
    is_text,
)
from memgrid.digest import Digest
from memgrid.errors import InvalidError, TooLargeError

_DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_INDEX_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
_MODEL_FILE = re.compile(
    r"config\.json|generation_config\.json|[\w.-]+\.safetensors|[\w.-]+\.safetensors\.index\.json"
    r"|tokenizer\.(?:json|model)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(?:json|txt)|merges\.txt|chat_template\.(?:jinja|json)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a pushed manifest says. `blobs` must be in the store, `manifests` in the same repository."""

    media_type: str
    artifact_type: str
    blobs: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    subject: Digest | None
    annotations: dict[str, str]


def parse_manifest(content: bytes, content_type: str) -> Manifest:
    """Parse what was pushed as `content_type`; raises InvalidError naming the field, TooLargeError."""
    if len(content) > MANIFEST_BYTES_MAX:
        raise TooLargeError(f"manifest: {len(content)} bytes, at most {MANIFEST_BYTES_MAX} are allowed")
    value = _object(_json(content), "manifest")
    if value.get("schemaVersion") != 2:
        raise InvalidError(f"manifest: schemaVersion: expected 2, found {value.get('schemaVersion')!r}")
    media_type = value.get("mediaType", content_type)
    if media_type != content_type:
        raise InvalidError(f"manifest: mediaType: expected {content_type} as pushed, found {str(media_type)[:80]!r}")
    if media_type in (OCI_MANIFEST_TYPE, _DOCKER_MANIFEST_TYPE):
        blobs = (_descriptor(value.get("config"), "config"), *_descriptors(value, "layers"))
        manifests: tuple[Descriptor, ...] = ()
        artifact_type = _media_type(value.get("artifactType", blobs[0].media_type), "artifactType")
    elif media_type in (OCI_INDEX_TYPE, _DOCKER_INDEX_TYPE):
        blobs, manifests = (), _descriptors(value, "manifests")
        artifact_type = _media_type(value["artifactType"], "artifactType") if "artifactType" in value else ""
    else:
        raise InvalidError(f"manifest: mediaType: {str(media_type)[:80]!r} is no OCI manifest or index")
    return Manifest(
        media_type=media_type,
        artifact_type=artifact_type,
        blobs=blobs,
        manifests=manifests,
        subject=_descriptor(value["subject"], "subject").digest if "subject" in value else None,
        annotations=_annotations(value, "manifest"),
    )


def model_files(manifest: Manifest) -> dict[str, Descriptor]:
    """The files of a model, by name; raises InvalidError when they are not those of a safe model.

    Only weights as safetensors, configuration and tokenizer: nothing that a loader would execute or unpickle.
    """
    if manifest.artifact_type != MODEL_ARTIFACT_TYPE:
        raise InvalidError(f"expected a model ({MODEL_ARTIFACT_TYPE}), found {manifest.artifact_type}")
    files = {blob.title: blob for blob in manifest.blobs[1:] if blob.title is not None}
    if len(files) != len(manifest.blobs) - 1:
        raise InvalidError("model: two files have one name, or none")
    for name in files:
        if not _MODEL_FILE.fullmatch(name):
            raise InvalidError(f"model: {name[:80]!r} is not a file a model may have; weights travel as safetensors")
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise InvalidError("model: expected config.json and at least one .safetensors file")
    return {name: files[name] for name in sorted(files)}


def _json(content: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return value

    try:
        return json.loads(content.decode(), parse_constant=refuse, object_pairs_hook=once)
    except RecursionError:
        raise InvalidError("manifest: nested too deeply") from None
    except ValueError as error:
        raise InvalidError(f"manifest: not JSON: {error}") from None


def _descriptors(value: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
    entries = value.get(key)
    if not isinstance(entries, list):
        raise InvalidError(f"manifest: {key}: expected a list")
    return tuple(_descriptor(entry, f"{key}[{index}]") for index, entry in enumerate(entries))


def _descriptor(value: Any, where: str) -> Descriptor:
    try:
        return Descriptor.from_json(value)
    except InvalidError as error:
        raise InvalidError(f"manifest: {where}: {error}") from None


def _annotations(value: dict[str, Any], where: str) -> dict[str, str]:
    entries = _object(value.get("annotations") or {}, f"{where}.annotations")
    return {_text(key, where): _text(entry, f"{where}.annotations[{key[:40]!r}]") for key, entry in entries.items()}


def _media_type(value: Any, where: str) -> str:
    if not _MEDIA_TYPE.fullmatch(_text(value, where)):
        raise InvalidError(f"manifest: {where}: {value[:80]!r} is no media type")
    return str(value)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidError(f"manifest: {where}: expected an object")
    return value


def _text(value: Any, where: str) -> str:
    if not is_text(value):
        raise InvalidError(f"manifest: {where}: expected text")
    return str(value)
