"""LoRA's frozen A, drawn from a published seed by integers alone, so that it is equal to the bit everywhere."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import numpy.typing as npt

from memgrid.cube.identity import ModelIdentity
from memgrid.errors import InvalidError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def seeded_a(seed: int, module: str, rank: int, features: int) -> npt.NDArray[np.float32]:
    """A [rank, features] of a module such as `model.layers.0.self_attn.q_proj`, uniform within ±1/sqrt(features).

    The range is that of PEFT's own start (Kaiming, a = sqrt 5). Element i is splitmix64 of a key and i
    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

    >>> a = seeded_a(1, "model.layers.0.self_attn.q_proj", 2, 64)
    >>> a.shape, bool((abs(a) <= 0.125).all()), round(float(a[0, 0]), 6)
    ((2, 64), True, -0.035192)
    """
    key = int.from_bytes(sha256(f"memgrid lora A {seed} {module}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        counter = np.arange(1, rank * features + 1, dtype=np.uint64) * _GOLDEN + np.uint64(key)
        mixed = (counter ^ (counter >> np.uint64(30))) * _MIX_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
        mixed ^= mixed >> np.uint64(31)
    unit = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    a: npt.NDArray[np.float32] = ((2 * unit - 1) / np.sqrt(np.float64(features))).astype(np.float32)
    return a.reshape(rank, features)


def features_in(module: str, base: ModelIdentity) -> int:
    """How many numbers a projection reads, by its name; raises InvalidError for one that is not known."""
    geometry, projection = base.geometry, module.rpartition(".")[2]
    match projection:
        case "q_proj" | "k_proj" | "v_proj" | "qkv_proj" | "gate_proj" | "up_proj" | "gate_up_proj":
            return geometry.hidden
        case "o_proj":
            return geometry.heads * geometry.head_dim
        case "down_proj" if isinstance(base.config.get("intermediate_size"), int):
            return int(base.config["intermediate_size"])
    raise InvalidError(f"{module}: how many numbers it reads is not known, which a seeded A needs")
