"""Which model this is, to the bit: digests of weights, configuration, tokenizer and chat template. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from memgrid.cube.geometry import VOLATILE_KEYS, config_of, geometry_of, rope_of, sliding_window_of
from memgrid.digest import Digest, canonical_json, digest_of, parse_digest
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.tensorfile import TensorFile

JSON_BYTES_MAX = 256 << 20
_HASHING_THREADS = 4
_TEXT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Everything about a model that decides its KV caches; equal identities make interchangeable cubes.

    `weights` is a tree hash over the tensors as stored, so resharding or renaming files changes nothing. `config`
    keeps what can change the arithmetic, `rope` maps a layer type (or "all") to its rotary parameters.
    """

    name: str = field(compare=False)
    architecture: str
    weights: Digest
    tokenizer: Digest
    chat_template: Digest | None
    stored_dtype: str
    dtype_exceptions: Mapping[str, str]
    geometry: ModelGeometry
    rope: Mapping[str, Mapping[str, Any]]
    sliding_window: int | None
    config: Mapping[str, Any]

    @property
    def digest(self) -> Digest:
        """What a unit's spec calls its model: the identity without the name people gave it."""
        value = self.to_json()
        del value["name"]
        return digest_of(canonical_json(value))

    @property
    def config_digest(self) -> Digest:
        return digest_of(canonical_json(dict(self.config)))

    def to_json(self) -> dict[str, Any]:
        value = {each.name: getattr(self, each.name) for each in fields(self)}
        value["geometry"] = {each.name: getattr(self.geometry, each.name) for each in fields(ModelGeometry)}
        return value

    @staticmethod
    def from_json(value: Any) -> ModelIdentity:
        """Raises InvalidError naming the field."""
        try:
            given = dict(value)
            for name, kinds in _JSON_KINDS.items():
                if not isinstance(given[name], kinds):
                    raise InvalidError(f"model identity: {name}: unexpected {type(given[name]).__name__}")
            sizes = given.pop("geometry")
            if not all(type(size) in (int, bool) and size >= 0 for size in sizes.values()):
                raise InvalidError("model identity: geometry: expected sizes")
            for name in ("weights", "tokenizer", "chat_template"):
                if given[name] is not None:
                    _check_digest(name, given[name])
            identity = ModelIdentity(geometry=ModelGeometry(**sizes), **given)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InvalidError(f"model identity: {type(error).__name__}: {error}") from None
        return _with_a_digest(identity)


def _with_a_digest(identity: ModelIdentity) -> ModelIdentity:
    """Raises InvalidError for what canonical JSON can't hold: it would have no digest."""
    try:
        canonical_json(identity.to_json())
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"model identity: {type(error).__name__}: {error}") from None
    return identity


def _check_digest(name: str, value: str) -> None:
    try:
        parse_digest(value)
    except InvalidError as error:
        raise InvalidError(f"model identity: {name}: {error}") from None


_JSON_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "architecture": (str,),
    "weights": (str,),
    "tokenizer": (str,),
    "chat_template": (str, type(None)),
    "stored_dtype": (str,),
    "dtype_exceptions": (dict,),
    "geometry": (dict,),
    "rope": (dict,),
    "sliding_window": (int, type(None)),
    "config": (dict,),
}


def identity_of_folder(folder: Path, name: str | None = None) -> ModelIdentity:
    """The identity of a model kept as config.json, *.safetensors and tokenizer.json.

    Raises InvalidError when the folder holds no such model.
    """
    if not folder.is_dir():
        raise InvalidError(f"model {folder}: no such folder")
    raw_config = read_json(folder / "config.json")
    config = config_of(raw_config)
    tied = bool(config.get("tie_word_embeddings", raw_config.get("tie_word_embeddings", True)))
    leaves = _leaves(folder, tied)
    stored_dtype, exceptions = _stored_dtypes(leaves)
    geometry = geometry_of(config, parameters=sum(leaf.parameters for leaf in leaves), tied=tied)
    architectures = raw_config.get("architectures") or ["unknown"]
    if not isinstance(architectures, list):
        raise InvalidError(f"config.json: architectures: expected a list, found {architectures!r}"[:200])
    identity = ModelIdentity(
        name=name or folder.resolve().name,
        architecture=str(architectures[0]),
        weights=tree_digest(leaves),
        tokenizer=tokenizer_digest(read_json(folder / "tokenizer.json")),
        chat_template=_chat_template(folder),
        stored_dtype=stored_dtype,
        dtype_exceptions=exceptions,
        geometry=geometry,
        rope=rope_of(config, geometry.head_dim),
        sliding_window=sliding_window_of(config),
        config={key: value for key, value in config.items() if key not in VOLATILE_KEYS},
    )
    return _with_a_digest(identity)


