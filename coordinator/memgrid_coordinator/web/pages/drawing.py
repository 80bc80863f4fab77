"""What each page plots, from its view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memgrid.charts import Chart, Part, bars, columns, curve, line, parts
from memgrid.cube.info import CubeInfo
from memgrid.text import count_text
from memgrid_coordinator.lifecycle import LeaseState, UnitState
from memgrid_coordinator.views import CampaignView, DocumentLine, GridView
from memgrid_coordinator.web.pages.words import reason_text, speed_text, tick_text

_UNIT_TONES = (
    (UnitState.ACCEPTED, "good"),
    (UnitState.PROVISIONAL, "held"),
    (UnitState.CHECKING, "busy"),
    (UnitState.OPEN, "open"),
    (UnitState.WAITING, "quiet"),
    (UnitState.FAILED, "bad"),
    (UnitState.CANCELLED, "gone"),
)
_REPORT_TONES = ((LeaseState.AGREED, "good"), (LeaseState.REPORTED, "busy"), (LeaseState.REJECTED, "bad"))
_REPORT_WORDS = {LeaseState.REPORTED: "being checked"}
_CURVES_MAX = 6
_REASONS_MAX = 5
_MACHINES = (("a laptop's processor", 2e11), ("a desktop's GPU", 4e13), ("a data centre's GPU", 4e14))
"""What people have, in FLOP/s that a prefill really reaches there, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What making a cube takes on one kind of machine, and the line from which pulling it is faster."""

    name: str
    flops_per_s: float
    compute_s: float
    line_bytes_per_s: float


def work(view: GridView) -> Chart:
    """What was credited, as a speed."""
    width_s, span = view.span.width.total_seconds(), view.span.length
    values = [(bucket.at, bucket.flops / width_s) for bucket in view.history]
    return columns(
        "Compute that counted", values, words=speed_text, moment=lambda at: tick_text(at, span), head="speed"
    )


def pool(view: GridView) -> Chart:
    """How many cubes there were."""
    values = [(at, float(cubes)) for at, cubes in view.pool.growth]
    return line(
        "Cubes in the pool", values, words=_whole, moment=lambda at: tick_text(at, view.span.length), head="cubes"
    )


def progress(view: CampaignView) -> Chart:
    """Tokens of a campaign that are accepted."""
    values = [(at, float(tokens)) for at, tokens in view.progress]
    lasted = values[-1][0] - values[0][0]
    return line(
        f"Tokens accepted, of {count_text(view.line.tokens)}",
        values,
        words=count_text,
        moment=lambda at: tick_text(at, lasted),
        head="tokens",
        top=float(max(view.line.tokens, 1)),
    )


def loss(losses: Sequence[tuple[int, float]], name: str = "") -> Chart | None:
    """How training went; nothing where nothing was trained."""
    if not losses:
        return None
    title = f"Loss while training{f' {name}' if name else ''}, nats per answer token"
    return curve(title, losses, words=lambda value: f"{value:.3g}", heads=("step", "loss"))


def curves(documents: Sequence[DocumentLine]) -> list[Chart]:
    """Of the first documents that are being trained, or were."""
    found = [loss(document.losses, document.name) for document in documents if document.losses]
    return [chart for chart in found[:_CURVES_MAX] if chart is not None]


def units(by_state: Mapping[str, int]) -> tuple[Part, ...]:
    return parts([(state.value, by_state.get(state, 0), tone) for state, tone in _UNIT_TONES])


def reports(by_state: Mapping[str, int]) -> tuple[Part, ...]:
    return parts([
        (_REPORT_WORDS.get(state, state.value), by_state.get(state, 0), tone) for state, tone in _REPORT_TONES
    ])  # fmt: skip


def rejections(reasons: Sequence[tuple[str, int]]) -> tuple[Part, ...]:
    return bars([(reason_text(code), count) for code, count in reasons[:_REASONS_MAX]], "bad")


def devices(counts: Sequence[tuple[str, int]]) -> tuple[Part, ...]:
    return bars(counts, "good")


def prices(info: CubeInfo) -> list[Price]:
    """When pulling pays, by machine; nothing for a cube that costs nothing to make."""
    if not info.produced_flops:
        return []
    evens = [
        (name, speed, info.break_even(line_bytes_per_s=1.0, compute_flops_per_s=speed)) for name, speed in _MACHINES
    ]
    return [
        Price(
            name=name,
            flops_per_s=speed,
            compute_s=even.compute_s,
            line_bytes_per_s=even.line_needed_bytes_per_s,
        )
        for name, speed, even in evens
    ]


def _whole(value: float) -> str:
    """Half a cube is none.

    >>> _whole(2.0), _whole(0.5)
    ('2', '')
    """
    return count_text(value) if value == int(value) else ""
