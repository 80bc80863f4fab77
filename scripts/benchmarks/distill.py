"""What distilling a text gives and costs: share of the gap closed, memory, seconds; by the start alone and trained.

Each text is talked about by the model, some of the talk is held out, the rest is trained on. The gap is that between
the model without the text and the model that has read it, in NLL of held-out answers; a cube closes a share of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.distilling import (
    LORA,
    PREFIX,
    TEXTS,
    Stopwatch,
    Studied,
    base,
    model,
    quality,
    started,
    studied,
    train_spec,
)
from benchmarks.report import Report, Row
from memgrid.campaign_distill import Start
from memgrid.cube.parts import Quality
from memgrid.distill.batches import conversations_of
from memgrid.distill.state import TrainState, read_state
from memgrid.distill.training import make_course, train
from memgrid.kinds.shard import read_shard
from memgrid.specs import AdapterSpec, TrainSpec
from memgrid.text import bytes_text, seconds_text
from memgrid.units import StoreDtype

TRAIN, HELD_OUT = 128, 104
STEPS = {"prefix": 24, "lora": 24}
LEARNING_RATE = {"prefix": 0.005, "lora": 0.005}
OTHER_STARTS = (Start.FIRST_TOKENS, Start.SAMPLED)


def run(console: Console, quick: bool) -> Report:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in TEXTS[:1] if quick else TEXTS:
            with console.status(f"distill: {path.stem}: conversations"):
                text = studied(path, train=16 if quick else TRAIN, held_out=16 if quick else HELD_OUT)
            for kind, shape in (("prefix", PREFIX.shape), ("lora", LORA.shape)):
                with console.status(f"distill: {path.stem}: {kind}"):
                    rows.append(_measure(text, kind, shape, Path(folder), 4 if quick else STEPS[kind]))
    return Report(
        name="distill",
        title=f"Distilling a text, SmolLM2-135M in float32, {torch.get_num_threads()} threads",
        columns={
            "text": lambda row: f"{row['text']}, {row['tokens']} tokens",
            "adapter": lambda row: row["adapter"],
            "smaller than the KV": lambda row: f"{row['smaller']:.1f}×",
            "NLL, none": lambda row: f"{row['quality']['nll_none']:.3f}",
            "with text": lambda row: f"{row['quality']['nll_text']:.3f}",
            "with cube": lambda row: f"{row['quality']['nll_cube']:.3f}",
            "gap closed": _percent(lambda row: row["quality"]["gap_closed"]),
            "by the start alone": _percent(lambda row: row["start"]["gap_closed"]),
            "items": lambda row: str(row["quality"]["items"]),
            "study": lambda row: seconds_text(row["study"]["cpu_s"]),
            "start": lambda row: seconds_text(row["start"]["cpu_s"]),
            "train": lambda row: seconds_text(row["train"]["cpu_s"]),
        },
        rows=rows,
        notes=(
            "Processor seconds: two free cores take half as long. Study is that of training and of held-out talk.",
            "Published in bfloat16; memory is that of the text's KV cache in bfloat16 to the adapter file.",
        ),
    )


def _measure(text: Studied, kind: str, shape: Callable[[int], AdapterSpec], folder: Path, steps: int) -> Row:
    adapter = shape(len(text.tokens))
    start_path = folder / f"{text.name}-{kind}.safetensors"
    start_time = started(text, adapter, Start.COMPACTED, start_path)
    start = read_state(start_path)
    scored = quality(text, adapter, start, folder)[0]
    spec = train_spec(
        text, adapter, start_path, stop_step=steps, total_steps=steps, learning_rate=LEARNING_RATE[kind]
    )
    state, losses, watch = trained(text, spec, start)
    reached, size_bytes = quality(text, adapter, state, folder)
    kv_bytes = base().geometry.kv_bytes(len(text.tokens), StoreDtype.BFLOAT16)
    return {
        "text": text.name,
        "tokens": len(text.tokens),
        "adapter": kind if kind == "lora" else f"prefix of {adapter.virtual_tokens}",
        "bytes": size_bytes,
        "kv": bytes_text(kv_bytes),
        "smaller": kv_bytes / size_bytes,
        "study": text.time.to_json(),
        "start": {**start_time.to_json(), "gap_closed": scored.gap_closed},
        "other_starts": _other_starts(text, adapter, folder) if kind == "prefix" else {},
        "train": {**watch.to_json(), "steps": steps, "losses": losses},
        "quality": reached.to_json(),
    }


def trained(text: Studied, spec: TrainSpec, start: TrainState) -> tuple[TrainState, list[float], Stopwatch]:
    """The whole of a training on one host, its losses, and how long it took."""
    watch, ready = Stopwatch(), model()
    course = make_course(spec, conversations_of([read_shard(path) for path in text.train], text.frame), text.frame)
    with watch.running():
        state, trace = train(ready, spec, start, course)
    return state, [round(entry.loss, 4) for entry in trace], watch


def _other_starts(text: Studied, adapter: AdapterSpec, folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for start in OTHER_STARTS:
        started(text, adapter, start, folder / "other.safetensors")
        scored: Quality = quality(text, adapter, read_state(folder / "other.safetensors"), folder)[0]
        found[start.value] = scored.gap_closed
    return found


def _percent(share: Callable[[Row], float]) -> Callable[[Row], Any]:
    return lambda row: f"{100 * share(row):.0f} %"
