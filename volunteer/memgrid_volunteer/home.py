"""A volunteer's folder: its grids, what it is told, how it stands, and that only one process uses it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from memgrid.errors import InvalidError
from memgrid_volunteer.grid_ids import grid_id
from memgrid_volunteer.owner.files import write_whole
from memgrid_volunteer.places import Membership, Place, page_url

__all__ = ["Home", "Membership", "Place", "default_home"]

_STATUS_FILE = "status.json"


def default_home() -> Path:
    """Where a volunteer lives unless told otherwise."""
    return platformdirs.user_data_path("memgrid") / "volunteer"


class Home(Place):
    """Files under one folder; each is replaced whole, so a reader never sees a part.

    The first grid that is joined has its place here itself, each further one in `grids/<host-port>`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.resolve())
        self.cache = self.folder / "cache"
        self.work = self.folder / "work"
        self._grids = self.folder / "grids"

    def make(self) -> None:
        for folder in (self.cache, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        for place in (self, *self.places()):
            place.make_place()

    def places(self) -> tuple[Place, ...]:
        """Of every grid that has been joined, the first first."""
        others = sorted(self._grids.iterdir()) if self._grids.is_dir() else []
        return tuple(place for place in (self, *map(Place, others)) if place.has_joined)

    def joined(self) -> tuple[Place, ...]:
        """The same, at least one. Raises InvalidError when no grid has been joined."""
        places = self.places()
        if not places:
            self.membership()  # says what is amiss
        return places

    def place_for(self, url: str) -> Place:
        """Where a grid is, was, or would be joined. Raises InvalidError when it is no grid's address."""
        wanted = grid_id(url)
        places = self.places()
        for place in places:
            if place.membership().grid_id == wanted:
                return place
        is_former = bool(self.left_url) and grid_id(self.left_url) == wanted
        other = Place(self._grids / wanted)
        # Whoever left and comes again finds its key, and with it its account.
        if not self.has_joined and (is_former or not (places or other.folder.exists())):
            return self
        return other

    def find(self, wanted: str | None) -> Place:
        """A joined grid by its name or address; the only one for None. Raises InvalidError."""
        found = [place for place in self.joined() if wanted is None or _is_called(place.membership(), wanted)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(f"{place.membership().name} ({place.grid_url})" for place in self.joined())
        if wanted is not None and not found:
            raise InvalidError(f"{wanted[:200]!r}: no grid of that name or address was joined, only {names}")
        raise InvalidError(f"which grid? one of {names}")

    def empty(self) -> None:
        """What is nobody's when no grid is joined any more; keys and preferences stay."""
        for folder in (self.cache, self.work):
            shutil.rmtree(folder, ignore_errors=True)
        (self.folder / _STATUS_FILE).unlink(missing_ok=True)

    def status(self) -> dict[str, Any]:
        """What the last run wrote; empty before the first."""
        return self._read(_STATUS_FILE) or {}

    def write_status(self, status: dict[str, Any]) -> None:
        write_whole(self.folder / _STATUS_FILE, status, durable=False)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one process that runs here; raises InvalidError when another does."""
        with (self.folder / "lock").open("a") as file:
            # Who only looks whether somebody runs has the lock for a moment, once a second.
            if not any(_try_lock(file.fileno(), wait_s=wait_s) for wait_s in (0.0, 0.02, 0.05, 0.1)):
                raise InvalidError(f"{self.folder}: a volunteer is running here already")
            yield

    @property
    def is_running(self) -> bool:
        if not (self.folder / "lock").exists():
            return False
        with (self.folder / "lock").open("a") as file:
            return not _try_lock(file.fileno())


def _is_called(membership: Membership, wanted: str) -> bool:
    return wanted in (membership.name, membership.grid_id) or page_url(wanted) == membership.page_url


def _try_lock(handle: int, *, wait_s: float = 0.0) -> bool:
    time.sleep(wait_s)
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system: trust the owner
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
