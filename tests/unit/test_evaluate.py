"""Scores of held-out conversations are what the model says, item by item, and false ones are found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save, save_file

from memgrid.digest import digest_of, digest_of_file
from memgrid.distill.adapters import PREFIX_TENSOR, Adapter, load_adapter
from memgrid.distill.audit import audit
from memgrid.distill.evaluate import evaluate
from memgrid.distill.evaluate_replay import audited_items
from memgrid.distill.shared_context import read_context
from memgrid.errors import InvalidError
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.evaluate import (
    ADAPTER_FILE,
    CUBE,
    NONE,
    SCORES_FILE,
    SCORES_FORMAT,
    EvaluateKind,
    Scores,
    parse_scores,
    read_items,
    scores_bytes,
    shard_name,
    summarise,
)
from memgrid.kinds.frame import FRAME_FILE
from memgrid.kinds.kind import Replica
from memgrid.kinds.part import Part
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.shard import write_shard
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.specs import AdapterKind, AdapterSpec, EvaluateSpec, Purpose
from memgrid.units import ComputeDtype, Output, ReasonCode
from tests.studies import Studied, make_studied

KIND = EvaluateKind()
PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=24, frozen_tokens=1)
LORA = AdapterSpec(kind=AdapterKind.LORA, rank=2, alpha=4, targets=("q_proj", "v_proj"))
FLOAT32 = ComputeDtype.FLOAT32


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A unit that scores two shards of a tiny model's talk with a prefix made of the text's own cache."""

    studied: Studied
    spec: EvaluateSpec
    inputs: dict[str, Path]
    honest: Scores

    def scores(self, spec: EvaluateSpec | None = None, *, adapter: Adapter | None = None, rows: int = 4) -> Scores:
        spec = spec or self.spec
        return evaluate(
            self.studied.model(),
            self.studied.frame,
            read_items(spec, self.inputs),
            adapter or self.adapter(),
            batch_rows=rows,
        )

    def adapter(self) -> Adapter:
        return load_adapter(self.inputs[ADAPTER_FILE], PREFIX, self.studied.model())

    def audit(self, scores: Scores, *, claimed: ComputeDtype = FLOAT32, draw: bytes = bytes(32)) -> Audit:
        path = self.inputs[FRAME_FILE].parent / "claimed.safetensors"
        path.write_bytes(scores_bytes(scores))
        return audit(
            self.spec,
            model_folder=self.studied.folder,
            inputs=self.inputs,
            files={SCORES_FILE: path},
            compute_dtype=claimed,
            draw=draw,
            tolerances=BUILT_IN,
        )

    def check(self, content: bytes, sketch: bytes | None = None) -> None:
        path = self.inputs[FRAME_FILE].parent / "claimed.safetensors"
        path.write_bytes(content)
        files = {SCORES_FILE: path}
        KIND.check_files(self.spec, files, self.inputs, content if sketch is None else sketch, self.studied.geometry)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    studied = make_studied(tmp_path_factory.mktemp("evaluate") / "tiny")
    folder = studied.folder.parent
    (folder / "shards").mkdir()
    inputs = {name: folder / name for name in (FRAME_FILE, ADAPTER_FILE, shard_name(0), shard_name(1))}
    write_shard(inputs[shard_name(0)], studied.made(purpose=Purpose.HELD_OUT))
    write_shard(inputs[shard_name(1)], studied.made(purpose=Purpose.HELD_OUT, first=56))
    context = read_context(studied.model(), studied.tokens)
    halves = [half[:, :24] for pair in zip(context.keys, context.values, strict=True) for half in pair]
    prefix = torch.stack(halves).permute(2, 0, 1, 3).reshape(24, -1)  # [p, 2L g d]
    save_file({PREFIX_TENSOR: prefix.numpy().copy()}, inputs[ADAPTER_FILE])
    spec = EvaluateSpec(
        model=studied.spec.model,
        frame=studied.spec.frame,
        adapter=PREFIX,
        adapter_file=digest_of_file(inputs[ADAPTER_FILE]),
        shards=tuple(digest_of_file(inputs[shard_name(number)]) for number in range(2)),
        first=4,
        items=20,
        compute_dtype=ComputeDtype.AUTO,
    )
    adapter = load_adapter(inputs[ADAPTER_FILE], PREFIX, studied.model())
    honest = evaluate(studied.model(), studied.frame, read_items(spec, inputs), adapter)
    return Scored(studied=studied, spec=spec, inputs=inputs, honest=honest)


