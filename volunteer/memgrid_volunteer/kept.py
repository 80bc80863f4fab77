"""Half-done units on disk: what a kill or a pause cut off is gone on with when the same unit comes again.

A unit is computed in the folders of its lease. When that ends too early and states have been committed, its output
folder moves to `kept/<unit key>`, where no worker sees it, and from there to the next lease of that unit. There also
comes what another host of the same account did of a unit, packed (`packing.py`). Grids share none of it: a grid could
else plant a state from which a unit of another one goes on.
"""

from __future__ import annotations

import itertools
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from memgrid.log import get_logger
from memgrid.specs import unit_key_of
from memgrid.units import UnitKey
from memgrid_volunteer.isolation import Folders
from memgrid_volunteer.kinds.committed import COMMITTED_FILE, PART_NAME, read_committed
from memgrid_volunteer.outputs import output_names
from memgrid_volunteer.packing import unpack

KEPT_FOR = timedelta(days=1)
KEPT_MAX = 16
KEPT_BYTES_MAX = 16 << 30
_FOLDER = "kept"
_ARRIVING = "arriving"
_SPEC_BYTES_MAX = 1 << 20

log = get_logger(__name__)


def keep(lease: str, folders: Folders) -> bool:
    """Put a lease's committed states aside; False when there are none. The lease's folders go in any case."""
    unit, out = folders.inputs / lease, folders.outputs / lease
    spec = unit / "spec.json"
    try:
        if not (out / COMMITTED_FILE).is_file() or spec.stat().st_size > _SPEC_BYTES_MAX:
            return False
        place = place_of(unit_key_of(spec.read_bytes()), folders.work, tag_of(lease))
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        out.rename(place)
        return True
    except OSError as error:
        log.warning("half-done unit lost", folder=lease, error=str(error))
        return False
    finally:
        for folder in (unit, out):
            shutil.rmtree(folder, ignore_errors=True)


def tag_of(lease: str) -> str:
    """What a grid's leases and units begin with in folders that grids share.

    >>> tag_of("grid.example-443.lease-1"), tag_of("lease-1")
    ('grid.example-443.', '')
    """
    # No lease's id has a dot.
    tag, dot, _ = lease.rpartition(".")
    return tag + dot


def place_of(key: UnitKey, work: Path, tag: str = "") -> Path:
    """The folder of what is kept of a grid's unit, when there is any."""
    return work / _FOLDER / f"{tag}{key}"


def share_kept(key: UnitKey, work: Path, tag: str = "") -> float:
    """How much of a unit is done here; 0 for nothing."""
    line = read_committed(place_of(key, work, tag), key)
    return 0.0 if line is None else line.done


def arrive(file: Path, spec: bytes, work: Path, tag: str = "") -> float:
    """Keep what another host did of a unit, unless more of it is done here; the share that is done now.

    Raises InvalidError for what is no such thing, OSError when the disk does not take it; nothing is lost by either.
    """
    key = unit_key_of(spec)
    arriving = work / _ARRIVING / f"{tag}{key}"
    theirs, ours = unpack(file, spec, arriving).done, share_kept(key, work, tag)
    try:
        if ours < theirs:
            place = place_of(key, work, tag)
            place.parent.mkdir(exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            arriving.rename(place)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return max(ours, theirs)


def take_back(key: UnitKey, spec: bytes, out: Path, work: Path) -> bool:
    """Make a new lease's output folder, with what was kept of its unit; False when that is nothing."""
    try:
        place_of(key, work, tag_of(out.name)).rename(out)
    except OSError:
        out.mkdir()
        return False
    # Only whole files that a unit of this kind commits: nothing else that a worker left may come back.
    expected = {*output_names(spec), COMMITTED_FILE}
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_symlink() or not (path.name in expected or PART_NAME.fullmatch(path.name)):
            path.unlink()
    return True


def gather(work: Path, now: datetime) -> int:
    """After a start: keep what a killed process left behind, and empty the rest; how many units may go on."""
    folders = Folders(cache=work, work=work)
    if folders.inputs.is_dir():
        for unit in sorted(folders.inputs.iterdir()):
            keep(unit.name, folders)
    for path in work.iterdir():
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif path.name != _FOLDER:
            shutil.rmtree(path, ignore_errors=True)
    return forget_old(work, now)


def forget_old(work: Path, now: datetime) -> int:
    """Drop what was not asked for again within a day, and the oldest of too many or too large; how many are left."""
    folder = work / _FOLDER
    places = sorted(folder.iterdir(), key=_age, reverse=True) if folder.is_dir() else []
    oldest_s = (now - KEPT_FOR).timestamp()
    sizes = itertools.accumulate(_size_bytes(place) for place in places)
    fitting = [place for place, total in zip(places, sizes, strict=True) if total <= KEPT_BYTES_MAX]
    left = [place for place in fitting[:KEPT_MAX] if _age(place) >= oldest_s]
    for place in set(places) - set(left):
        shutil.rmtree(place, ignore_errors=True)
    return len(left)


def _size_bytes(place: Path) -> int:
    return sum(path.lstat().st_size for path in place.iterdir())


def _age(place: Path) -> float:
    """When its last state was committed; the older, the smaller."""
    try:
        return (place / COMMITTED_FILE).stat().st_mtime
    except OSError:
        return 0.0
