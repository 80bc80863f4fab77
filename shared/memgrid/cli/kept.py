"""`memgrid ls`: the cubes on this machine, told without what would take longer to load than to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from memgrid.cli.options import JsonOption, print_json
from memgrid.pool.cache import CachedCube, CubeCache
from memgrid.text import bytes_text


def ls(as_json: JsonOption = False) -> None:
    """List the cubes on this machine, the longest unused first."""
    cache = CubeCache()
    found = cache.cubes()
    if as_json:
        print_json([_cached_json(cube) for cube in found])
        return
    rows = [_row(cube) for cube in found]
    typer.echo(columns([("cube", "size", "last used", "digest"), *rows]) if rows else "no cubes here yet")
    typer.echo(f"{bytes_text(cache.used_bytes())} of at most {bytes_text(cache.limit_bytes)} used")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, each column as wide as its widest cell.

    >>> print(columns([("cube", "size"), ("a/b", "12 B")]))
    cube  size
    a/b   12 B
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(cube: CachedCube) -> tuple[str, ...]:
    used = cube.used_at.astimezone().strftime("%Y-%m-%d %H:%M")
    return cube.names[-1], bytes_text(cube.size_bytes), used, cube.manifest_digest[:19]


def _cached_json(cube: CachedCube) -> dict[str, Any]:
    return {
        "names": list(cube.names),
        "manifest_digest": cube.manifest_digest,
        "bytes": cube.size_bytes,
        "folder": str(cube.folder),
        "used_at": cube.used_at.isoformat(),
    }