def one_by_one(grid: Scored, place: int, past: list[int]) -> tuple[float, float, int]:
    """NLL, KL and first choices of one item by one plain pass, after tokens that stand before the conversation."""
    items = read_items(grid.spec, grid.inputs)
    number, index = items.places[place]
    shard, frame, model = items.shards[number], grid.studied.frame, grid.studied.model()
    answer = shard.answer(index).tolist()
    ids = [*past, *frame.student_before, *shard.question(index).tolist(), *frame.student_after, *answer]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -len(answer) - 1 : -1].double()
    log_q = torch.log_softmax(logits, dim=1).numpy()
    rows = shard.rows(index)
    p, tail = np.exp(shard.top_logprobs[rows].astype(np.float64)), shard.tail[rows].astype(np.float64)
    q = np.take_along_axis(log_q, shard.top_ids[rows].astype(np.int64), axis=1)
    rest = 1 - np.exp(q).sum(axis=1)
    kl = (p * (np.log(p) - q)).sum() + (tail * np.log(tail / rest)).sum()
    return -log_q[range(len(answer)), answer].sum(), kl, int((log_q.argmax(axis=1) == answer).sum())


@pytest.mark.parametrize("place", [0, 7, 19])
def test_packed_scores_are_those_of_one_plain_pass(grid: Scored, place: int) -> None:
    for arm, past in ((NONE, []), (CUBE, grid.studied.tokens[:24])):
        nll, kl, correct = one_by_one(grid, place, past)
        scores = grid.honest.arms[arm]
        assert scores.nll[place] == pytest.approx(nll, rel=1e-5)
        assert scores.kl[place] == pytest.approx(kl, rel=1e-4, abs=1e-5)
        assert scores.correct[place] == correct


def test_the_teachers_own_likelihood_stands_beside(grid: Scored) -> None:
    items = read_items(grid.spec, grid.inputs)
    number, index = items.places[3]
    shard = items.shards[number]
    assert grid.honest.text_nll[3] == pytest.approx(-shard.top_logprobs[shard.rows(index), 0].sum())
    assert grid.honest.tokens[3] == len(shard.answer(index))


@pytest.mark.parametrize("rows", [1, 2])
def test_scores_do_not_depend_on_the_batch(grid: Scored, rows: int) -> None:
    one = Replica(sketch=scores_bytes(grid.honest), compute_dtype=FLOAT32)
    other = Replica(sketch=scores_bytes(grid.scores(rows=rows)), compute_dtype=FLOAT32)
    assert KIND.compare(grid.spec, one, other, grid.studied.geometry, BUILT_IN).distance < 0.1


def test_units_of_a_few_items_add_up_to_one_of_all(grid: Scored) -> None:
    parts = [dataclasses.replace(grid.spec, first=first, items=10) for first in (4, 14)]
    files = [scores_bytes(grid.scores(part)) for part in parts]
    together = summarise(files, parts)
    whole = summarise([scores_bytes(grid.honest)], [grid.spec])
    for field in dataclasses.fields(whole):
        assert getattr(together, field.name) == pytest.approx(getattr(whole, field.name), rel=1e-5), field.name


def test_what_the_scores_add_up_to() -> None:
    spec = EvaluateSpec(
        model=digest_of(b"m"), frame=digest_of(b"f"), adapter=PREFIX, adapter_file=digest_of(b"a"),
        shards=(digest_of(b"s"),), first=0, items=3, compute_dtype=ComputeDtype.AUTO,
    )  # fmt: skip
    content = save(
        {
            "tokens": np.array([4, 0, 6], dtype=np.int32),
            "text.nll": np.array([1, 0, 1], dtype=np.float32),
            "none.nll": np.array([8, 0, 12], dtype=np.float32),
            "none.kl": np.array([6, 0, 9], dtype=np.float32),
            "none.correct": np.array([1, 0, 2], dtype=np.int32),
            "cube.nll": np.array([2, 0, 3], dtype=np.float32),
            "cube.kl": np.array([1, 0, 1], dtype=np.float32),
            "cube.correct": np.array([4, 0, 5], dtype=np.int32),
        },
        {"format": SCORES_FORMAT},
    )
    quality = summarise([content], [spec])
    assert (quality.items, quality.tokens) == (2, 10)
    assert (quality.nll_none, quality.nll_cube, quality.nll_text) == (2.0, 0.5, 0.2)
    assert (quality.kl_none, quality.kl_cube) == (1.5, 0.2)
    assert (quality.correct_none, quality.correct_cube) == (0.3, 0.9)
    assert (quality.exact_none, quality.exact_cube) == (0.0, 0.5)
    assert quality.gap_closed == pytest.approx(1.5 / 1.8)


def test_without_an_adapter_only_the_bare_model_is_scored(grid: Scored) -> None:
    spec = dataclasses.replace(grid.spec, adapter=None, adapter_file=None)
    scores = evaluate(grid.studied.model(), grid.studied.frame, read_items(spec, grid.inputs), None)
    assert set(scores.arms) == {NONE}
    assert scores.arms[NONE].nll.tolist() == grid.honest.arms[NONE].nll.tolist()
    assert [file.name for file in KIND.inputs(spec)] == [FRAME_FILE, shard_name(0), shard_name(1)]
    parse_scores(scores_bytes(scores), spec)
    with pytest.raises(InvalidError, match="the scores of an adapter"):
        summarise([scores_bytes(scores)], [spec])


