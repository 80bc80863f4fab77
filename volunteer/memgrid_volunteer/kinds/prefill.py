"""Compute the KV cache of one chunk of tokens.

Knows the maths and the files of a unit; knows neither leases nor network. Shapes: L layers, h KV heads,
p tokens of past, n new tokens, d head dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from memgrid.clock import Clock
from memgrid.digest import digest_of, token_ids
from memgrid.distill.prefill_replay import own_difference
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import KV_FILE, KV_FORMAT
from memgrid.kinds.sketch import sketch_file
from memgrid.specs import PrefillSpec
from memgrid.units import WorkFacts
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job
from memgrid_volunteer.kinds.models import facts_of, load_base
from memgrid_volunteer.numerics import TORCH_DTYPE, Device, resolve

LoadModel = Callable[[Path, torch.dtype, Device], Any]


class Prefill:
    """Runs prefill units on one device; `load` gives the model without its head, and keeps it for the next unit."""

    def __init__(self, device: Device, clock: Clock, *, load: LoadModel = load_base) -> None:
        self._device = device
        self._clock = clock
        self._load = load

    def run(self, job: Job) -> WorkFacts:
        """Write `kv.safetensors` and `sketch` into the job's output folder.

        Raises InvalidError when the inputs are not the spec's, ArithmeticError when the result is not finite or does
        not come out again: a window of it is computed twice, for machines that err now and then do not know it.
        """
        spec_bytes = (job.unit_dir / "spec.json").read_bytes()
        spec = PrefillSpec.from_bytes(spec_bytes)
        tokens = _read_tokens(job.unit_dir / "tokens.bin", spec)
        compute_dtype = resolve(spec.compute_dtype, self._device)
        model = self._load(job.model_dir, TORCH_DTYPE[compute_dtype], self._device)
        began_s = self._clock.monotonic_s()
        past_files = sorted((job.unit_dir / "past").glob("*.safetensors"))
        past = read_past(past_files, spec.start)
        pairs = prefill(model, tokens, past, TORCH_DTYPE[compute_dtype], self._device.torch_device)
        write_kv(job.out_dir / KV_FILE, tokens, pairs, TORCH_DTYPE[spec.store_dtype])
        sketch = sketch_file(job.out_dir / KV_FILE, spec.key)
        draw = hashlib.sha256(sketch).digest()
        if (found := own_difference(model, spec, tokens, past_files, job.out_dir / KV_FILE, draw)) is not None:
            raise ArithmeticError(f"this machine does not compute the same twice: {found}")
        (job.out_dir / SKETCH_FILE).write_bytes(sketch)
        return facts_of(
            self._device,
            compute_dtype,
            tokens=spec.token_count,
            compute_s=self._clock.monotonic_s() - began_s,
        )


Pair = tuple[torch.Tensor, torch.Tensor]


def prefill(
    model: Any, tokens: list[int], past: list[Pair], dtype: torch.dtype, device: torch.device
) -> Iterator[Pair]:
    """(K, V) [h, n, d] of each layer, for `tokens` that follow `past`, a (K, V) [h, p, d] a layer."""
    from transformers import DynamicCache

    # A plain cache, without the model's config: one that knows sliding windows would drop what left them.
    cache = DynamicCache()
    for layer, (k, v) in enumerate(past):
        cache.update(k[None].to(device, dtype), v[None].to(device, dtype), layer)
    start = past[0][0].shape[1] if past else 0
    ids = torch.tensor([tokens], device=device)
    positions = torch.arange(start, start + len(tokens), device=device)[None]
    with torch.inference_mode():
        model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
    for filled in cache.layers:
        yield filled.keys[0, :, start:], filled.values[0, :, start:]


def read_past(files: list[Path], start: int) -> list[Pair]:
    """(K, V) [h, start, d] of each layer, from the accepted chunks before this one, in order."""
    if not files:
        if start:
            raise InvalidError(f"unit starts at position {start}, but no past came with it")
        return []
    with ExitStack() as stack:
        chunks = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        layers = sum(1 for name in chunks[0].keys() if name.endswith(".k"))  # noqa: SIM118
        past = [
            (
                torch.cat([chunk.get_tensor(f"l{layer}.k") for chunk in chunks], dim=1),
                torch.cat([chunk.get_tensor(f"l{layer}.v") for chunk in chunks], dim=1),
            )
            for layer in range(layers)
        ]
    found = past[0][0].shape[1]
    if found != start:
        raise InvalidError(f"unit starts at position {start}, but its past holds {found} tokens")
    return past


def write_kv(path: Path, tokens: list[int], pairs: Iterator[Pair], dtype: torch.dtype) -> None:
    """Write the chunk file of a cube: equal numbers give equal bytes."""
    tensors = {"tokens": torch.tensor(tokens, dtype=torch.int32)}
    for layer, (k, v) in enumerate(pairs):
        tensors[f"l{layer}.k"] = k.to("cpu", dtype).contiguous()
        tensors[f"l{layer}.v"] = v.to("cpu", dtype).contiguous()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ArithmeticError("the result contains NaN or infinity")
    save_file(tensors, path, metadata={"format": KV_FORMAT})


def _read_tokens(path: Path, spec: PrefillSpec) -> list[int]:
    content = path.read_bytes()
    if digest_of(content) != spec.tokens:
        raise InvalidError("tokens.bin is not what the unit's spec names")
    tokens = token_ids(content)
    if len(tokens) != spec.token_count:
        raise InvalidError(f"the unit's spec says {spec.token_count} tokens, tokens.bin holds {len(tokens)}")
    return tokens
