"""What the parts of a cube's manifest must have to do with each other."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from memgrid.cube.oci import is_repository, is_tag, safe_path
from memgrid.cube.parts import LayoutKind
from memgrid.errors import InvalidError
from memgrid.specs import AdapterKind, AdapterSpec

if TYPE_CHECKING:
    from memgrid.cube.manifest import ActivationManifest, CubeManifest, ParameterManifest

MANIFEST_FILE = "memcube.json"
PROVENANCE_FILE = "memcube.intoto.jsonl"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
REPORT_FILE = "eval/report.json"
TERMS_MAX = 64
TERM_CHARACTERS_MAX = 64
VIRTUAL_TOKENS_MAX = 1 << 20


def check_files(manifest: CubeManifest) -> None:
    """Name, version and files; raises InvalidError."""
    paths = [safe_path(file.title) if file.title else "" for file in manifest.listed()]
    lowered = [path.lower() for path in paths]
    # On some systems case does not tell two files apart.
    if len(set(lowered)) != len(lowered) or {MANIFEST_FILE, PROVENANCE_FILE, ""} & set(lowered):
        raise InvalidError("a file is listed twice, has no path, or is the manifest itself")
    if not (is_repository(manifest.name) and is_tag(manifest.version)):
        raise InvalidError("expected name namespace/name and a version that can be a tag")


def check_activation(manifest: ActivationManifest) -> None:
    if not manifest.chunks:
        raise InvalidError("chunks: an activation cube needs at least one")
    if manifest.layout.kind is LayoutKind.CHAINED:
        _check_chained(manifest)
    else:
        _check_independent(manifest)


def _check_chained(manifest: ActivationManifest) -> None:
    ends = [0] + [chunk.start + chunk.token_count for chunk in manifest.chunks]
    if [chunk.start for chunk in manifest.chunks] != ends[:-1] or ends[-1] != manifest.token_count:
        raise InvalidError(f"chunks do not follow one another up to token {manifest.token_count}")
    if any(later <= earlier for earlier, later in pairwise(ends)) or manifest.layout.sink_tokens:
        raise InvalidError("a chained cube has no empty chunk and no sink")


def _check_independent(manifest: ActivationManifest) -> None:
    sink = manifest.layout.sink_tokens
    own = [chunk.token_count - sink for chunk in manifest.chunks]
    if any(chunk.start for chunk in manifest.chunks) or min(own) < 1 or sink + sum(own) != manifest.token_count:
        raise InvalidError(f"independent chunks start at 0 and share the sink of {sink} tokens")


def check_parameter(manifest: ParameterManifest) -> None:
    titles = {file.title for file in manifest.files}
    missing = [name for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE, REPORT_FILE) if name not in titles]
    if missing:
        raise InvalidError(f"files: a parameter cube needs {', '.join(missing)}")
    check_adapter(manifest.adapter)
    if not manifest.quality.items or not manifest.quality.tokens or not manifest.token_count:
        raise InvalidError("quality: expected items and tokens that it was measured on")
    if len(manifest.terms) > TERMS_MAX or not all(0 < len(term) <= TERM_CHARACTERS_MAX for term in manifest.terms):
        raise InvalidError(f"terms: expected at most {TERMS_MAX} words of at most {TERM_CHARACTERS_MAX} characters")


def check_adapter(adapter: AdapterSpec) -> None:
    """Raises InvalidError for a shape that no adapter has."""
    if adapter.kind is AdapterKind.PREFIX:
        is_whole = 0 <= adapter.frozen_tokens < adapter.virtual_tokens <= VIRTUAL_TOKENS_MAX
        if not is_whole or adapter.rank or adapter.alpha or adapter.targets or adapter.frozen_a_seed is not None:
            raise InvalidError("adapter: expected a prefix of some virtual tokens, fewer of them frozen, and no more")
    elif adapter.virtual_tokens or adapter.frozen_tokens or not (adapter.rank and adapter.alpha and adapter.targets):
        raise InvalidError("adapter: expected LoRA with rank, alpha and targets, and no virtual tokens")
