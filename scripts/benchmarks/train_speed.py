"""Training steps against PEFT with transformers' Trainer: the same conversations a step, in turns.

The plain loop is what anybody would write: one conversation a row, padded to the longest, logits of every position,
the teacher's likeliest tokens from the same precomputed list. Ours packs rows, computes the words that every
conversation begins with once a row, and takes logits of answers alone.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from peft import CartridgeConfig, LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from benchmarks.cubes import MODEL, ROOT
from benchmarks.report import Report, Row, spread
from memgrid.cube.identity import identity_of_folder
from memgrid.digest import digest_of
from memgrid.distill.adapters import PREFIX_TENSOR, expected_shapes
from memgrid.distill.batches import Conversation, pack
from memgrid.distill.model import load_model
from memgrid.distill.state import TrainState, cold_state
from memgrid.distill.training import make_course, train
from memgrid.kinds.frame import ChatFrame, build_frame
from memgrid.kinds.lowrank import seeded_a
from memgrid.specs import AdapterKind, AdapterSpec, Schedule, TrainSpec
from memgrid.units import ComputeDtype

QUESTION_TOKENS = (8, 32)
ANSWER_TOKENS = (24, 96)
TOP_K = 20
STEPS_A_TURN = 2
TURNS = 4
Seconds = tuple[float, float]
"""Of the clock, and of the processor: machines do other things beside."""
PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=64, frozen_tokens=1)
LORA = AdapterSpec(
    kind=AdapterKind.LORA,
    rank=8,
    alpha=16,
    targets=("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
)


def run(console: Console, quick: bool) -> Report:
    rows = []
    for adapter in (PREFIX, LORA):
        with console.status(f"train_speed: {adapter.kind}"):
            rows.append(_compare(adapter, 1 if quick else TURNS))
    return Report(
        name="train_speed",
        title=f"Training, SmolLM2-135M in float32, {torch.get_num_threads()} threads",
        columns={
            "adapter": lambda row: row["adapter"],
            "tokens a step": lambda row: f"{row['tokens_a_step']:.0f}",
            "memgrid, tokens/s": lambda row: f"{row['tokens_per_s']:.0f}",
            "PEFT + Trainer, tokens/s": lambda row: f"{row['plain_tokens_per_s']:.0f}",
            "faster": lambda row: f"{row['speedup']:.2f}×",
            "on the processor": lambda row: f"{row['speedup_on_processor']:.2f}×",
        },
        rows=rows,
        notes=(
            "Medians over steps, taken in turns; tokens of conversations as the model reads them, without filling.",
            "The aim is 1.0×.",
        ),
    )


def _compare(adapter: AdapterSpec, turns: int) -> Row:
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    frame = build_frame(tokenizer)
    conversations = _conversations(tokenizer)
    spec = _spec(adapter)
    course = make_course(spec, conversations, frame)
    model = load_model(MODEL, torch.float32, torch.device("cpu"))
    start = _start(adapter, model)
    plain = _Plain(adapter, conversations, frame)
    ours_s: list[Seconds] = []
    plain_s: list[Seconds] = []
    for _ in range(turns):
        ours_s += _our_steps(model, spec, start, course)
        plain_s += plain.steps([course.batches.step(step) for step in range(STEPS_A_TURN)])
    tokens = statistics.mean(
        sum(plain.length(index) for row in course.batches.step(step) for index in row) for step in range(STEPS_A_TURN)
    )
    (ours, ours_cpu), (theirs, theirs_cpu) = (
        [statistics.median(column) for column in zip(*seconds, strict=True)] for seconds in (ours_s, plain_s)
    )
    return {
        "adapter": str(adapter.kind),
        "tokens_a_step": tokens,
        "tokens_per_s": tokens / ours,
        "plain_tokens_per_s": tokens / theirs,
        "speedup": theirs / ours,
        "speedup_on_processor": theirs_cpu / ours_cpu,
        "step_s": spread([wall for wall, _ in ours_s]),
        "plain_step_s": spread([wall for wall, _ in plain_s]),
        "step_cpu_s": spread([cpu for _, cpu in ours_s]),
        "plain_step_cpu_s": spread([cpu for _, cpu in plain_s]),
    }


def _now() -> Seconds:
    return time.perf_counter(), time.process_time()


def _between(before: Seconds, after: Seconds) -> Seconds:
    return after[0] - before[0], after[1] - before[1]


def _our_steps(model: Any, spec: TrainSpec, start: TrainState, course: Any) -> list[Seconds]:
    marks = [_now()]
    train(model, spec, start, course, on_step=lambda entry: marks.append(_now()))
    return [_between(before, after) for before, after in pairwise(marks)]


class _Plain:
    """PEFT's own adapter in transformers' own loop."""

    def __init__(self, adapter: AdapterSpec, conversations: list[Conversation], frame: ChatFrame) -> None:
        self._talk, self._frame = conversations, frame
        config: Any = (
            CartridgeConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=adapter.virtual_tokens,
                num_frozen_tokens=adapter.frozen_tokens,
            )
            if adapter.kind is AdapterKind.PREFIX
            else LoraConfig(
                task_type="CAUSAL_LM",
                r=adapter.rank,
                lora_alpha=adapter.alpha,
                target_modules=list(adapter.targets),
            )
        )
        base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
        self._model = get_peft_model(base, config)

    def length(self, index: int) -> int:
        """Tokens of one conversation as the student reads them."""
        talk, frame = self._talk[index], self._frame
        return len(frame.student_before) + len(talk.question) + len(frame.student_after) + len(talk.answer) - 1

    def steps(self, steps: list[tuple[tuple[int, ...], ...]]) -> list[Seconds]:
        """Seconds of each step, from its batch to the updated parameters."""
        batches = [self._batch([index for row in step for index in row]) for step in steps]
        timer = _Timer()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=len(batches),
                learning_rate=1e-3,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            trainer = _TopK(model=self._model, args=arguments, callbacks=[timer], batches=batches)
            trainer.remove_callback(PrinterCallback)
            with torch.enable_grad():
                trainer.train()
        return timer.seconds

    def _batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """One conversation a row; the same targets as ours."""
        packed = pack(
            [(index,) for index in indices], self._talk, self._frame, row_tokens=4096, device=torch.device("cpu")
        )
        length = int((packed.segments >= 0).sum(1).max())
        return {
            "input_ids": packed.ids[:, :length],
            "attention_mask": (packed.segments[:, :length] >= 0).long(),
            "rows": packed.row_of_answers(),
            "columns": packed.columns,
            "top_ids": packed.targets.top_ids,
            "top_probabilities": packed.targets.top_probabilities,
        }


class _TopK(Trainer):
    """Cross-entropy to the teacher's likeliest tokens at the answers."""

    def __init__(self, *, batches: list[dict[str, torch.Tensor]], **options: Any) -> None:
        super().__init__(train_dataset=batches, **options)
        self._batches = batches

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self._batches, batch_size=None)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        log_q = logits[inputs["rows"], inputs["columns"]].log_softmax(-1).gather(1, inputs["top_ids"])
        return -(inputs["top_probabilities"] * log_q).sum(1).mean()


