"""Four prefixes, each of its own text, attached together: what each loses, trained alone or among the others.

Joined as a reader joins them: one sink, then the tokens of one prefix after the other, keys turned to where they
stand. Trained among others, each row has some of the other prefixes, as they started, attached beside its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cubes import ROOT
from benchmarks.distilling import (
    PREFIX,
    TEXTS,
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
from memgrid.cube.geometry import rope_of
from memgrid.cube.parts import Quality
from memgrid.cube.rerotate import inverse_frequencies, rerotate
from memgrid.digest import digest_of_file
from memgrid.distill.adapters import PREFIX_TENSOR, load_adapter, prefix_pairs
from memgrid.distill.batches import conversations_of
from memgrid.distill.mixing import Mixer
from memgrid.distill.starts import prefix_of
from memgrid.distill.state import Array, TrainState, cold_state, read_state
from memgrid.distill.training import make_course, train
from memgrid.kinds.shard import read_shard
from memgrid.specs import AdapterKind, AdapterSpec

FOURTH = ROOT / "scripts" / "demonstration" / "texts" / "skerrow.md"
TRAIN, HELD_OUT, STEPS, LEARNING_RATE = 64, 64, 12, 0.005
SHARE = 0.5


def run(console: Console, quick: bool) -> Report:
    paths = [*TEXTS, FOURTH][: 2 if quick else 4]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("compose: conversations"):
            texts = [
                studied(path, train=16 if quick else TRAIN, held_out=16 if quick else HELD_OUT) for path in paths
            ]
        starts = [folder / f"start-{text.name}.safetensors" for text in texts]
        for text, path in zip(texts, starts, strict=True):
            started(text, PREFIX.shape(len(text.tokens)), Start.COMPACTED, path)
        steps = 2 if quick else STEPS
        rows = []
        for label, share in (("as started", None), ("trained alone", 0.0), ("trained among the others", SHARE)):
            with console.status(f"compose: {label}"):
                states = [
                    read_state(start)
                    if share is None
                    else _trained(text, start, [each for each in starts if each != start], share, steps)
                    for text, start in zip(texts, starts, strict=True)
                ]
                rows += [_measure(label, texts, states, number, folder) for number in range(len(texts))]
    return Report(
        name="distill_compose",
        title=f"{len(paths)} prefixes attached together, SmolLM2-135M, {torch.get_num_threads()} threads",
        columns={
            "prefixes": lambda row: row["how"],
            "text": lambda row: row["text"],
            "gap closed alone": lambda row: f"{100 * row['alone']['gap_closed']:.0f} %",
            "together": lambda row: f"{100 * row['together']['gap_closed']:.0f} %",
            "points lost": lambda row: f"{row['points_lost']:.1f}",
            "tokens right, alone": lambda row: f"{100 * row['alone']['correct_cube']:.1f} %",
            "right, together": lambda row: f"{100 * row['together']['correct_cube']:.1f} %",
        },
        rows=rows,
        notes=("Each text's held-out conversations are scored with its own prefix, then with all of them attached.",),
    )


def _trained(text: Studied, start: Path, others: Sequence[Path], share: float, steps: int) -> TrainState:
    adapter, ready = PREFIX.shape(len(text.tokens)), model()
    spec = train_spec(
        text,
        adapter,
        start,
        stop_step=steps,
        total_steps=steps,
        learning_rate=LEARNING_RATE,
        distractors=tuple(digest_of_file(path) for path in others) if share else (),
        distractor_share=share,
    )
    mixer = None
    if share:
        beside = [load_adapter(path, _prefix(read_state(path)), ready) for path in others]
        mixer = Mixer(spec, beside, ready)
    conversations = conversations_of([read_shard(path) for path in text.train], text.frame)
    course = make_course(spec, conversations, text.frame, mixer)
    return train(ready, spec, read_state(start), course)[0]


def _measure(how: str, texts: Sequence[Studied], states: Sequence[TrainState], number: int, folder: Path) -> Row:
    text = texts[number]
    alone, _ = quality(text, _prefix(states[number]), states[number], folder)
    together = _together(text, states, folder)
    return {
        "how": how,
        "text": text.name,
        "alone": alone.to_json(),
        "together": together.to_json(),
        "points_lost": 100 * (alone.gap_closed - together.gap_closed),
    }


def _together(text: Studied, states: Sequence[TrainState], folder: Path) -> Quality:
    joined = cold_state({PREFIX_TENSOR: _joined(states)})
    return quality(text, _prefix(joined), joined, folder)[0]


def _joined(states: Sequence[TrainState]) -> Array:
    """One prefix of all: the first one's sink, then everybody's other tokens [1 + sum(p_i - 1), L * 2 * h * d]."""
    ready = model()
    frequencies = inverse_frequencies(rope_of(ready.config.to_dict(), base().geometry.head_dim)["all"])
    every = [prefix_pairs(torch.from_numpy(state.parameters[PREFIX_TENSOR].copy()), ready) for state in states]
    pairs = []
    for layer in range(base().geometry.layers):
        sink_k, sink_v = (half[:, :, :1] for half in every[0][layer])
        keys, values, position = [sink_k], [sink_v], 1
        for one in every:
            k, v = one[layer]
            keys.append(rerotate(k[:, :, 1:], position - 1, frequencies))
            values.append(v[:, :, 1:])
            position += k.shape[2] - 1
        pairs.append((torch.cat(keys, dim=2), torch.cat(values, dim=2)))
    return prefix_of(pairs)


def _prefix(state: TrainState) -> AdapterSpec:
    tokens = state.parameters[PREFIX_TENSOR].shape[0]
    return AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=tokens, frozen_tokens=1)
