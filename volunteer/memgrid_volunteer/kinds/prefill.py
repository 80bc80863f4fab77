"""Compute the KV cache of one chunk of tokens.

Knows the maths and the files of a unit; knows neither leases nor network. Shapes: L layers, h KV heads,
p tokens of past, n new tokens, d head dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from memgrid.clock import Clock
from memgrid.digest import digest_of, token_ids
from memgrid.distill.prefill import Filling, Pair, flops_per_token, read_some, tokens_at_once
from memgrid.distill.prefill_replay import own_difference
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import KV_FILE, KV_FORMAT
from memgrid.kinds.sketch import sketch_file
from memgrid.specs import PrefillSpec
from memgrid.units import WorkFacts
from memgrid_volunteer.kinds.committed import COMMIT_EVERY_S, Checkpoint
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job
from memgrid_volunteer.kinds.kv_parts import part_bytes, read_parts, size_bytes
from memgrid_volunteer.kinds.models import Fitted, facts_of, load_base
from memgrid_volunteer.kinds.pace import Pace
from memgrid_volunteer.kinds.telling import Tell, Telling, say_nothing
from memgrid_volunteer.numerics import TORCH_DTYPE, Device, resolve

LoadModel = Callable[[Path, torch.dtype, Device], Any]
_LEAST_TOKENS = 16
"""Read at once when memory runs out: last bits change with it, as tolerances allow, but the unit gets done."""


@dataclass(slots=True, kw_only=True)
class _Reading:
    """A unit at work; so many of its tokens are `committed`."""

    model: Any
    tokens: list[int]
    filling: Filling
    checkpoint: Checkpoint
    committed: int


class Prefill:
    """Runs prefill units on one device; `load` gives the model without its head, and keeps it for the next unit."""

    def __init__(
        self,
        device: Device,
        clock: Clock,
        tell: Tell = say_nothing,
        pace: Pace | None = None,
        *,
        commit_every_s: float = COMMIT_EVERY_S,
        load: LoadModel = load_base,
        at_once: Callable[[int, str], int] = tokens_at_once,
        least_tokens: int = _LEAST_TOKENS,
    ) -> None:
        self._device = device
        self._tell = Telling(tell, clock)
        self._pace = pace or Pace(clock)
        self._load = load
        self._at_once = at_once
        self._least_tokens = least_tokens
        self._commit_every_s = commit_every_s
        self._fitted = Fitted()

    def run(self, job: Job) -> WorkFacts:
        """Write `kv.safetensors` and `sketch` into the job's output folder, going on from what lies there.

        Raises InvalidError when the inputs are not the spec's, ArithmeticError when the result is not finite or does
        not come out again: a window of it is computed twice, for machines that err now and then do not know it.
        """
        spec_bytes = (job.unit_dir / "spec.json").read_bytes()
        spec = PrefillSpec.from_bytes(spec_bytes)
        tokens = _read_tokens(job.unit_dir / "tokens.bin", spec)
        resolved = resolve(spec.compute_dtype, self._device)
        checkpoint = Checkpoint(
            job.out_dir, spec.key, wanted=spec.compute_dtype, resolved=resolved, every_s=self._commit_every_s
        )
        dtype = TORCH_DTYPE[checkpoint.compute_dtype]
        model = self._load(job.model_dir, dtype, self._device)
        past_files = sorted((job.unit_dir / "past").glob("*.safetensors"))
        past = read_past(past_files, spec.start)
        read = read_parts(checkpoint, model, dtype, len(tokens))
        filling = Filling(past, len(tokens), read)
        at_once = self._at_once(flops_per_token(model), self._device.facts.kind)
        if read:
            self._tell.say_it_goes_on(filling.done / len(tokens))
        self._pace.begin(checkpoint.computed_s if read else 0.0)
        unit = _Reading(model=model, tokens=tokens, filling=filling, checkpoint=checkpoint, committed=filling.done)
        self._fitted.run(str(job.model_dir), lambda count: self._fill(unit, count), at_once, least=self._least_tokens)
        write_kv(job.out_dir / KV_FILE, tokens, filling.new(), TORCH_DTYPE[spec.store_dtype])
        sketch = sketch_file(job.out_dir / KV_FILE, spec.key)
        draw = hashlib.sha256(sketch).digest()
        if (found := own_difference(model, spec, tokens, past_files, job.out_dir / KV_FILE, draw)) is not None:
            raise ArithmeticError(f"this machine does not compute the same twice: {found}")
        (job.out_dir / SKETCH_FILE).write_bytes(sketch)
        checkpoint.clear()
        return facts_of(self._device, checkpoint.compute_dtype, tokens=spec.token_count, compute_s=self._pace.spent_s)

    def _fill(self, unit: _Reading, at_once: int) -> None:
        while unit.filling.done < len(unit.tokens):
            read_some(unit.model, unit.tokens, unit.filling, at_once)
            self._device.finish()
            computed_s = self._pace.computed_s
            done, count = unit.filling.done, len(unit.tokens)
            is_due = done < count and unit.checkpoint.is_due(computed_s, size_bytes(unit.filling, unit.committed))
            if is_due:
                content = part_bytes(unit.filling, unit.committed)
                if unit.checkpoint.add_part(content, computed_s, done=done / count):
                    unit.committed = done
            self._tell.say(done / count, f"{done} of {count} tokens", tokens=done, computed_s=computed_s)
            self._pace.rest()


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
