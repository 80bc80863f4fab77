"""Style, script and icon: read once, named by their content, so that browsers may keep them for good."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from memgrid.digest import digest_of

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HASH_LENGTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file as it is served."""

    path: str
    content: bytes
    content_type: str


class Assets:
    """Everything in `static/`, by the address that its content gives it."""

    def __init__(self) -> None:
        self._by_name = {
            file.name: _asset(file.name, file.read_bytes())
            for file in resources.files(__package__).joinpath("static").iterdir()
        }
        self._by_path = {asset.path: asset for asset in self._by_name.values()}

    def url(self, name: str) -> str:
        """Where a file is, for a template."""
        return self._by_name[name].path

    def at(self, path: str) -> Asset | None:
        """What lies at an address; None for one that this release does not have."""
        return self._by_path.get(path)


def _asset(name: str, content: bytes) -> Asset:
    stem, _, suffix = name.rpartition(".")
    tag = digest_of(content).removeprefix("sha256:")[:_HASH_LENGTH]
    return Asset(path=f"/static/{stem}.{tag}.{suffix}", content=content, content_type=_TYPES[suffix])