def model_files(folder: Path) -> list[Path]:
    """The files of a model that travel: safetensors, configuration, tokenizer. Never code, never pickle."""
    weights = _weight_files(folder)
    texts = [folder / name for name in (*_TEXT_FILES, _INDEX) if (folder / name).is_file()]
    return sorted([*texts, *weights])


def is_model_file(name: str) -> bool:
    """Whether a file of this name may be part of a model in the pool.

    >>> [is_model_file(name) for name in ("model-00001-of-00002.safetensors", "modeling.py", "../config.json")]
    [True, False, False]
    """
    plain = "/" not in name and "\\" not in name and not name.startswith(".")
    return plain and (name in _TEXT_FILES or name == _INDEX or name.endswith(".safetensors"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLeaf:
    """One tensor of the weights: `dtype` as safetensors calls it, `sha256` of its bytes in hex."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def parameters(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


def tree_digest(leaves: list[WeightLeaf]) -> Digest:
    """One digest for all tensors, whatever files they lie in."""
    ordered = sorted(leaves, key=lambda leaf: leaf.name)
    return digest_of(canonical_json([[leaf.name, leaf.dtype, list(leaf.shape), leaf.sha256] for leaf in ordered]))


def tokenizer_digest(content: Mapping[str, Any]) -> Digest:
    """The digest of what a tokenizer.json does; truncation and padding belong to a call, not to it."""
    lasting = {key: value for key, value in content.items() if key not in ("truncation", "padding", "version")}
    # RFC 8785 in pure Python takes seconds for a large vocabulary.
    written = json.dumps(lasting, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return digest_of(written.encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder; raises InvalidError naming the file."""
    if not path.is_file():
        raise InvalidError(f"model {path.parent.name}: {path.name} is missing")
    if path.stat().st_size > JSON_BYTES_MAX:
        raise InvalidError(f"model {path.parent.name}: {path.name} is larger than {JSON_BYTES_MAX} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"model {path.parent.name}: {path.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidError(f"model {path.parent.name}: {path.name} is not a JSON object")
    return value


def _leaves(folder: Path, tied: bool) -> list[WeightLeaf]:
    leaves: dict[str, WeightLeaf] = {}
    for path in _weight_files(folder):
        for leaf in _leaves_of_file(path):
            if leaf.name in leaves:
                raise InvalidError(f"model {folder.name}: tensor {leaf.name} occurs in two files")
            # Tied, it is the embedding table under a second name, which some writers leave out.
            if not (tied and leaf.name == "lm_head.weight"):
                leaves[leaf.name] = leaf
    return list(leaves.values())


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        names = set(read_json(index).get("weight_map", {}).values())
        if not names or not all(isinstance(name, str) and is_model_file(name) for name in names):
            raise InvalidError(f"model {folder.name}: {_INDEX}: expected plain names of safetensors files")
        paths = sorted(folder / name for name in names)
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InvalidError(f"model {folder.name}: no *.safetensors file; other formats are not read")
    for path in paths:
        if not path.is_file():
            raise InvalidError(f"model {folder.name}: {path.name} is missing")
    return paths


def _leaves_of_file(path: Path) -> list[WeightLeaf]:
    file = TensorFile.open(path)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = pool.map(lambda name: sha256(file.raw(name)).hexdigest(), file.tensors)
        return [
            WeightLeaf(name=info.name, dtype=info.dtype, shape=info.shape, sha256=digest)
            for info, digest in zip(file.tensors.values(), digests, strict=True)
        ]


def _stored_dtypes(leaves: list[WeightLeaf]) -> tuple[str, dict[str, str]]:
    """The dtype of most parameters, and the tensors stored in another one."""
    counts: dict[str, int] = {}
    for leaf in leaves:
        counts[leaf.dtype] = counts.get(leaf.dtype, 0) + leaf.parameters
    most = max(sorted(counts), key=lambda dtype: counts[dtype])
    return most, {leaf.name: leaf.dtype for leaf in leaves if leaf.dtype != most}


def _chat_template(folder: Path) -> Digest | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return digest_of(path.read_text(encoding="utf-8").encode())
    settings = folder / "tokenizer_config.json"
    template = read_json(settings).get("chat_template") if settings.is_file() else None
    return digest_of(template.encode()) if isinstance(template, str) else None
