"""A volunteer's folder: who it is, what it is told, how it stands, and that only one process uses it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from memgrid.errors import InvalidError
from memgrid.signing import SigningKey
from memgrid.units import AccountId, HostId
from memgrid_volunteer.owner.files import replace_text

MOVED_FILE = "moved.json"
"""Says that this home's host lives on another machine now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The grid this volunteer has joined, and who it is there."""

    url: str
    name: str
    account_id: AccountId
    host_id: HostId
    label: str


def default_home() -> Path:
    """Where a volunteer lives unless told otherwise."""
    return platformdirs.user_data_path("memgrid") / "volunteer"


class Home:
    """Files under one folder; each is replaced whole, so a reader never sees a part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.cache = self.folder / "cache"
        self.outbox = self.folder / "outbox"
        self.work = self.folder / "work"

    def make(self) -> None:
        for folder in (self.folder, self.cache, self.outbox, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        # The key lies here.
        self.folder.chmod(0o700)

    def key(self) -> SigningKey:
        return SigningKey.load_or_create(self.folder / "volunteer.key")

    def membership(self) -> Membership:
        """Raises InvalidError when no grid has been joined."""
        value = self._read("grid.json")
        if value is None and (self.folder / MOVED_FILE).exists():
            raise InvalidError(
                f"{self.folder}: this host was moved to another machine; to begin anew here:"
                " memgrid volunteer join URL --label NAME, another name"
            )
        if value is None:
            raise InvalidError(f"{self.folder}: no grid joined yet; begin with: memgrid volunteer join URL")
        try:
            return Membership(**value)
        except TypeError:
            raise InvalidError(f"{self.folder / 'grid.json'}: damaged; join again") from None

    @property
    def grid_url(self) -> str:
        """Where the joined grid's pages are; empty while there is none."""
        return self.membership().url.partition("#")[0].rstrip("/") if (self.folder / "grid.json").exists() else ""

    def join(self, membership: Membership) -> None:
        write_whole(self.folder / "grid.json", asdict(membership))

    def forget(self) -> None:
        """No grid any more; the key stays, for the account may join again."""
        (self.folder / "grid.json").unlink(missing_ok=True)
        (self.folder / "status.json").unlink(missing_ok=True)

    def join_code(self, url: str, team: str) -> str:
        """The code that lets others into a team of a grid; empty when this home never had it."""
        kept = self._read("team.json") or {}
        return str(kept.get("code", "")) if (kept.get("url"), kept.get("team")) == (url, team) else ""

    def keep_join_code(self, url: str, team: str, code: str) -> None:
        """Nobody else can tell it again: the grid has only its digest."""
        write_whole(self.folder / "team.json", {"url": url, "team": team, "code": code})

    def status(self) -> dict[str, Any]:
        """What the last run wrote; empty before the first."""
        return self._read("status.json") or {}

    def write_status(self, status: dict[str, Any]) -> None:
        write_whole(self.folder / "status.json", status, durable=False)

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

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_whole(self.folder / name)


def read_whole(path: Path) -> dict[str, Any] | None:
    """What `write_whole` wrote; None when there is no such file. Raises InvalidError when it is something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise InvalidError(f"{path}: damaged; remove it") from None
    if not isinstance(value, dict):
        raise InvalidError(f"{path}: damaged; remove it")
    return value


def write_whole(path: Path, value: dict[str, Any], *, durable: bool = True) -> None:
    """Replace a JSON file in one step; `durable`: it survives a power cut."""
    replace_text(path, json.dumps(value, indent=1), durable=durable)


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
