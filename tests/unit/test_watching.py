"""What an operator is shown of a distillation: lines in a log, pictures on a terminal, a plan, results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from memgrid.campaign_plan import plan_from_message
from memgrid.campaign_status import CampaignStatus, status_from_message
from memgrid.cli.picturing import DOCUMENTS_SHOWN_MAX, ending_of, endings_of, picture, progress_text, summary_of
from memgrid.cli.planning import plan_line, plan_table
from memgrid.cli.results import results_json, results_notes, results_table
from memgrid.cli.watching import SPARSE_EVERY_S, Lines
from memgrid.clock import ManualClock
from memgrid.v1 import campaigns_pb2 as pb
from memgrid.v1 import common_pb2

QUALITY = pb.Quality(
    nll_none=2.13,
    nll_cube=0.81,
    nll_text=0.49,
    gap_closed=0.8049,
    items=32,
    kl_none=1.4,
    kl_cube=0.21,
    exact_cube=0.25,
)


def training(*losses: float) -> pb.Document:
    points = [pb.Loss(step=step, loss=loss) for step, loss in enumerate(losses, start=1)]
    return pb.Document(
        name="manual",
        state="running",
        tokens=512,
        units=9,
        units_accepted=6,
        stage="train",
        steps=len(losses),
        steps_total=64,
        losses=points,
    )


def published() -> pb.Document:
    return pb.Document(
        name="manual",
        state="published",
        tokens=512,
        units=12,
        units_accepted=12,
        stage="publish",
        steps=48,
        steps_total=64,
        cube="handbook/manual:1.0.0",
        cube_digest="sha256:" + "a" * 64,
        quality=QUALITY,
        note=common_pb2.Reason(code="budget_spent", text="the campaign's 2 device-hours are spent"),
    )


def failed() -> pb.Document:
    reason = common_pb2.Reason(code="below_quality", text="0.31 of the gap closed, at least 0.5 is asked")
    return pb.Document(name="manual", state="failed", tokens=512, stage="evaluate", reason=reason, quality=QUALITY)


def status_of(*documents: pb.Document, state: str = "running", eta_s: int = 75) -> CampaignStatus:
    return status_from_message(
        pb.Campaign(
            campaign_id="c0ffee",
            name="handbook",
            state=state,
            recipe="distill",
            units=9,
            units_by_state={"open": 3, "accepted": 6},
            tokens=512,
            device_hours=0.5,
            documents=documents,
            eta=Duration(seconds=eta_s),
        )
    )


def drawn(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def said(statuses: Sequence[CampaignStatus]) -> list[str]:
    """The lines of a log that is shown so many states, each a while after the other."""
    console = Console(file=io.StringIO(), width=200)
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    lines = Lines(console, clock)
    for status in statuses:
        lines.update(status)
        clock.advance(timedelta(seconds=SPARSE_EVERY_S))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_training_is_summed_up_by_stage_steps_and_loss() -> None:
    assert summary_of(status_of(training(3.0, 2.0, 1.5))) == (
        "handbook running: 1 document (1 in train), 3 of 64 steps, loss 1.50, units: 3 open, 6 accepted,"
        " about 1 min 15 s to go"
    )


def test_a_log_tells_progress_and_what_the_cube_is_worth() -> None:
    lines = said([status_of(training(3.0)), status_of(training(3.0, 2.0)), status_of(published(), state="completed")])
    assert "1 of 64 steps, loss 3.00" in lines[0]
    assert "2 of 64 steps, loss 2.00" in lines[1]
    assert lines[2] == (
        "published handbook/manual:1.0.0 (512 tokens): closes 80 % of the gap to having read the text"
        " (NLL without it 2.13, with the cube 0.81, with it 0.49; n = 32); training ended early:"
        " the campaign's 2 device-hours are spent"
    )
    assert lines[3].startswith("handbook completed")


def test_a_cube_that_is_not_good_enough_is_told_with_its_figures() -> None:
    (document,) = status_of(failed()).documents
    assert ending_of(document).startswith(
        "manual: failed: 0.31 of the gap closed, at least 0.5 is asked: closes 80 % of the gap"
    )


def test_only_what_is_over_has_an_ending_and_a_long_list_is_cut() -> None:
    assert endings_of(status_of(training(3.0))) == []
    lines = endings_of(status_of(training(3.0), *[failed()] * (DOCUMENTS_SHOWN_MAX + 2)))
    assert len(lines) == DOCUMENTS_SHOWN_MAX + 1
    assert lines[-1] == "… and 2 more"


def test_progress_of_a_distillation_is_in_steps() -> None:
    assert progress_text(status_of(training(3.0), training(3.0, 2.0))) == "3 of 128 steps"


def test_a_terminal_shows_the_curve_of_one_document_and_bars_of_many() -> None:
    one = drawn(picture(status_of(training(3.0, 2.0, 1.5))))
    assert "manual: loss by step" in one
    assert "3.00 ┤" in one and "1.50 ┤" in one
    many = drawn(picture(status_of(*[training(3.0, 2.0, 1.5)] * 3)))
    assert "loss by step" not in many
    assert many.count("█▃▁ 1.50") == 3


def test_a_loss_that_is_no_number_does_not_stop_the_watch() -> None:
    shown = drawn(picture(status_of(training(3.0, float("nan"), 2.0))))
    assert "█▁ 2.00" in shown


def test_a_paused_campaign_is_not_over() -> None:
    assert not status_of(training(3.0), state="paused").is_over
    assert status_of(failed(), state="failed").is_over


def test_a_campaign_of_an_older_grid_has_no_recipe() -> None:
    status = status_from_message(pb.Campaign(campaign_id="c", name="handbook", state="running", tokens=8))
    assert status.recipe == "activation"
    assert "0 of 8 tokens" in summary_of(status)


def test_results_name_cubes_their_quality_and_how_to_fetch_them() -> None:
    status = status_of(published(), state="completed")
    table = drawn(results_table(status))
    cells = ["handbook/manual:1.0.0", "512", "2.13", "0.81", "0.49", "80", "%", "32", "sha256:aaaaaaaaaaaa"]
    assert table.splitlines()[1].split() == cells
    assert results_notes(status)[-1] == "fetch one with: memgrid pull handbook/manual:1.0.0"
    (document,) = results_json(status)["documents"]
    assert document["quality"]["gap_closed"] == 0.8049
    assert document["cube_digest"] == "sha256:" + "a" * 64


def test_results_say_why_there_is_no_cube() -> None:
    status = status_of(failed(), state="failed")
    assert "manual: failed" in drawn(results_table(status))
    assert results_notes(status) == ["manual: 0.31 of the gap closed, at least 0.5 is asked"]


def a_plan(hosts: int) -> pb.CampaignPlan:
    expected = {"expected": Duration(seconds=90)} if hosts else {}
    stage = pb.PlannedStage(
        kind="study",
        units=5,
        units_present=2,
        flops=10**13,
        flops_left=6 * 10**12,
        bytes=3 * 10**6,
        replicas=1,
        **expected,
    )
    other = pb.PlannedStage(
        kind="train", units=4, flops=10**12, flops_left=10**12, bytes=10**6, replicas=1, **expected
    )
    return pb.CampaignPlan(
        recipe="distill",
        documents=2,
        tokens=1024,
        stages=[stage, other],
        units=9,
        units_present=2,
        flops=11 * 10**12,
        flops_left=7 * 10**12,
        hosts=hosts,
        flops_per_s=4e10 * hosts,
        **expected,
    )


def test_a_plan_has_a_row_a_stage_and_a_sum() -> None:
    plan = plan_from_message(a_plan(hosts=3))
    lines = [line.split() for line in drawn(plan_table(plan)).splitlines()]
    assert lines[1] == ["study", "5", "2", "1", "6.0", "TFLOP", "3.0", "MB", "1", "min", "30", "s"]
    assert lines[-1] == ["total", "9", "2", "7.0", "TFLOP", "4.0", "MB", "1", "min", "30", "s"]
    assert "3 hosts are here" in plan_line(plan)
    assert plan.to_json()["bytes"] == 4 * 10**6


def test_a_plan_without_hosts_promises_no_time() -> None:
    plan = plan_from_message(a_plan(hosts=0))
    assert plan.expected_s is None
    assert "no host is here" in plan_line(plan)
    assert "min" not in drawn(plan_table(plan))