def test_a_lora_adapter_is_scored_and_leaves_the_model_as_it_was(grid: Scored, tmp_path: Path) -> None:
    model = grid.studied.model()
    rng = np.random.default_rng(1)
    shapes = {"q_proj": 64, "v_proj": 32}
    tensors = {}
    for layer in range(3):
        for target, out in shapes.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_"
            tensors[f"{name}A.weight"] = rng.normal(0, 0.2, (2, 64)).astype(np.float32)
            tensors[f"{name}B.weight"] = rng.normal(0, 0.2, (out, 2)).astype(np.float32)
    save_file(tensors, tmp_path / ADAPTER_FILE)
    before = grid.honest.arms[NONE].nll
    scores = grid.scores(adapter=load_adapter(tmp_path / ADAPTER_FILE, LORA, model))
    assert scores.arms[NONE].nll.tolist() == before.tolist()
    assert np.abs(scores.arms[CUBE].nll - before).min() > 0.01
    assert grid.scores().arms[NONE].nll.tolist() == before.tolist()


def test_honest_scores_pass_the_audit_and_the_form(grid: Scored) -> None:
    for number in range(3):
        assert grid.audit(grid.honest, draw=bytes([number] * 32)).zone is Zone.PASS
    grid.check(scores_bytes(grid.honest))


def changed(grid: Scored, change: Callable[[dict[str, np.ndarray]], object]) -> Scores:
    tensors = {name: array.copy() for name, array in load(scores_bytes(grid.honest)).items()}
    change(tensors)
    return parse_scores(save(tensors, {"format": SCORES_FORMAT}), grid.spec)


CHEATS: dict[str, Callable[[Scored], Scores]] = {
    "a better cube": lambda grid: changed(grid, lambda found: found["cube.nll"].__imul__(np.float32(0.99))),
    "a worse bare model": lambda grid: changed(grid, lambda found: found["none.nll"].__imul__(np.float32(1.01))),
    "less divergence": lambda grid: changed(grid, lambda found: found["cube.kl"].__imul__(np.float32(0.9))),
    "more first choices": lambda grid: changed(grid, lambda found: found["cube.correct"].__setitem__(
        slice(None), found["tokens"])),
    "the bare model for the cube": lambda grid: changed(grid, lambda found: found.update(
        {f"cube.{what}": found[f"none.{what}"] for what in ("nll", "kl", "correct")})),
    "items in another order": lambda grid: changed(grid, lambda found: [
        array.__setitem__(slice(None), array[::-1].copy()) for array in found.values()]),
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_false_scores_are_caught_by_scoring_a_few_again_and_by_another_host(grid: Scored, cheat: str) -> None:
    false = CHEATS[cheat](grid)
    found = grid.audit(false)
    assert found.zone is Zone.FAULT and "at item" in found.in_words()
    one, other = (Replica(sketch=scores_bytes(scores), compute_dtype=FLOAT32) for scores in (grid.honest, false))
    apart = KIND.compare(grid.spec, one, other, grid.studied.geometry, BUILT_IN)
    assert apart.distance > 1 and apart.exceeded is not None


def test_disputed_items_are_scored_again_and_decide_who_is_right(grid: Scored, tmp_path: Path) -> None:
    nll = grid.honest.arms[CUBE].nll.copy()
    nll[5] *= 0.9
    arms = {**grid.honest.arms, CUBE: dataclasses.replace(grid.honest.arms[CUBE], nll=nll)}
    contents = {"good": scores_bytes(grid.honest), "bad": scores_bytes(dataclasses.replace(grid.honest, arms=arms))}
    replicas = {name: Replica(sketch=content, compute_dtype=FLOAT32) for name, content in contents.items()}
    part = KIND.narrow(grid.spec, replicas["bad"], replicas["good"], grid.studied.geometry, BUILT_IN)
    assert part == Part(pieces=(5,))
    for name, zone in (("good", Zone.PASS), ("bad", Zone.FAULT)):
        (tmp_path / name).write_bytes(contents[name])
        found = audit(grid.spec, model_folder=grid.studied.folder, inputs=grid.inputs,
                      files={SCORES_FILE: tmp_path / name}, compute_dtype=FLOAT32, draw=bytes(32),
                      tolerances=BUILT_IN, part=part)  # fmt: skip
        assert found.zone is zone


@pytest.mark.parametrize(
    ("dtype", "claimed"), [(torch.bfloat16, ComputeDtype.BFLOAT16), (torch.float16, ComputeDtype.FLOAT16)]
)
def test_half_precision_passes_as_what_it_is_and_not_as_float32(
    grid: Scored, dtype: torch.dtype, claimed: ComputeDtype
) -> None:
    model = grid.studied.model(dtype)
    items = read_items(grid.spec, grid.inputs)
    rough = evaluate(model, grid.studied.frame, items, load_adapter(grid.inputs[ADAPTER_FILE], PREFIX, model))
    one = Replica(sketch=scores_bytes(grid.honest), compute_dtype=FLOAT32)
    other = Replica(sketch=scores_bytes(rough), compute_dtype=claimed)
    assert KIND.compare(grid.spec, one, other, grid.studied.geometry, BUILT_IN).exceeded is None
    lying = dataclasses.replace(other, compute_dtype=FLOAT32)
    assert KIND.compare(grid.spec, one, lying, grid.studied.geometry, BUILT_IN).exceeded is not None


def test_which_items_are_scored_again_follows_from_the_draw(grid: Scored) -> None:
    drawn = {audited_items(grid.spec, bytes([number])) for number in range(20)}
    assert len(drawn) > 10 and all(len(picked) == 2 for picked in drawn)
    assert audited_items(grid.spec, b"x") == audited_items(grid.spec, b"x")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda found: found.pop("cube.kl"), ReasonCode.BAD_SKETCH),
        (lambda found: found.__setitem__("tokens", found["tokens"][:-1].copy()), ReasonCode.BAD_SKETCH),
        (lambda found: found["none.correct"].__setitem__(0, 99), ReasonCode.BAD_SKETCH),
        (lambda found: found["none.correct"].__setitem__(0, -1), ReasonCode.BAD_SKETCH),
        (lambda found: found["none.nll"].__setitem__(0, np.nan), ReasonCode.NOT_FINITE),
        (lambda found: found["text.nll"].__setitem__(0, 99), ReasonCode.WRONG_OUTPUTS),
        (lambda found: found["tokens"].__setitem__(0, found["tokens"][0] + 1), ReasonCode.WRONG_OUTPUTS),
    ],
)
def test_what_are_no_scores_of_the_unit_is_refused(
    grid: Scored, change: Callable[[dict[str, np.ndarray]], object], code: ReasonCode
) -> None:
    tensors = {name: array.copy() for name, array in load(scores_bytes(grid.honest)).items()}
    change(tensors)
    with pytest.raises(RefusedError) as caught:
        grid.check(save(tensors, {"format": SCORES_FORMAT}))
    assert caught.value.reason.code is code