class _Timer(TrainerCallback):
    """When each step began and ended."""

    def __init__(self) -> None:
        self.seconds: list[Seconds] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(_between(self._began, _now()))


def _conversations(tokenizer: Any) -> list[Conversation]:
    """Spans of the project's documentation; a teacher's opinion that costs as much as a real one."""
    draw = np.random.default_rng(1)
    text = "\n\n".join(path.read_text() for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))
    ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
    found = []
    for _ in range(96):
        asked, answered = draw.integers(*QUESTION_TOKENS), draw.integers(*ANSWER_TOKENS)
        first = int(draw.integers(0, len(ids) - asked - answered))
        answer = ids[first + asked : first + asked + answered]
        others = 1 + draw.integers(0, len(tokenizer) - TOP_K - 1, (answered, 1)) + np.arange(TOP_K)
        found.append(
            Conversation(
                question=ids[first : first + asked],
                answer=answer,
                top_ids=others.astype(np.int32),
                top_logprobs=np.full((answered, TOP_K), np.log(0.9 / TOP_K), dtype=np.float32),
                tail=np.full(answered, 0.1, dtype=np.float32),
            )
        )
    return found


def _spec(adapter: AdapterSpec) -> TrainSpec:
    return TrainSpec(
        model=identity_of_folder(MODEL).digest,
        frame=digest_of(b""),
        adapter=adapter,
        state=digest_of(b""),
        shards=(),
        distractors=(),
        distractor_share=0.0,
        first_step=0,
        stop_step=STEPS_A_TURN,
        total_steps=STEPS_A_TURN,
        segment_steps=STEPS_A_TURN,
        batch_rows=4,
        row_tokens=512,
        learning_rate=1e-3,
        warmup_steps=0,
        schedule=Schedule.CONSTANT,
        seed=1,
        round=0,
        stream=0,
        streams=1,
        compute_dtype=ComputeDtype.FLOAT32,
    )


def _start(adapter: AdapterSpec, model: Any) -> TrainState:
    draw = np.random.default_rng(1)
    shapes = expected_shapes(adapter, model)
    if adapter.kind is AdapterKind.PREFIX:
        return cold_state({PREFIX_TENSOR: draw.normal(0, 0.3, shapes[PREFIX_TENSOR]).astype(np.float32)})
    return cold_state({
        name: seeded_a(1, name, *shape) if ".lora_A." in name else np.zeros(shape, dtype=np.float32)
        for name, shape in shapes.items()
    })  # fmt: skip
