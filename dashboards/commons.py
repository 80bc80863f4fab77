"""Dashboard: what the grid has made for everybody, and what having it saves."""

from __future__ import annotations

from typing import Any

from boards import board
from panels import BYTES, BYTES_PER_S, COUNT, FLOPS, PER_S, RATIO, bars, lines, number
from promql import Query, gauge, rate, share


def build() -> Any:
    """The dashboard, to be built."""
    return board(
        "commons",
        "memgrid / Commons",
        "The pool of a grid: its cubes, who fetches them, and the compute that is made once and saved by reuse.",
        ("At a glance", _glance()),
        ("Made once, saved by reuse", _saved()),
        ("Cubes", _cubes()),
        ("Use", _use()),
    )


def _all(series: str) -> str:
    return f"sum({gauge(series, 'kind')})"


def _glance() -> list[Any]:
    return [
        number("Cubes", "Cubes in the pool, each content once.", COUNT, Query(_all("memgrid_cubes"))),
        number("Bytes", "Of the cubes' payloads.", BYTES, Query(_all("memgrid_cube_payload_bytes"))),
        number("Tokens", "Of the text that cubes stand for.", COUNT, Query(_all("memgrid_cube_tokens"))),
        number(
            "Pulls in 24 hours",
            "Cubes fetched, their largest file to its end.",
            COUNT,
            Query("sum(increase(memgrid_cube_pulls_total[24h]))"),
        ),
        number("Made", "FLOPs that the cubes took to make, once.", FLOPS, Query(_all("memgrid_cube_produced_flops"))),
        number(
            "Saved in 24 hours",
            "FLOPs that whoever pulled a cube did not have to spend.",
            FLOPS,
            Query("sum(increase(memgrid_pulled_flops_total[24h]))"),
        ),
    ]


def _saved() -> list[Any]:
    return [
        lines(
            "Made and saved",
            "FLOPs that went into results, and those that readers and later campaigns did not have to spend, "
            "over the shown time.",
            FLOPS,
            Query("sum(increase(memgrid_accepted_flops_total[$__range]))", "made"),
            Query("sum(increase(memgrid_pulled_flops_total[$__range]))", "saved by pulls"),
            Query(gauge("memgrid_shared_flops"), "saved by sharing units, ever"),
        ),
        lines(
            "Saved for each FLOP made",
            "FLOPs saved by pulls in the last week, for each FLOP of results made in it: above one the grid gives "
            "more than it takes.",
            "x",
            Query(
                share(
                    "sum(increase(memgrid_pulled_flops_total[7d]))", "sum(increase(memgrid_accepted_flops_total[7d]))"
                ),
                "saved a FLOP",
            ),
        ),
        number(
            "Units shared",
            "Accepted units that more than one document was made of: computed once, used again.",
            COUNT,
            Query(gauge("memgrid_shared_units")),
            width=4,
        ),
        number(
            "Saved by sharing",
            "FLOPs that documents did not cost because a unit of theirs was there.",
            FLOPS,
            Query(gauge("memgrid_shared_flops")),
            width=4,
        ),
    ]


def _cubes() -> list[Any]:
    return [
        bars(
            "Cubes by kind",
            "As they are in the pool now.",
            COUNT,
            Query(gauge("memgrid_cubes", "kind"), "{{kind}}"),
            width=6,
        ),
        lines(
            "Cubes",
            "In the pool, by kind.",
            COUNT,
            Query(gauge("memgrid_cubes", "kind"), "{{kind}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Published an hour",
            "New cubes, by kind.",
            COUNT,
            Query("sum by (kind) (increase(memgrid_cubes_published_total[1h]))", "{{kind}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Payloads",
            "Bytes of the cubes, by kind.",
            BYTES,
            Query(gauge("memgrid_cube_payload_bytes", "kind"), "{{kind}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "FLOPs to make them",
            "By kind of cube.",
            FLOPS,
            Query(gauge("memgrid_cube_produced_flops", "kind"), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "Quality",
            "Mean share of the gap that trained cubes close between a model without the text and one that read it.",
            RATIO,
            Query(gauge("memgrid_cube_gap_closed_ratio", "kind"), "{{kind}}"),
        ),
        lines(
            "Tokens",
            "Of the text that cubes stand for, by kind.",
            COUNT,
            Query(gauge("memgrid_cube_tokens", "kind"), "{{kind}}"),
            stacked=True,
        ),
    ]


def _use() -> list[Any]:
    return [
        lines(
            "Pulls",
            "Cubes fetched, a second, by kind.",
            PER_S,
            Query(rate("memgrid_cube_pulls_total", "kind"), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "FLOPs saved by pulls",
            "A second, by kind of cube.",
            "si:FLOP/s",
            Query(rate("memgrid_pulled_flops_total", "kind"), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "Bytes served",
            "Blob bytes a second that left, by what their repository holds.",
            BYTES_PER_S,
            Query(
                rate('memgrid_transferred_bytes_total{direction="down"}', "repository_kind"), "{{repository_kind}}"
            ),
            stacked=True,
        ),
    ]
