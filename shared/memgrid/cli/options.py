"""Options that many commands share, and how results are printed for machines."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from memgrid.errors import InvalidError

GRID_VARIABLE = "MEMGRID_GRID"
TOKEN_VARIABLE = "MEMGRID_TOKEN"

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


def token_of(token: str | None) -> str | None:
    """The token itself, or the first line of the file that `@FILE` names: a process list shows no token then."""
    if token is None or not token.startswith("@"):
        return token
    path = Path(token[1:]).expanduser()
    try:
        return path.read_text().split("\n")[0].strip()
    except OSError as error:
        raise InvalidError(f"--token: expected a readable file, found {path}: {error.strerror}") from None


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
