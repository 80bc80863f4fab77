"""Units of every kind that take SmolLM2-135M a minute or more on two cores, laid out as a supervisor does.

The conversations are spans of the project's documentation with a teacher's opinion that costs as much as a real one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from benchmarks.cubes import MODEL, ROOT
from benchmarks.distilling import Studied, base, evaluate_spec, model, study_spec, train_spec
from memgrid.digest import digest_of, token_bytes
from memgrid.distill.adapters import PREFIX_TENSOR, expected_shapes
from memgrid.distill.state import cold_state, write_state
from memgrid.kinds.evaluate import ADAPTER_FILE
from memgrid.kinds.frame import FRAME_FILE, build_frame
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.shard import make_shard, write_shard
from memgrid.kinds.train import STATE_FILE
from memgrid.kinds.train import shard_name as train_name
from memgrid.specs import AdapterKind, AdapterSpec, PrefillSpec, Purpose, Spec
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_volunteer.isolation import Folders
from memgrid_volunteer.kinds.job import Job

KINDS = ("prefill", "study", "train", "evaluate")
ADAPTER = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=64, frozen_tokens=1)
PREFILL_TOKENS = 16384
_TEXT_TOKENS = 512
_STUDIED = 256
_SCORED = 1536
_QUESTION_TOKENS, _ANSWER_TOKENS, _TOP_K = 24, 64, 8


def lay_out(kind: str, folders: Folders, model_dir: Path) -> Job:
    """A unit of a kind, and an empty folder for its outputs."""
    unit, out = folders.inputs / kind, folders.outputs / kind
    for made in (unit, out):
        made.mkdir(parents=True)
    (unit / "spec.json").write_bytes(_UNITS[kind](unit).to_bytes())
    return Job(kind=kind, unit_dir=unit, model_dir=model_dir, out_dir=out)


def _ids(count: int) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    text = "\n\n".join(path.read_text() for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [int(token) for token in (ids * (1 + count // len(ids)))[:count]]


def _prefill(folder: Path) -> Spec:
    content = token_bytes(_ids(PREFILL_TOKENS))
    (folder / TOKENS_FILE).write_bytes(content)
    return PrefillSpec(
        model=base().digest,
        tokens=digest_of(content),
        token_count=PREFILL_TOKENS,
        start=0,
        parent=None,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=StoreDtype.BFLOAT16,
    )


def _study(folder: Path) -> Spec:
    text = _text(folder)
    (folder / TOKENS_FILE).write_bytes(token_bytes(text.tokens))
    spec = study_spec(text.frame, text.tokens, Purpose.TRAIN, 0, _STUDIED)
    return replace(spec, compute_dtype=ComputeDtype.AUTO)


def _train(folder: Path) -> Spec:
    text = _text(folder, train=256)
    shape = expected_shapes(ADAPTER, model())[PREFIX_TENSOR]
    start = np.random.default_rng(1).normal(0, 0.3, shape).astype(np.float32)
    write_state(folder / STATE_FILE, cold_state({PREFIX_TENSOR: start}))
    spec = train_spec(text, ADAPTER, folder / STATE_FILE, segment_steps=16, stop_step=64, total_steps=64)
    return replace(spec, compute_dtype=ComputeDtype.AUTO)


def _evaluate(folder: Path) -> Spec:
    text = _text(folder, held_out=_SCORED)
    shape = expected_shapes(ADAPTER, model())[PREFIX_TENSOR]
    prefix = np.random.default_rng(1).normal(0, 0.3, shape).astype(np.float32)
    save_file({PREFIX_TENSOR: prefix}, folder / ADAPTER_FILE)
    spec = evaluate_spec(text, ADAPTER, folder / ADAPTER_FILE)
    return replace(spec, compute_dtype=ComputeDtype.AUTO)


_UNITS = {"prefill": _prefill, "study": _study, "train": _train, "evaluate": _evaluate}


def _text(folder: Path, *, train: int = 0, held_out: int = 0) -> Studied:
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    frame = build_frame(tokenizer)
    (folder / FRAME_FILE).write_bytes(frame.to_bytes())
    (folder / "shards").mkdir()
    paths = {Purpose.TRAIN: train, Purpose.HELD_OUT: held_out}
    shards = {}
    for purpose, count in paths.items():
        shards[purpose] = (folder / train_name(0),) if count else ()
        for path in shards[purpose]:
            _write_shard(path, frame.tokenizer, frame.vocab, purpose, count)
    return Studied(
        name="documentation",
        tokens=tuple(_ids(_TEXT_TOKENS)),
        frame=frame,
        frame_path=folder / FRAME_FILE,
        train=shards[Purpose.TRAIN],
        held_out=shards[Purpose.HELD_OUT],
        items=held_out,
    )


def _write_shard(path: Path, tokenizer: Any, vocab: int, purpose: Purpose, count: int) -> None:
    draw, ids = np.random.default_rng(1), np.array(_ids(1 << 15))
    firsts = draw.integers(0, len(ids) - _QUESTION_TOKENS - _ANSWER_TOKENS, count)
    questions = [ids[first : first + _QUESTION_TOKENS].tolist() for first in firsts]
    answers = [ids[first + _QUESTION_TOKENS :][:_ANSWER_TOKENS].tolist() for first in firsts]
    tokens = count * _ANSWER_TOKENS
    shard = make_shard(
        tokenizer=tokenizer,
        vocab=vocab,
        purpose=purpose,
        questions=questions,
        answers=answers,
        top_ids=1 + draw.integers(0, vocab - _TOP_K - 1, (tokens, 1)) + np.arange(_TOP_K),
        top_logprobs=np.full((tokens, _TOP_K), np.log(0.9 / _TOP_K)),
        tail=np.full(tokens, 0.1),
    )
    write_shard(path, shard)
