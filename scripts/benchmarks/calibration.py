"""What a calibration sees: honest answers turned down, cheats let pass, on texts that limits were not fitted to.

A case is a comparison of two sketches of one chunk: two honest ways to compute it, or a cheat and an honest way.
Every pair of ways, of each dtype that caches are stored in, counts once a chunk.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.cubes import MODEL
from benchmarks.report import Report, Row
from memgrid.clock import SystemClock
from memgrid_coordinator.heavy.calibration.planning import QUICK, Sizes
from memgrid_coordinator.heavy.calibration.report import write_report
from memgrid_coordinator.heavy.runner import InlineEngine
from memgrid_coordinator.services.calibrated import Calibrated, CalibrationAsked, report_order
from memgrid_coordinator.services.calibrating import Calibrating

SIZES = Sizes(chunks=33, tokens=256, cheat_stride=7, fit_share=0.36)
MODEL_VARIABLE, REPORT_VARIABLE, ONLY_VARIABLE = "MEMGRID_BENCH_MODEL", "MEMGRID_BENCH_REPORT", "MEMGRID_BENCH_ONLY"
"""Another model than SmolLM2; a folder for the whole reports; one of the two models, `real` or `tiny`."""


def run(console: Console, quick: bool) -> Report:
    only = os.environ.get(ONLY_VARIABLE, "")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = _tiny_model(Path(folder) / "tiny")
        models = {"real": Path(os.environ.get(MODEL_VARIABLE, MODEL)), "tiny": tiny}
        for name, model in models.items():
            if only in ("", name):
                rows.append(_measure(console, name, model, QUICK if quick else SIZES, Path(folder)))
    return Report(
        name="calibration",
        title="Honest variation rejected, cheats accepted, by limits fitted to other texts",
        columns={
            "model": lambda row: row["model"],
            "honest cases": lambda row: f"{row['honest_cases']:,}",
            "rejected": lambda row: str(row["rejected"]),
            "furthest": lambda row: f"{row['furthest']:.2f} of the limit",
            "cases with cheats": lambda row: f"{row['cheat_cases']:,}",
            "accepted": lambda row: str(row["accepted"]),
            "nearest cheat": lambda row: f"{row['nearest']:.2f} times it, {row['nearest_cheat']}",
            "not seen": lambda row: "; ".join(row["not_seen"]),
        },
        rows=rows,
        notes=("not seen: and not claimed to be; their cases are not counted.",),
    )


def _tiny_model(folder: Path) -> Path:
    """A random Llama of four layers, with heads as wide as real ones, so that sketches are as fine."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models import make_tokenizer

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:  # with the default spread every layer is nearly the identity
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _measure(console: Console, name: str, model: Path, sizes: Sizes, folder: Path) -> Row:
    with console.status(f"calibration: {name}") as status:
        found = asyncio.run(
            _calibrated(
                CalibrationAsked(model_folder=model, work_folder=folder, sizes=sizes, is_taught=False),
                lambda done, parts, what: status.update(f"calibration: {name}: {done} of {parts}, {what}"),
            )
        )
    if REPORT_VARIABLE in os.environ:
        target = Path(os.environ[REPORT_VARIABLE]) / name
        write_report(report_order(found, target, SystemClock().now()))
    return {"model": name, **_figures(found)}


async def _calibrated(asked: CalibrationAsked, progress: Any) -> Calibrated:
    engine = InlineEngine(processes=1)
    try:
        return await Calibrating(engine, progress).run(asked)
    finally:
        await engine.close(timedelta(0))


def _figures(found: Calibrated) -> Row:
    claimed = [(sight.smallest, sight.cheat) for row in found.rows.values() for sight in row.sights if sight.is_seen]
    nearest, cheat = min(claimed)
    return {
        "honest_cases": found.honest_cases,
        "rejected": found.rejected,
        "furthest": max(row.furthest for row in found.rows.values()),
        "cheat_cases": found.cheat_cases,
        "accepted": found.accepted,
        "nearest": nearest,
        "nearest_cheat": cheat,
        "not_seen": found.unseen_in_words(),
        "refusal": list(found.refusal()),
        "facts": json.loads(json.dumps(dataclasses.asdict(found.asked.sizes))),
    }
