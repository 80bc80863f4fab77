"""The distill recipe: from any point the same next step, whatever order results come in, and no document is stuck."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memgrid.campaign import CampaignFile
from memgrid.cube.manifest import Quality
from memgrid.digest import digest_of
from memgrid.errors import InvalidError
from memgrid.specs import EvaluateSpec, Purpose, StudySpec, TrainSpec, parse_spec
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.heavy.plan_distill import DistillPlan, StudiedDocument
from memgrid_coordinator.lifecycle import DocumentState, UnitState
from memgrid_coordinator.progress import Stage
from memgrid_coordinator.recipes import activation, distill, recipe_of, training
from memgrid_coordinator.recipes.steps import Failed, MoreUnits, Publish, Seen, Step, Wait, Work
from memgrid_coordinator.records import CampaignId, Document, Made, NewUnit, Unit
from tests.unit.test_recipes import BASE
from tests.unit.test_recipes import campaign_of as other_campaign

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = Quality(
    items=4, tokens=9, nll_none=2.0, nll_cube=0.6, nll_text=0.5, kl_none=1, kl_cube=0.1,
    correct_none=0.1, correct_cube=0.8, exact_none=0, exact_cube=0.5,
)  # fmt: skip
SPENT = Reason(code=ReasonCode.BUDGET_SPENT, text="2 of 1 device-hours are spent")


def campaign_of(*, budget: dict[str, Any] | None = None, quality: float = 0.5, **train: Any) -> CampaignFile:
    length = {"steps": 12} if train.get("mode") == "rounds" else {"steps": 10, "steps_per_unit": 4}
    value = {
        "name": "handbook",
        "model": "models/tiny",
        "recipe": "distill",
        "sources": [{"path": "*.md"}],
        "distill": {
            "adapter": {"kind": "prefix", "virtual_tokens": 8},
            "study": {"conversations": 6, "held_out": 4, "conversations_per_unit": 4},
            "train": {"segment_steps": 2, **length, **train},
            "quality": {"min_gap_closed": quality},
            "items_per_evaluation": 3,
        },
        "publish": {"namespace": "books", "version": "1.2.3", "licence": "CC-BY-4.0"},
        "budget": budget or {},
    }
    return CampaignFile.model_validate(value)


ROUNDS = {"mode": "rounds", "rounds": {"members": 3, "local_steps": 4, "enough": 0.67, "wait_s": 60, "staleness": 1}}


def plan_of(chunks: int = 2) -> DistillPlan:
    studied = StudiedDocument(
        name="manual",
        uri="manual.md",
        source=digest_of(b"source"),
        licence="MIT",
        token_count=500,
        text=b"text" * 500,
        chunks=tuple(b"%04d" % number * 250 for number in range(chunks)),
        terms=("valve",),
    )
    return DistillPlan(frame=b"frame", documents=(studied,))


class World:
    """A document whose units are answered and whose work is done as a test says; equal work gives equal content."""

    def __init__(self, campaign: CampaignFile, quality: Quality = GOOD) -> None:
        self.quality = quality
        (new,) = distill.new_documents(plan_of(), campaign, BASE)
        self.seen = Seen(
            campaign=campaign,
            document=Document(
                document_id=1,
                campaign_id=CampaignId("c1"),
                name=new.name,
                state=DocumentState.RUNNING,
                source_uri=new.source_uri,
                source_digest=new.source_digest,
                licence=new.licence,
                tokens=new.tokens,
                units=len(new.units),
                units_accepted=0,
                cube="",
                cube_digest=None,
                reason=None,
                progress=new.progress,
            ),
            units=(),
            made={made.name: made for made in new.made},
            base=BASE,
            now=NOW,
        )
        self.ask(new.units)

    @property
    def step(self) -> Step:
        return distill.next_step(self.seen)

    @property
    def open(self) -> list[Unit]:
        return [unit for unit in self.seen.units if unit.state in (UnitState.OPEN, UnitState.CHECKING)]

    def ask(self, wanted: tuple[NewUnit, ...]) -> None:
        """Units are stored once; asking for one that is there changes nothing."""
        known = {unit.key for unit in self.seen.units}
        new = [unit for unit in wanted if unit.key not in known]
        stored = tuple(_stored(unit, len(self.seen.units) + number) for number, unit in enumerate(new))
        self.seen = replace(self.seen, units=(*self.seen.units, *stored))

    def settle(self, unit: Unit, state: UnitState, reason: Reason | None = None) -> None:
        output = digest_of(b"output of " + unit.key.encode()) if state is UnitState.ACCEPTED else None
        settled_at = None if state is UnitState.CHECKING else self.seen.now
        ended = replace(unit, state=state, output_digest=output, settled_at=settled_at, reason=reason)
        self.seen = replace(self.seen, units=tuple(ended if one.key == unit.key else one for one in self.seen.units))

    def accept(self, *units: Unit) -> None:
        for unit in units or tuple(self.open):
            self.settle(unit, UnitState.ACCEPTED)

    def do(self, work: Work) -> None:
        inputs = json.dumps([work.name, sorted(work.files.items())])
        detail: dict[str, Any] = {}
        if work.name == "conversations":
            detail = {side: [digest_of(side.encode())] for side in ("train", "held_out")} | {"held_out_items": 4}
        elif work.name.startswith("merge/"):
            detail = {"used": list(work.options["keys"])}
        elif work.name == "adapter":
            detail = dict(work.options["detail"])
        elif work.name == "quality":
            detail = asdict(self.quality)
        made = [Made(name=work.name, digest=digest_of(inputs.encode()), detail=json.dumps(detail))]
        if "velocity_name" in work.options:
            name = work.options["velocity_name"]
            made.append(Made(name=name, digest=digest_of(f"{name} {inputs}".encode()), detail="{}"))
        self.seen = replace(self.seen, made={**self.seen.made, **{one.name: one for one in made}})

    def take(self, step: Step) -> None:
        if isinstance(step, MoreUnits):
            self.ask(step.units)
        if isinstance(step, Work):
            self.do(step)

    def run(self, until: type[Any] = Publish) -> Step:
        """Everything is accepted at once, until such a step."""
        for _ in range(200):
            step = self.step
            if isinstance(step, until | Publish | Failed):
                return step
            self.take(step)
            if isinstance(step, Wait):
                assert self.open, "waits for nothing"
                self.accept()
        raise AssertionError("it never ends")

    def until_training(self) -> None:
        while not self.of(TrainSpec):
            self.accept()
            self.take(self.step)

    def of(self, kind: type[Any]) -> list[tuple[Unit, Any]]:
        return [(unit, parse_spec(unit.spec)) for unit in self.seen.units if unit.kind == kind.kind]

    def later(self, seconds: float) -> None:
        self.seen = replace(self.seen, now=self.seen.now + timedelta(seconds=seconds))


def _stored(unit: NewUnit, number: int) -> Unit:
    return Unit(
        unit_id=number,
        key=unit.key,
        kind=unit.kind,
        state=UnitState.OPEN,
        spec=unit.spec,
        model=unit.model,
        token_count=unit.token_count,
        flops=unit.flops,
        priority=0,
        min_replicas=1,
        max_replicas=5,
        parent_id=None,
        fence=0,
        failures=0,
        output_digest=None,
        output_bytes=0,
        accepted_lease_id=None,
        opened_at=NOW,
    )


def test_study_asks_about_every_chunk_with_held_out_talk_of_its_own() -> None:
    specs = [spec for _, spec in World(campaign_of()).of(StudySpec)]
    assert [(spec.purpose, spec.first, spec.conversations) for spec in specs] == 2 * [
        (Purpose.TRAIN, 0, 4),
        (Purpose.TRAIN, 4, 2),
        (Purpose.HELD_OUT, 0, 4),
    ]
    assert len({spec.tokens for spec in specs}) == 2


def test_a_relay_hands_one_state_from_unit_to_unit() -> None:
    world = World(campaign_of())
    assert isinstance(world.run(), Publish)
    trained = world.of(TrainSpec)
    assert [(spec.first_step, spec.stop_step) for _, spec in trained] == [(0, 4), (4, 8), (8, 10)]
    assert trained[0][1].state == world.seen.made["start"].digest
    assert [spec.state for _, spec in trained[1:]] == [unit.output_digest for unit, _ in trained[:-1]]
    assert json.loads(world.seen.made["adapter"].detail)["state"] == trained[-1][0].output_digest
    scored = world.of(EvaluateSpec)
    assert [(spec.first, spec.items) for _, spec in scored] == [(0, 3), (3, 1)]
    assert {spec.adapter_file for _, spec in scored} == {world.seen.made["adapter"].digest}


def test_rounds_begin_with_what_the_former_one_was_merged_to() -> None:
    world = World(campaign_of(**ROUNDS))
    assert isinstance(world.run(), Publish)
    specs = [spec for _, spec in world.of(TrainSpec)]
    assert [(spec.round, spec.stream, spec.first_step, spec.stop_step) for spec in specs] == [
        (number, stream, first, stop)
        for number, (first, stop) in enumerate([(0, 4), (4, 8), (8, 12)], 1)
        for stream in range(3)
    ]
    states = [world.seen.made[name].digest for name in ("start", "merge/0001", "merge/0002")]
    assert [spec.state for spec in specs] == [state for state in states for _ in range(3)]
    assert json.loads(world.seen.made["adapter"].detail)["state"] == world.seen.made["merge/0003"].digest


@pytest.mark.parametrize(("train", "moments"), [({}, True), (ROUNDS, False)], ids=["relay", "rounds"])
def test_only_a_relay_starts_with_moments(train: dict[str, Any], moments: bool) -> None:
    world = World(campaign_of(**train))
    while not (isinstance(step := world.step, Work) and step.name == "start"):
        world.take(step)
        if isinstance(step, Wait):
            world.accept()
    assert step.options["moments"] is moments


def test_velocity_goes_from_merge_to_merge_and_to_no_member() -> None:
    world = World(campaign_of(**ROUNDS))
    given = []
    while not isinstance(step := world.step, Publish):
        if isinstance(step, Work) and step.name.startswith("merge/"):
            given.append(step.files["velocity"])
        world.take(step)
        if isinstance(step, Wait):
            world.accept()
    velocities = [world.seen.made[f"velocity/000{number}"].digest for number in (1, 2, 3)]
    assert given == [(), (velocities[0],), (velocities[1],)]
    assert not any(digest.encode() in unit.spec for unit in world.seen.units for digest in velocities)


@settings(deadline=None)
@given(data=st.data(), mode=st.sampled_from([{}, {**ROUNDS, "rounds": {**ROUNDS["rounds"], "enough": 1.0}}]))
def test_whatever_order_results_come_in_and_whatever_is_done_twice_the_cube_is_the_same(
    data: st.DataObject, mode: dict[str, Any]
) -> None:
    calm, stormy = World(campaign_of(**mode)), World(campaign_of(**mode))
    calm.run()
    while not isinstance(step := stormy.step, Publish):
        assert stormy.step == step, "the same document, seen twice, gets the same next step"
        assert not isinstance(step, Failed)
        for _ in range(data.draw(st.integers(1, 2), label="times carried out")):
            stormy.take(step)
        if isinstance(step, Wait):
            stormy.accept(data.draw(st.sampled_from(stormy.open), label="accepted"))
    assert {unit.key for unit in stormy.seen.units} == {unit.key for unit in calm.seen.units}
    assert stormy.seen.made == calm.seen.made


@settings(deadline=None)
@given(data=st.data(), mode=st.sampled_from([{}, ROUNDS]))
def test_no_document_waits_for_nothing(data: st.DataObject, mode: dict[str, Any]) -> None:
    """Units fail for any reason, budgets are spent at any time; in the end there is a cube or a reason."""
    world = World(campaign_of(**mode))
    codes = [ReasonCode.DIVERGED, ReasonCode.TOO_MANY_FAILURES, ReasonCode.STATE_MISSING]
    for _ in range(300):
        for unit_id, reason in distill.withdrawn(world.seen).items():
            (unit,) = (one for one in world.open if one.unit_id == unit_id)
            assert unit.state is UnitState.OPEN, "what is reported is done, and will be paid"
            world.settle(unit, UnitState.CANCELLED, reason)
        step = world.step
        assert distill.progress(world.seen, ()).steps <= 12
        if isinstance(step, Publish):
            return
        if isinstance(step, Failed):
            assert step.reason.text
            return
        world.take(step)
        if isinstance(step, Wait):
            assert step.until is not None or world.open, "nothing will ever happen again"
            if step.until is not None and data.draw(st.booleans(), label="the time comes"):
                world.seen = replace(world.seen, now=step.until)
            elif world.open:
                unit = data.draw(st.sampled_from(world.open), label="ends")
                if unit.state is UnitState.OPEN and data.draw(st.booleans(), label="is reported first"):
                    world.settle(unit, UnitState.CHECKING)
                elif data.draw(st.integers(0, 9), label="luck"):
                    world.accept(unit)
                else:
                    code = data.draw(st.sampled_from(codes), label="why")
                    world.settle(unit, UnitState.FAILED, Reason(code=code, text="bad luck"))
            if data.draw(st.integers(0, 19), label="money") == 0:
                world.seen = replace(world.seen, spent=SPENT)
    raise AssertionError("it never ends")


def test_a_round_waits_for_the_slow_only_so_long() -> None:
    world = World(campaign_of(**ROUNDS))
    world.until_training()
    first, second, third = (unit for unit, _ in world.of(TrainSpec))
    world.accept(first)
    assert world.step == Wait()
    world.later(5)
    world.accept(second)
    assert world.step == Wait(until=NOW + timedelta(seconds=65))
    world.later(60)
    step = world.step
    assert isinstance(step, Work)
    assert step.options["keys"] == (first.key, second.key)
    assert step.files["bases"] == 2 * (world.seen.made["start"].digest,)
    world.take(step)
    world.take(world.step)
    assert distill.withdrawn(world.seen) == {}, "a late delta still counts"
    world.accept(third)
    fourth, *_ = [unit for unit, spec in world.of(TrainSpec) if spec.round == 2]
    world.accept(*[unit for unit, spec in world.of(TrainSpec) if spec.round == 2])
    merge = world.step
    assert isinstance(merge, Work)
    assert third.key in merge.options["keys"], "it came too late for its own round, not for the next"
    assert fourth.key in merge.options["keys"]


def test_a_delta_of_a_round_too_long_ago_is_withdrawn() -> None:
    world = World(campaign_of(**ROUNDS))
    world.until_training()
    *quick, slow = (unit for unit, _ in world.of(TrainSpec))
    world.accept(*quick)
    world.later(60)
    for _ in range(2):
        world.take(world.step)
    world.accept(*[unit for unit, spec in world.of(TrainSpec) if spec.round == 2])
    for _ in range(2):
        world.take(world.step)
    (reason,) = distill.withdrawn(world.seen).values()
    assert list(distill.withdrawn(world.seen)) == [slow.unit_id]
    assert reason.code is ReasonCode.STALE_ROUND


def test_a_round_that_nobody_returns_ends_the_document() -> None:
    world = World(campaign_of(**ROUNDS))
    world.until_training()
    for unit, _ in world.of(TrainSpec):
        world.settle(unit, UnitState.FAILED, Reason(code=ReasonCode.TOO_MANY_FAILURES, text="12 leases expired"))
    step = world.step
    assert isinstance(step, Failed)
    assert step.reason.code is ReasonCode.ROUND_UNANSWERED
    assert "12 leases expired" in step.reason.text


@pytest.mark.parametrize("mode", [{}, ROUNDS], ids=["relay", "rounds"])
def test_a_run_that_diverges_keeps_its_last_good_state(mode: dict[str, Any]) -> None:
    world = World(campaign_of(**mode))
    world.until_training()
    world.accept()
    while not world.open:
        world.take(world.step)
    good = training.trained(world.seen, start=world.seen.made["start"].digest)
    assert good.steps == 4
    for unit in world.open:
        world.settle(unit, UnitState.FAILED, Reason(code=ReasonCode.DIVERGED, text="step 6: loss nan"))
    step = world.step
    assert isinstance(step, Work)
    assert (step.name, step.files["state"]) == ("adapter", (good.state,))
    world.take(step)
    note = distill.progress(world.seen, ()).note
    assert note is not None
    assert note.code is ReasonCode.DIVERGED and "step 6: loss nan" in note.text
    assert isinstance(world.run(), Publish), "what it had learnt by then is good enough"


def test_a_spent_budget_ends_training_where_it_is() -> None:
    world = World(campaign_of())
    world.until_training()
    world.accept()
    world.take(world.step)
    (under_way,) = world.open
    world.seen = replace(world.seen, spent=SPENT)
    assert distill.withdrawn(world.seen) == {under_way.unit_id: SPENT}
    step = world.step
    assert isinstance(step, Work) and step.name == "adapter"
    assert step.options["detail"]["steps"] == 4
    assert isinstance(world.run(), Publish)
    assert distill.progress(world.seen, ()).note == SPENT


def test_a_budget_spent_on_study_buys_no_cube() -> None:
    world = World(campaign_of())
    world.seen = replace(world.seen, spent=SPENT)
    assert world.step == Failed(reason=SPENT)


def test_below_the_bar_nothing_is_published_and_the_figures_are_told() -> None:
    world = World(campaign_of(quality=0.95))
    step = world.run()
    assert isinstance(step, Failed)
    assert step.reason.code is ReasonCode.BELOW_QUALITY
    for figure in ("93%", "95%", "2.000", "0.600", "0.500", "4 conversations"):
        assert figure in step.reason.text


def test_a_failed_unit_gives_its_reason_to_its_document() -> None:
    world = World(campaign_of())
    unit = world.open[0]
    world.settle(unit, UnitState.FAILED, Reason(code=ReasonCode.STATE_MISSING, text="its input tokens.bin is gone"))
    step = world.step
    assert isinstance(step, Failed)
    assert step.reason.code is ReasonCode.STATE_MISSING
    assert f"memgrid explain {unit.key[:12]}" in step.reason.text


def test_siblings_serve_as_distractors_once_all_have_started() -> None:
    world = World(campaign_of(siblings=True))
    world.seen = replace(world.seen, siblings={"other": None})
    while not isinstance(step := world.step, Wait) or world.open:
        world.take(step)
        world.accept()
    assert "start" in world.seen.made, "it has what it can have on its own"
    world.seen = replace(world.seen, siblings={"other": digest_of(b"other"), "another": digest_of(b"another")})
    world.take(world.step)
    ((_, spec),) = world.of(TrainSpec)
    # After "manual" comes "other", and then the first again.
    assert spec.distractors == (digest_of(b"other"), digest_of(b"another"))
    assert spec.distractor_share == 0.5


def test_of_many_siblings_only_the_next_few_are_distractors() -> None:
    world = World(campaign_of(siblings=True))
    far = {f"a{number:02d}": None for number in range(20)}
    near = {f"z{number:02d}": digest_of(b"%d" % number) for number in range(distill.SIBLINGS_MAX)}
    world.seen = replace(world.seen, siblings={**far, **near})
    world.until_training()
    ((_, spec),) = world.of(TrainSpec)
    assert spec.distractors == tuple(near.values()), "for the others it does not even wait"


def test_stages_and_steps_are_told_as_they_come() -> None:
    world = World(campaign_of())
    told = []
    while not isinstance(step := world.step, Publish):
        world.take(step)
        world.accept()
        progress = distill.progress(world.seen, ())
        told.append((progress.stage, progress.steps))
    assert list(dict.fromkeys(told)) == [
        (Stage.STUDY, 0),
        (Stage.TRAIN, 0),
        (Stage.TRAIN, 4),
        (Stage.TRAIN, 8),
        (Stage.TRAIN, 10),
        (Stage.EVALUATE, 10),
        (Stage.PUBLISH, 10),
    ]
    assert progress.quality == GOOD


def test_a_text_shorter_than_its_adapter_is_refused() -> None:
    campaign = campaign_of()
    adapter = campaign.distill.adapter.model_copy(update={"virtual_tokens": 500})
    campaign = campaign.model_copy(update={"distill": campaign.distill.model_copy(update={"adapter": adapter})})
    with pytest.raises(InvalidError, match="expected more than the 500 tokens of its adapter, found 500"):
        distill.new_documents(plan_of(), campaign, BASE)


def test_each_campaign_gets_its_recipe() -> None:
    assert recipe_of(campaign_of()) is distill
    assert recipe_of(other_campaign()) is activation
