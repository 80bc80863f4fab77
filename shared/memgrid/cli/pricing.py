"""A cube's price tag, and what pulling it costs here against computing it here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from memgrid.clock import Clock, SystemClock
from memgrid.cube.info import BreakEven, CubeInfo
from memgrid.pool.offers import Offer
from memgrid.text import bytes_text, flops_text, seconds_text

_PROBE_SIZE = 1024
_PROBE_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The two rates a comparison rests on, and whether each was measured just now or given."""

    line_bytes_per_s: float
    line_is_measured: bool
    flops_per_s: float
    flops_are_measured: bool


def measured_flops_per_s(clock: Clock | None = None) -> float:
    """What numpy reaches here on float32 matrix products: the best of a few, a tenth of a second each.

    A GPU computes far more, and a prefill of short texts reaches less than a large product: it is an estimate.
    """
    clock = clock or SystemClock()
    a = np.ones((_PROBE_SIZE, _PROBE_SIZE), dtype=np.float32)
    best_s = float("inf")
    for _ in range(_PROBE_ROUNDS):
        started_s = clock.monotonic_s()
        np.matmul(a, a)
        best_s = min(best_s, clock.monotonic_s() - started_s)
    return float(2 * _PROBE_SIZE**3 / max(best_s, 1e-9))


def price_json(offer: Offer, rates: Rates) -> dict[str, Any]:
    even = _break_even(offer, rates)
    return {**asdict(even), **asdict(rates), "is_worth_pulling": even.is_worth_pulling}


def price_table(offer: Offer, rates: Rates) -> Table:
    """The tag as people read it; estimates are called so, with what they rest on."""
    info = offer.info
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    spent = f"{flops_text(info.produced_flops)} for the payload"
    if info.spent_flops > info.produced_flops:
        spent += f", at least {flops_text(info.spent_flops)} with replicas"
    for name, value in (
        ("cube", offer.reference),
        ("title", info.title),
        ("base model", f"{info.base}, weights {info.base_weights}"),
        ("content", _content(info)),
        *_quality_rows(info),
        ("licence", info.licence),
        ("sources", ", ".join(info.sources)),
        (
            "download",
            f"{bytes_text(offer.download_bytes)}, of which {bytes_text(offer.missing_bytes)} are not here yet",
        ),
        ("made with", spent),
        ("saves", f"{flops_text(info.saved_flops)} of reading, at every attach"),
        ("pulling", _pull_line(offer, rates)),
        ("computing" if info.quality is None else "training", _compute_line(offer, rates)),
        ("so", _advice(_break_even(offer, rates))),
        ("digest", info.digest),
    ):
        table.add_row(name, value)
    return table


def _content(info: CubeInfo) -> str:
    if info.adapter is None:
        return f"{info.tokens:,} tokens, {info.layout}, {info.wrap}, {info.store_dtype}"
    size = f"{bytes_text(info.bytes)} in {info.store_dtype}"
    return (
        f"{info.adapter}, {size}: {info.compression:.1f} times less than the KV cache of its {info.tokens:,} tokens"
    )


def _quality_rows(info: CubeInfo) -> list[tuple[str, str]]:
    """What a trained cube reaches between the model without its text and the model that read it."""
    if info.quality is None:
        return []
    found = info.quality
    return [
        (
            "quality",
            f"{found['gap_closed']:.0%} of the gap between no text and the text in context closed,"
            f" on {found['items']} held-out conversations of {found['tokens']:,} tokens",
        ),
        (
            "NLL a token",
            f"{found['nll_none']:.3f} without the text, {found['nll_cube']:.3f} with the cube,"
            f" {found['nll_text']:.3f} with the text",
        ),
        ("KL a token", f"{found['kl_none']:.3f} without the text, {found['kl_cube']:.3f} with the cube"),
        (
            "right",
            f"{found['correct_cube']:.0%} of tokens and {found['exact_cube']:.0%} of whole answers;"
            f" without the text {found['correct_none']:.0%} and {found['exact_none']:.0%}",
        ),
    ]


def _break_even(offer: Offer, rates: Rates) -> BreakEven:
    return offer.info.break_even(line_bytes_per_s=rates.line_bytes_per_s, compute_flops_per_s=rates.flops_per_s)


def _pull_line(offer: Offer, rates: Rates) -> str:
    how = "measured on the first megabytes just now" if rates.line_is_measured else "as given"
    even = _break_even(offer, rates)
    return f"about {seconds_text(even.pull_s)} at {bytes_text(rates.line_bytes_per_s)}/s ({how})"


def _compute_line(offer: Offer, rates: Rates) -> str:
    how = "numpy's matrix product here; a GPU computes more" if rates.flops_are_measured else "as given"
    even = _break_even(offer, rates)
    return f"about {seconds_text(even.compute_s)} at {flops_text(rates.flops_per_s)}/s ({how})"


def _advice(even: BreakEven) -> str:
    better = "pulling is faster here" if even.is_worth_pulling else "making it oneself is faster here"
    return f"{better}; both take as long on a line of {bytes_text(even.line_needed_bytes_per_s)}/s"