def test_scores_other_than_the_reported_are_refused(grid: Scored) -> None:
    with pytest.raises(RefusedError) as caught:
        grid.check(scores_bytes(grid.honest), sketch=scores_bytes(CHEATS["a better cube"](grid)))
    assert caught.value.reason.code is ReasonCode.SKETCH_MISMATCH


def test_the_door_takes_scores_that_are_their_own_sketch(grid: Scored) -> None:
    content = scores_bytes(grid.honest)
    good = Output(name=SCORES_FILE, digest=digest_of(content), size_bytes=len(content))
    KIND.check_claim(grid.spec, [good], content, grid.studied.geometry)
    for outputs, sketch in (
        ([], content),
        ([dataclasses.replace(good, name="other")], content),
        ([dataclasses.replace(good, size_bytes=1 << 20)], content),
        ([good], content[:-4]),
        ([good], bytes(len(content))),
    ):
        with pytest.raises(RefusedError):
            KIND.check_claim(grid.spec, outputs, sketch, grid.studied.geometry)


def test_more_items_than_there_are_can_not_be_read(grid: Scored) -> None:
    with pytest.raises(RefusedError, match="hold 32 conversations") as caught:
        read_items(dataclasses.replace(grid.spec, first=20), grid.inputs)
    assert caught.value.reason.code is ReasonCode.INPUT_UNAVAILABLE


def test_shards_of_another_tokenizer_are_refused(grid: Scored, tmp_path: Path) -> None:
    frame = dataclasses.replace(grid.studied.frame, tokenizer=digest_of(b"other"))
    (tmp_path / FRAME_FILE).write_bytes(frame.to_bytes())
    with pytest.raises(RefusedError) as caught:
        read_items(grid.spec, {**grid.inputs, FRAME_FILE: tmp_path / FRAME_FILE})
    assert caught.value.reason.code is ReasonCode.VOCABULARY_MISMATCH


def test_scoring_with_an_adapter_costs_more_than_without(grid: Scored) -> None:
    bare = dataclasses.replace(grid.spec, adapter=None, adapter_file=None)
    price = KIND.flops(grid.spec, grid.studied.geometry)
    assert price > 1.9 * KIND.flops(bare, grid.studied.geometry)
