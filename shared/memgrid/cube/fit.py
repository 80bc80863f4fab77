"""Whether a loaded model is the one a cube was computed with; names the field that differs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from memgrid.cube.caches import keeps_attention_only
from memgrid.cube.geometry import config_of, geometry_of, rope_of, sliding_window_of
from memgrid.cube.identity import ModelIdentity, WeightLeaf, tree_digest
from memgrid.cube.rerotate import inverse_frequencies
from memgrid.digest import Digest, canonical_json
from memgrid.errors import DoesNotFitError, InvalidError

if TYPE_CHECKING:
    import torch

_HASHING_THREADS = 4
_FREQUENCY_TOLERANCE = 1e-5

_known: WeakKeyDictionary[Any, tuple[object, Digest]] = WeakKeyDictionary()
"""Models already hashed: hashing takes a second a gigabyte, and a model is attached to more than once."""


def check_fits(identity: ModelIdentity, model: Any) -> None:
    """Raises DoesNotFitError unless `model` computes what the identified model computes.

    Checked: architecture, sizes, every configuration key that changes the arithmetic, rotary embedding (its
    parameters and the buffers in use), sliding window, and last the weights, to the bit, in their stored dtype.
    """
    if type(model).__name__ != identity.architecture:
        raise _differs("architecture", identity.architecture, type(model).__name__)
    if not keeps_attention_only(model.config):
        raise DoesNotFitError("layer_types: the model has layers without keys and values")
    config = config_of(model.config.to_dict())
    _check_sizes(identity, config)
    for key, expected in identity.config.items():
        if key in config and _plain(config[key]) != _plain(expected):
            raise _differs(f"config.{key}", expected, config[key])
    rope = rope_of(config, identity.geometry.head_dim)
    if _plain(rope) != _plain(identity.rope):
        raise _differs("rope", dict(identity.rope), rope)
    if sliding_window_of(config) != identity.sliding_window:
        raise _differs("sliding_window", identity.sliding_window, sliding_window_of(config))
    _check_rotary_buffers(identity, model)
    weights = weights_of_model(model, identity)
    if weights != identity.weights:
        raise DoesNotFitError(
            f"weights: the cube was computed with {identity.weights}, this model has {weights}; load"
            f" {identity.name} as {_torch_dtype_name(identity.stored_dtype)} or float32, unquantised, no adapter"
        )


def weights_of_model(model: Any, identity: ModelIdentity) -> Digest:
    """The weights digest of a loaded model, its tensors taken back to the dtypes they were stored in."""
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (identity.geometry.tied_embeddings and name == "lm_head.weight")
    }
    stored = (identity.stored_dtype, tuple(sorted(identity.dtype_exceptions.items())))
    fingerprint = (stored, tuple((tensor.data_ptr(), _version(tensor)) for tensor in tensors.values()))
    known = _known.get(model)
    if known is not None and known[0] == fingerprint:
        return known[1]
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        leaves = list(pool.map(lambda name: _leaf(name, tensors[name], identity), tensors))
    digest = tree_digest(leaves)
    _known[model] = (fingerprint, digest)
    return digest


def _leaf(name: str, tensor: torch.Tensor, identity: ModelIdentity) -> WeightLeaf:
    import torch

    dtype = identity.dtype_exceptions.get(name, identity.stored_dtype)
    stored = tensor.detach().to(dtype=_torch_dtype(dtype)).contiguous().cpu()
    content = stored.reshape(-1).view(torch.uint8).numpy()
    return WeightLeaf(name=name, dtype=dtype, shape=tuple(tensor.shape), sha256=sha256(content).hexdigest())


def _check_sizes(identity: ModelIdentity, config: Mapping[str, Any]) -> None:
    expected = identity.geometry
    try:
        found = geometry_of(config, parameters=expected.parameters, tied=expected.tied_embeddings)
    except InvalidError as error:
        raise DoesNotFitError(str(error)) from None
    for size in ("layers", "heads", "kv_heads", "head_dim", "hidden", "vocab"):
        if getattr(found, size) != getattr(expected, size):
            raise _differs(size, getattr(expected, size), getattr(found, size))


def _check_rotary_buffers(identity: ModelIdentity, model: Any) -> None:
    """`model.to(bfloat16)` also rounds the rotary frequencies, which moves keys by percents far into a text."""
    rope = identity.rope.get("all")
    if rope is None or rope["type"] not in ("default", "linear", "llama3", "yarn"):
        return
    expected = inverse_frequencies(rope)
    for name, buffer in model.named_buffers():
        if not name.endswith("rotary_emb.inv_freq") or buffer.shape != expected.shape:
            continue
        worst = ((buffer.detach().float().cpu() - expected).abs() / expected).max().item()
        if not worst <= _FREQUENCY_TOLERANCE:
            raise DoesNotFitError(
                f"rope: the model's {name} is off by {worst:.0e}; load the model with dtype=… instead of"
                " converting it with .to(…), which rounds these frequencies"
            )


def _version(tensor: torch.Tensor) -> int:
    try:
        return int(tensor._version)
    except RuntimeError:  # tensors made in inference mode keep no count of changes
        return -1


def _plain(value: Any) -> bytes:
    """Values as JSON sees them: tuples are lists, 10000.0 is 10000."""
    return canonical_json(value)


def _differs(field: str, expected: object, found: object) -> DoesNotFitError:
    return DoesNotFitError(f"{field}: the cube was computed with {expected!s:.200}, this model has {found!s:.200}")


def _torch_dtype_name(stored: str) -> str:
    return {"BF16": "bfloat16", "F16": "float16", "F64": "float64"}.get(stored, "float32")


def _torch_dtype(stored: str) -> torch.dtype:
    import torch

    names = {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
        "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    }  # fmt: skip
    if stored not in names:
        raise DoesNotFitError(f"weights: tensors stored as {stored} can't be compared")
    dtype: torch.dtype = getattr(torch, names[stored])
    return dtype
