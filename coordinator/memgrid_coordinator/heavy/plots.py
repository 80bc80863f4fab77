"""Draw a training run and its result as SVG: the same numbers, the same bytes, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from memgrid.cube.parts import Quality

_SIZE_INCHES = (6.4, 3.2)
# Mid-tones on a transparent ground: each has a contrast of at least 3 to 1 against white and against near-black.
GREY, BLUE, GREEN = "#7d8590", "#2f81f7", "#2da44e"
_STYLE = {
    "svg.hashsalt": "memgrid",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_SMOOTHED_SHARE = 16
"""The line is the mean over a window of one in so many of the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """One logical step: how many answer tokens had been trained on after it, and its loss in nats a token.

    In rounds, where several hosts take the same step, there is one point for each.
    """

    step: int
    tokens: int
    loss: float


def loss_plot(trace: Sequence[LossPoint]) -> bytes:
    """Loss over steps, with the tokens trained on along the top; a point a step and a line through their mean."""
    points = sorted(trace, key=lambda point: (point.step, point.tokens))
    steps, losses = [point.step for point in points], [point.loss for point in points]
    with drawing() as (figure, axes):
        axes.scatter(steps, losses, s=8, color=BLUE, alpha=0.35, linewidths=0, gid="steps")
        axes.plot(*_smoothed(points), color=BLUE, linewidth=2, gid="mean")
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per answer token")
        axes.set_ylim(bottom=0 if min(losses, default=0) >= 0 else None)
        if points and points[-1].step > 0 and points[-1].tokens > 0:
            _tokens_axis(axes, points[-1].tokens / points[-1].step)
        return svg_of(figure, f"Loss while training, over {len(points)} steps")


def quality_plot(quality: Quality) -> bytes:
    """NLL of held-out answers as three bars: without the text, with the cube, with the text in context."""
    names = ["without the text", "with this cube", "with the text in context"]
    values = [quality.nll_none, quality.nll_cube, quality.nll_text]
    with drawing() as (figure, axes):
        bars = axes.barh(names, values, color=[GREY, BLUE, GREEN], height=0.6)
        axes.bar_label(bars, labels=[f" {value:.3f}" for value in values])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(*values, 1e-9))
        axes.set_xlabel("NLL of held-out answers, nats per token (less is better)")
        axes.set_title(
            f"{quality.gap_closed:.0%} of the gap closed; {quality.items} conversations, {quality.tokens:,} tokens",
            fontsize=10,
        )
        return svg_of(figure, "Quality of the cube between the model without the text and the model that read it")


def _tokens_axis(axes: Any, tokens_per_step: float) -> None:
    top = axes.secondary_xaxis(
        "top", functions=(lambda step: step * tokens_per_step, lambda tokens: tokens / tokens_per_step)
    )
    top.set_xlabel("answer tokens trained on")
    top.xaxis.set_major_formatter(lambda tokens, _: _short(tokens))


def _short(tokens: float) -> str:
    """A count as axes show it.

    >>> _short(0), _short(850), _short(12_500), _short(2_000_000)
    ('0', '850', '12.5k', '2M')
    """
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if abs(tokens) >= size:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}"


def _smoothed(points: Sequence[LossPoint]) -> tuple[list[int], list[float]]:
    """The mean loss over a window of steps, each step once."""
    by_step: dict[int, list[float]] = {}
    for point in points:
        by_step.setdefault(point.step, []).append(point.loss)
    steps = sorted(by_step)
    means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
    reach = max(1, len(steps) // _SMOOTHED_SHARE) // 2
    windows = [means[max(0, at - reach) : at + reach + 1] for at in range(len(steps))]
    return steps, [sum(window) / len(window) for window in windows]


@contextmanager
def drawing(
    rows: int = 1, columns: int = 1, *, size_inches: tuple[float, float] = _SIZE_INCHES
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes (an array of them when there are several) in our style.

    Matplotlib's global state is as before when it closes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size_inches, layout="tight")
        figure.patch.set_alpha(0)
        axes = figure.subplots(rows, columns)
        for each in figure.axes:
            each.patch.set_alpha(0)
        yield figure, axes


def svg_of(figure: Any, title: str) -> bytes:
    """The file; `title` is what a screen reader says."""
    written = BytesIO()
    # No date, no version: what is drawn decides the bytes.
    figure.savefig(written, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    return written.getvalue()
