"""What checking a unit costs the grid, against what producing it cost the host, for each kind of a distillation.

Both are timed by the real code on one machine, one after the other, as processor seconds. The checks are those that
the coordinator's engine runs: `memgrid.distill.audit`, with a draw of its own for each repetition.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cubes import MODEL
from benchmarks.distilling import (
    PREFIX,
    SEED,
    TEXTS,
    Stopwatch,
    Studied,
    base,
    evaluate_inputs,
    evaluate_spec,
    model,
    started,
    studied,
    study_spec,
    train_spec,
)
from benchmarks.report import Report, Row
from memgrid.campaign_distill import Start, Training
from memgrid.cube.peft import adapter_files
from memgrid.digest import digest_of, token_bytes
from memgrid.distill.adapters import load_adapter
from memgrid.distill.audit import audit
from memgrid.distill.batches import conversations_of
from memgrid.distill.evaluate import evaluate
from memgrid.distill.state import TrainState, read_state, write_state
from memgrid.distill.study import study
from memgrid.distill.training import make_course, train
from memgrid.kinds.evaluate import ADAPTER_FILE, SCORES_FILE, read_items, scores_bytes
from memgrid.kinds.frame import FRAME_FILE
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.registry import kind_of
from memgrid.kinds.shard import SHARD_FILE, read_shard, write_shard
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.kinds.trace import TRACE_FILE, StepTrace, trace_bytes
from memgrid.kinds.train import STATE_FILE, committed_name, shard_name
from memgrid.specs import Purpose, Spec
from memgrid.text import seconds_text
from memgrid.units import ComputeDtype, StoreDtype

CONVERSATIONS, ITEMS = 32, 32
STEPS, SEGMENT_STEPS = Training().steps_per_unit, Training().segment_steps
DRAWS = 3


def run(console: Console, quick: bool) -> Report:
    count = 8 if quick else CONVERSATIONS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("checks: conversations"):
            text = studied(TEXTS[1], train=16 if quick else 64, held_out=count)
        with console.status("checks: study"):
            rows = [_study(text, folder, count)]
        with console.status("checks: train"):
            rows.append(_train(text, folder, 4 if quick else STEPS))
        with console.status("checks: evaluate"):
            rows.append(_evaluate(text, folder))
    return Report(
        name="distill_checks",
        title=f"Checking against producing, SmolLM2-135M in float32, {torch.get_num_threads()} threads",
        columns={
            "kind": lambda row: row["kind"],
            "producing": lambda row: seconds_text(row["producing"]["cpu_s"]),
            "checking, median": lambda row: seconds_text(row["checking_cpu_s"]),
            "share": lambda row: f"{row['share']:.3f}",
            "by arithmetic": lambda row: f"{row['flops_share']:.3f}",
            "aim": lambda row: f"≤ {row['aim']}",
        },
        rows=rows,
        notes=(
            f"{DRAWS} draws each; the arithmetic is the check's own count against the unit's price.",
            "Evaluation is made by two hosts and compared; replaying a few items comes on top.",
        ),
    )


def _study(text: Studied, folder: Path, count: int) -> Row:
    # Conversations that no other benchmark has made, so that they are made here.
    spec = study_spec(text.frame, text.tokens, Purpose.TRAIN, 10_000, count)
    watch, ready = Stopwatch(), model()
    with watch.running():
        shard = study(ready, spec, text.frame, list(text.tokens))
    write_shard(folder / SHARD_FILE, shard)
    (folder / TOKENS_FILE).write_bytes(token_bytes(text.tokens))
    inputs = {FRAME_FILE: text.frame_path, TOKENS_FILE: folder / TOKENS_FILE}
    return _row("study", spec, watch, inputs, {SHARD_FILE: folder / SHARD_FILE}, 0.1)


def _train(text: Studied, folder: Path, steps: int) -> Row:
    adapter = PREFIX.shape(len(text.tokens))
    start = folder / "start.safetensors"
    started(text, adapter, Start.FIRST_TOKENS, start)
    spec = train_spec(text, adapter, start, stop_step=steps, total_steps=steps, segment_steps=SEGMENT_STEPS)
    files: dict[str, Path] = {}

    def commit(state: TrainState, trace: tuple[StepTrace, ...]) -> None:
        name = STATE_FILE if state.step == steps else committed_name(len(files) + 1)
        files[name] = folder / name
        write_state(files[name], state)

    course = make_course(spec, conversations_of([read_shard(each) for each in text.train], text.frame), text.frame)
    watch, ready = Stopwatch(), model()
    with watch.running():
        _, trace = train(ready, spec, read_state(start), course, on_segment=commit)
    files[TRACE_FILE] = folder / TRACE_FILE
    files[TRACE_FILE].write_bytes(trace_bytes(trace))
    inputs = {FRAME_FILE: text.frame_path, STATE_FILE: start}
    inputs |= {shard_name(number): path for number, path in enumerate(text.train)}
    return _row("train", spec, watch, inputs, files, 0.1)


def _evaluate(text: Studied, folder: Path) -> Row:
    adapter = PREFIX.shape(len(text.tokens))
    published = folder / ADAPTER_FILE
    _, content = adapter_files(folder / "start.safetensors", adapter, base(), StoreDtype.BFLOAT16)
    published.write_bytes(content)
    spec = replace(evaluate_spec(text, adapter, published), items=min(ITEMS, text.items))
    inputs = evaluate_inputs(text) | {ADAPTER_FILE: published}
    watch, ready = Stopwatch(), model()
    with watch.running():
        attached = load_adapter(published, adapter, ready)
        scores = evaluate(ready, text.frame, read_items(spec, inputs), attached)
    (folder / SCORES_FILE).write_bytes(scores_bytes(scores))
    return _row("evaluate", spec, watch, inputs, {SCORES_FILE: folder / SCORES_FILE}, 1.0)


def _row(
    kind: str, spec: Spec, producing: Stopwatch, inputs: Mapping[str, Path], files: Mapping[str, Path], aim: float
) -> Row:
    seconds, flops, statistics_, limits = [], [], {}, {}
    for number in range(DRAWS):
        watch = Stopwatch()
        with watch.running():
            found = audit(
                spec,
                model_folder=MODEL,
                inputs=inputs,
                files=files,
                compute_dtype=ComputeDtype.FLOAT32,
                draw=bytes.fromhex(digest_of(f"{SEED} {kind} {number}".encode()).removeprefix("sha256:")),
                tolerances=BUILT_IN,
            )
        seconds.append(watch.cpu_s)
        flops.append(found.flops)
        statistics_, limits = found.statistics, found.limits
    checking = statistics.median(seconds)
    return {
        "kind": kind,
        "producing": producing.to_json(),
        "checking_cpu_s": checking,
        "checks_cpu_s": seconds,
        "share": checking / producing.cpu_s,
        "flops_share": statistics.median(flops) / kind_of(spec).flops(spec, base().geometry),
        "aim": aim,
        "statistics": statistics_,
        "limits": limits,
    }
