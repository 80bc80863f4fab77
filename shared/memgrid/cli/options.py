"""Options that many commands share, and how results are printed for machines."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from memgrid.access import TOKEN_VARIABLE
from memgrid.errors import InvalidError

GRID_VARIABLE = "MEMGRID_GRID"

GridOption = Annotated[
    str | None, typer.Option("--grid", envvar=GRID_VARIABLE, help="The grid: https://host:port", show_default=False)
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar=TOKEN_VARIABLE, help="An operator's token, or @FILE.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def grid_of(grid: str | None) -> str:
    """The grid that was named; raises InvalidError when none was."""
    if grid:
        return grid
    raise InvalidError(f"no grid named: use --grid https://host:port or set {GRID_VARIABLE}")


def trusted_keys(given: list[str] | None) -> list[bytes]:
    """Raw Ed25519 public keys from the hex digits of `--key`; raises InvalidError."""
    return [_key(text) for text in given or []]


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise InvalidError(f"--key: expected 64 hex digits, found {text[:80]!r}")
    return key


def remember_globally(grid: str | None, token: str | None) -> None:
    """Let `memgrid --grid URL COMMAND` mean the same as `memgrid COMMAND --grid URL`."""
    if grid is not None:
        os.environ[GRID_VARIABLE] = grid
    if token is not None:
        os.environ[TOKEN_VARIABLE] = token


def print_json(value: Any) -> None:
    """One JSON document on standard output, ready for `jq`."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
