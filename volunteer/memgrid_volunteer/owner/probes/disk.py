"""How much of the disk is free where the volunteer keeps its files?"""

from __future__ import annotations

import shutil
from pathlib import Path

from memgrid_volunteer.owner.probes.probe import Reading, Unseen


class DiskProbe:
    name = "disk"
    period_s = 10.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> Reading:
        try:
            return Reading(disk_free_bytes=shutil.disk_usage(self._folder).free)
        except OSError as error:
            raise Unseen(f"{self._folder}: {error.strerror}") from None
