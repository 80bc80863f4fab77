"""The volunteer's folder: who may read it, room, the cache and whether it is sound, preferences."""

from __future__ import annotations

import random
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from memgrid.digest import digest_of_file
from memgrid.errors import InvalidError
from memgrid.findings import Finding, Level
from memgrid.text import bytes_text
from memgrid_volunteer.home import Home, Place
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.places import KEY_FILE

_KEY_BYTES = 32
_SAMPLE_BYTES = 2 << 30
_SAMPLE_FILES = 16


def key(place: Place) -> Iterator[Finding]:
    """Whether a grid's key is there, whole, and its owner's alone. Its bytes are not read."""
    path = place.folder / KEY_FILE
    if not path.is_file():
        advice = "joining makes one; if there was one, restore it: memgrid volunteer key restore FILE"
        yield Finding(level=Level.BAD, about="key", text="there is none", advice=advice)
        return
    facts = path.stat()
    if facts.st_size != _KEY_BYTES:
        text = f"{facts.st_size} bytes, expected {_KEY_BYTES}: it is damaged"
        advice = "put it aside and restore it: memgrid volunteer key restore FILE"
        yield Finding(level=Level.BAD, about="key", text=text, advice=advice)
    elif sys.platform != "win32" and _others_may_read(path) and _others_may_read(place.folder):
        advice = f"chmod 700 {place.folder}; chmod 600 {path}; if others were there, they may have copied it"
        yield Finding(level=Level.BAD, about="key", text="others on this machine can read it", advice=advice)
    else:
        yield Finding(level=Level.OK, about="key", text="there, and readable by its owner only")


def room(home: Home) -> Iterator[Finding]:
    """The disk beneath the folder."""
    usage = shutil.disk_usage(home.folder)
    text = f"{bytes_text(usage.free)} of {bytes_text(usage.total)} free"
    try:
        reserve_bytes = float(PreferencesFile(home.folder).current().disk.free_min_gb) * 1e9
    except InvalidError:
        reserve_bytes = 0.0
    if usage.free < max(reserve_bytes, 1e9):
        advice = "free some; until then nothing is fetched. disk.free_min_gb says how much stays free"
        yield Finding(level=Level.BAD, about="disk", text=text, advice=advice)
    else:
        yield Finding(level=Level.OK, about="disk", text=text)


def cache(home: Home, rng: random.Random) -> Iterator[Finding]:
    """How much is in it, and whether some files, drawn by lot, are what their names say."""
    blobs = sorted(path for path in (home.cache / "blobs").glob("*") if path.is_file())
    sizes = {path: path.stat().st_size for path in blobs}
    text = f"{len(blobs)} files, {bytes_text(sum(sizes.values()))}"
    yield Finding(level=Level.FACT, about="cache", text=text)
    rng.shuffle(blobs)
    looked_bytes, damaged, looked = 0, [], 0
    for path in blobs[:_SAMPLE_FILES]:
        if looked and looked_bytes + sizes[path] > _SAMPLE_BYTES:
            continue
        looked, looked_bytes = looked + 1, looked_bytes + sizes[path]
        if digest_of_file(path) != f"sha256:{path.name}":
            damaged.append(path)
    if damaged:
        text = f"{len(damaged)} of {looked} files are not what their names say, the first: {damaged[0].name}"
        advice = "see to disk and memory; stop the volunteer and remove those files, they are fetched again"
        yield Finding(level=Level.BAD, about="cache", text=text, advice=advice)
    elif looked:
        text = f"{looked} files ({bytes_text(looked_bytes)}) were read and are sound"
        yield Finding(level=Level.OK, about="cache", text=text)


def preferences(home: Home) -> Iterator[Finding]:
    """Errors in the file, line by line."""
    file = PreferencesFile(home.folder)
    try:
        chosen = file.current()
    except InvalidError as error:
        for line in str(error).splitlines():
            yield Finding(level=Level.BAD, about="preferences", text=line, advice="nothing runs until it is mended")
        return
    for problem in file.problems:
        advice = "what the file said before holds until it is mended"
        yield Finding(level=Level.WARNING, about="preferences", text=problem, advice=advice)
    if not file.problems:
        yield Finding(level=Level.OK, about="preferences", text=f"preset {chosen.preset.value}")


def _others_may_read(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IXGRP | stat.S_IXOTH))
