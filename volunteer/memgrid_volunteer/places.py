"""What lies of one grid in a volunteer's home: who this machine is there, its key, and what awaits a verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memgrid.errors import InvalidError
from memgrid.signing import SigningKey
from memgrid.units import AccountId, HostId
from memgrid_volunteer.grid_ids import GridId, grid_id
from memgrid_volunteer.owner.files import read_whole, write_whole
from memgrid_volunteer.shares import SHARE_DEFAULT, SHARE_MAX

KEY_FILE = "volunteer.key"
MEMBERSHIP_FILE = "grid.json"
TEAM_FILE = "team.json"
MOVED_FILE = "moved.json"
"""Says that this host lives on another machine now."""
_LEFT_FILE = "left.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A grid this volunteer has joined, and who it is there."""

    url: str
    name: str
    account_id: AccountId
    host_id: HostId
    label: str
    share: int = SHARE_DEFAULT
    """Of this machine's time, beside other grids; with 0 it gets what no other has work for."""

    @property
    def page_url(self) -> str:
        """Where the grid's pages are: its address without the certificate.

        >>> member = Membership(url="https://a.example/#sha256=" + "ab" * 32, name="a", label="attic",
        ...     account_id=AccountId("a1"), host_id=HostId("h1"))
        >>> member.page_url, member.grid_id
        ('https://a.example', 'a.example-443')
        """
        return page_url(self.url)

    @property
    def grid_id(self) -> GridId:
        return grid_id(self.url)


def page_url(url: str) -> str:
    return url.partition("#")[0].rstrip("/")


def checked_share(share: int) -> int:
    """Raises InvalidError when it is none."""
    if not 0 <= share <= SHARE_MAX:
        raise InvalidError(f"share: expected a whole number from 0 to {SHARE_MAX}, found {share}")
    return share


class Place:
    """A folder for each grid, and in it files of one grid alone; each is replaced whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outbox = folder / "outbox"

    def make_place(self) -> None:
        self.outbox.mkdir(parents=True, exist_ok=True)
        # The key lies here.
        self.folder.chmod(0o700)

    def key(self) -> SigningKey:
        """The account: made when it is first asked for, and no other grid's."""
        return SigningKey.load_or_create(self.folder / KEY_FILE)

    @property
    def has_joined(self) -> bool:
        return (self.folder / MEMBERSHIP_FILE).exists()

    def membership(self) -> Membership:
        """Raises InvalidError when no grid has been joined."""
        value = self._read(MEMBERSHIP_FILE)
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
            raise InvalidError(f"{self.folder / MEMBERSHIP_FILE}: damaged; join again") from None

    @property
    def grid_url(self) -> str:
        """Where the joined grid's pages are; empty while there is none."""
        return self.membership().page_url if self.has_joined else ""

    def join(self, membership: Membership) -> None:
        write_whole(self.folder / MEMBERSHIP_FILE, asdict(membership))
        (self.folder / _LEFT_FILE).unlink(missing_ok=True)

    def give_share(self, share: int) -> None:
        """From now on, also while the volunteer runs. Raises InvalidError when it is none."""
        self.join(replace(self.membership(), share=checked_share(share)))

    def forget(self) -> None:
        """No grid any more; the key stays, for the account may join again, and so does whose it is."""
        if self.has_joined:
            write_whole(self.folder / _LEFT_FILE, {"url": self.membership().url})
        (self.folder / MEMBERSHIP_FILE).unlink(missing_ok=True)

    @property
    def left_url(self) -> str:
        """The grid that was here last; empty when one is here, or never was."""
        return str((self._read(_LEFT_FILE) or {}).get("url", ""))

    def join_code(self, url: str, team: str) -> str:
        """The code that lets others into a team of a grid; empty when this home never had it."""
        kept = self._read(TEAM_FILE) or {}
        return str(kept.get("code", "")) if (kept.get("url"), kept.get("team")) == (url, team) else ""

    def keep_join_code(self, url: str, team: str, code: str) -> None:
        """Nobody else can tell it again: the grid has only its digest."""
        write_whole(self.folder / TEAM_FILE, {"url": url, "team": team, "code": code})

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_whole(self.folder / name)
