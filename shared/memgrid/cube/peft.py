"""Adapters as PEFT writes and reads them: from a training state to a folder's two files. No torch, no peft.

Knows the two layouts (CARTRIDGE and LORA of PEFT 0.21) and nothing of training. A folder with these two files loads
with `PeftModel.from_pretrained(model, folder)`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgrid.cube.identity import ModelIdentity
from memgrid.errors import InvalidError
from memgrid.kinds.lowrank import features_in, seeded_a
from memgrid.kinds.prefill import TENSOR_DTYPE
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import AdapterKind, AdapterSpec
from memgrid.units import StoreDtype

PREFIX_TENSOR = "prompt_embeddings"
_LORA_B = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,200})\.lora_B\.weight")
_HEADER_ALIGNMENT = 8
_BF16_HALF, _BF16_BITS = 0x7FFF, 16


def adapter_files(
    state: Path, adapter: AdapterSpec, base: ModelIdentity, store_dtype: StoreDtype
) -> tuple[bytes, bytes]:
    """adapter_config.json and adapter_model.safetensors of a training state; the same state, the same bytes.

    The state holds an adapter's parameters in float32 under PEFT's names, beside the optimiser's, which stay behind.
    With a `frozen_a_seed` LoRA's A is drawn here. Raises InvalidError naming the tensor that is missing, of another
    shape, or not finite once stored.
    """
    file = TensorFile.open(state)
    tensors = _prefix(file, adapter, base) if adapter.kind is AdapterKind.PREFIX else _lora(file, adapter, base)
    return adapter_config(adapter, base), safetensors_bytes(tensors, store_dtype)


def adapter_config(adapter: AdapterSpec, base: ModelIdentity) -> bytes:
    """The content of adapter_config.json."""
    config: dict[str, Any] = {
        "base_model_name_or_path": base.name,
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
    }
    if adapter.kind is AdapterKind.PREFIX:
        geometry = base.geometry
        config |= {
            "peft_type": "CARTRIDGE",
            "num_virtual_tokens": adapter.virtual_tokens,
            "num_frozen_tokens": adapter.frozen_tokens,
            "num_layers": geometry.layers,
            # PEFT means the heads of the cache here, which grouped-query attention has fewer of.
            "num_attention_heads": geometry.kv_heads,
            "token_dim": geometry.kv_heads * geometry.head_dim,
            "num_transformer_submodules": 1,
        }
    else:
        config |= {
            "peft_type": "LORA",
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "target_modules": list(adapter.targets),
        }
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def prefix_shape(adapter: AdapterSpec, base: ModelIdentity) -> tuple[int, int]:
    """What `prompt_embeddings` is: [virtual tokens, layers * 2 * kv_heads * head_dim], keys before values."""
    geometry = base.geometry
    return adapter.virtual_tokens, geometry.layers * 2 * geometry.kv_heads * geometry.head_dim


def safetensors_bytes(tensors: Mapping[str, npt.NDArray[np.float32]], store_dtype: StoreDtype) -> bytes:
    """Tensors in one safetensors file, rounded to the nearest number of the dtype; names are sorted.

    Written here since the library's numpy side knows no bfloat16, and its order of tensors is its own.

    >>> file = TensorFile.of_bytes(safetensors_bytes({"x": np.float32([1, 1.00390625])}, StoreDtype.BFLOAT16))
    >>> file.float32("x").tolist()
    [1.0, 1.0]
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    contents, position = [], 0
    for name in sorted(tensors):
        content = _stored(name, tensors[name], store_dtype)
        header[name] = {
            "dtype": TENSOR_DTYPE[store_dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [position, position + len(content)],
        }
        contents.append(content)
        position += len(content)
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % _HEADER_ALIGNMENT)
    return b"".join([struct.pack("<Q", len(written)), written, *contents])


def _prefix(file: TensorFile, adapter: AdapterSpec, base: ModelIdentity) -> dict[str, npt.NDArray[np.float32]]:
    return {PREFIX_TENSOR: _tensor(file, PREFIX_TENSOR, prefix_shape(adapter, base))}


def _lora(file: TensorFile, adapter: AdapterSpec, base: ModelIdentity) -> dict[str, npt.NDArray[np.float32]]:
    modules = sorted(match[1] for name in file.tensors if (match := _LORA_B.fullmatch(name)))
    found = {module.rpartition(".")[2] for module in modules}
    if found != set(adapter.targets):
        raise InvalidError(f"state: expected LoRA of {', '.join(adapter.targets)}, found {', '.join(sorted(found))}")
    tensors = {}
    for module in modules:
        name_a, name_b = (f"base_model.model.{module}.lora_{half}.weight" for half in "AB")
        tensors[name_b] = _tensor(file, name_b, (None, adapter.rank))
        if adapter.frozen_a_seed is None:
            tensors[name_a] = _tensor(file, name_a, (adapter.rank, None))
        else:
            tensors[name_a] = seeded_a(adapter.frozen_a_seed, module, adapter.rank, features_in(module, base))
    return tensors


def _tensor(file: TensorFile, name: str, shape: tuple[int | None, int | None]) -> npt.NDArray[np.float32]:
    info = file.tensors.get(name)
    if info is None:
        raise InvalidError(f"state: {name} is missing")
    fits = len(info.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, info.shape, strict=True)
    )
    if info.dtype != "F32" or not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise InvalidError(f"state: {name}: expected F32 of {wanted}, found {info.dtype} of {list(info.shape)}")
    return file.float32(name)


def _stored(name: str, tensor: npt.NDArray[np.float32], store_dtype: StoreDtype) -> bytes:
    if not np.isfinite(tensor).all():
        raise InvalidError(f"{name}: contains NaN or infinity")
    match store_dtype:
        case StoreDtype.FLOAT32:
            return tensor.astype("<f4").tobytes()
        case StoreDtype.FLOAT16:
            with np.errstate(over="ignore"):
                half = tensor.astype("<f2")
            if not np.isfinite(half).all():
                raise InvalidError(f"{name}: does not fit into float16")
            return half.tobytes()
    bits = np.ascontiguousarray(tensor, "<f4").view("<u4").astype(np.uint64)
    # To the nearest, ties to even: what torch does.
    rounded = (bits + _BF16_HALF + ((bits >> _BF16_BITS) & 1)) >> _BF16_BITS
    if bool(((rounded & 0x7F80) == 0x7F80).any()):
        raise InvalidError(f"{name}: does not fit into bfloat16")
    return rounded.astype("<u2").tobytes()
