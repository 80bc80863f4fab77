"""What happens on a node of a Ray cluster: it says whether it is fit for a coordinator, and calls the function."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from memgrid.digest import digest_of
from memgrid_coordinator.heavy import workers

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A file in a folder of the coordinator; whoever reads this content there sees the same folder."""

    path: Path
    content: str

    @staticmethod
    def leave(folder: Path) -> Mark:
        """Write a new one. Its name stays the same, so that killed coordinators leave no heap of them."""
        place = digest_of(f"{socket.gethostname()}:{folder}".encode()).removeprefix("sha256:")
        mark = Mark(path=folder / f".ray-{place[:12]}", content=secrets.token_hex(16))
        mark.path.write_text(mark.content)
        return mark

    def is_seen(self) -> bool:
        """Whether this machine sees it."""
        try:
            return self.path.read_text() == self.content
        except (OSError, UnicodeDecodeError):
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a node has to have: the coordinator's folders, under the same paths, and its version of memgrid."""

    marks: tuple[Mark, ...]
    version: str

    @staticmethod
    def of(folders: Iterable[Path]) -> Terms:
        """Those of this process."""
        return Terms(marks=tuple(Mark.leave(folder) for folder in folders), version=_version())

    def missing_here(self) -> str | None:
        """What this machine lacks, in words."""
        if (found := _version()) != self.version:
            return f"has memgrid {found}, the coordinator {self.version}"
        unseen = [str(mark.path.parent) for mark in self.marks if not mark.is_seen()]
        return f"does not see the coordinator's {' and '.join(unseen)}" if unseen else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """A node's answer instead of a function's: what it lacks."""

    node_id: str
    why: str


def call(terms: Terms, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T | Unfit:
    """Call a function here, if this node is fit for it.

    A node may join at any time, or lose a mount: so it is looked at each time, which takes a file of 32 bytes.
    """
    if (why := terms.missing_here()) is not None:
        import ray  # only here: on a node it is loaded, and on the coordinator this module is wanted without it

        return Unfit(node_id=ray.get_runtime_context().get_node_id(), why=why)
    workers.be_quiet()
    return function(*args, **kwargs)


def nothing() -> None:
    """What a node is asked to do when only its fitness is wanted."""


@cache
def _version() -> str:
    return version("memgrid")
