"""What a piece of work on the engine leaves for a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Files = Mapping[str, tuple[Path, ...]]
"""What a piece of work reads, by what it is to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFile:
    """A file to keep, under a name that is new to its document; `detail` is kept with it, as JSON.

    Without a file (`path` None) the detail is all there is to keep.
    """

    name: str
    path: Path | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
