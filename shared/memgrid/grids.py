"""The grids this user has met: their addresses, certificates and keys, in one file."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from memgrid.errors import InvalidError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedGrid:
    """What a grid showed when it was first met.

    `certificate_pem` is None where the machine's authorities vouch for it; `grid_key` signs its cubes.
    """

    url: str
    certificate_pem: str | None
    grid_key: bytes


def memgrid_home() -> Path:
    """Where a user's settings for memgrid lie: $MEMGRID_HOME, or what the system has for such things."""
    chosen = os.environ.get("MEMGRID_HOME")
    return Path(chosen) if chosen else platformdirs.user_config_path("memgrid")


class GridTrust:
    """The file `grids.json` in memgrid's home."""

    def __init__(self, home: Path) -> None:
        self.path = home / "grids.json"

    def find(self, url: str) -> TrustedGrid | None:
        return next((grid for grid in self.all() if grid.url == url), None)

    def all(self) -> tuple[TrustedGrid, ...]:
        """Every grid met, by address; raises InvalidError when the file has been damaged."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        try:
            entries = json.loads(content)
            grids = [
                TrustedGrid(
                    url=str(url),
                    certificate_pem=entry["certificate_pem"],
                    grid_key=bytes.fromhex(entry["grid_key"]),
                )
                for url, entry in entries.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidError(f"{self.path}: not a list of grids; repair or remove it") from None
        return tuple(sorted(grids, key=lambda grid: grid.url))

    def remember(self, grid: TrustedGrid) -> None:
        """Add or replace one grid; readers see the old file or the new one, never a part."""
        if self.find(grid.url) == grid:
            return
        entries = {
            known.url: {"certificate_pem": known.certificate_pem, "grid_key": known.grid_key.hex()}
            for known in (*self.all(), grid)
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".grids-")
        with os.fdopen(handle, "w") as file:
            json.dump(entries, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(self.path)
