"""What is done of a half-done unit, on disk: a line that names files and their digests, written after the files.

Knows files, not what is in them; a kind checks that for itself. Whatever comes between two writes, the former line
and the files it names are whole. Nothing here says on which device the work was done: any other may go on with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from memgrid.digest import Digest, canonical_json, digest_of, digest_of_file
from memgrid.distill.state import write_whole
from memgrid.units import ComputeDtype, UnitKey

COMMITTED_FILE = "committed.json"
"""It is handed in to nobody."""
COMMIT_EVERY_S = 20.0
"""Of computing; with the longest micro-batch on top this is what a kill costs. Shorter units write nothing at all:
caches are large, and so are the disks' bills for writing them."""
PART_NAME = re.compile(r"part-[0-9]{4}\.safetensors")
"""Files that are only for going on with the unit; others that are committed are outputs too."""
_LINE_BYTES_MAX = 1 << 20
_WRITTEN_BYTES_PER_S = 300e6
"""Written, synced and hashed on an ordinary disk."""
_SHARE_FOR_WRITING = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What the line says: seconds computed so far, in which dtype, and each file's digest in the order written."""

    compute_s: float
    done: float
    """The share of the unit that is in the files."""
    compute_dtype: ComputeDtype
    states: Mapping[str, Digest] = field(default_factory=dict)


class Checkpoint:
    """The committed files of one unit in its output folder; `found` is what a former run left, None for nothing."""

    def __init__(
        self,
        out_dir: Path,
        unit: UnitKey,
        *,
        wanted: ComputeDtype,
        resolved: ComputeDtype,
        every_s: float = COMMIT_EVERY_S,
    ) -> None:
        """`wanted` is the dtype of the spec, `resolved` what that is on this device when the unit begins here.

        A unit that began in another dtype, which AUTO allows, goes on in that one: two in one result agree with
        nobody's.
        """
        self._out_dir = out_dir
        self._unit = unit
        self._every_s = every_s
        found = read_committed(out_dir, unit)
        if found is not None and wanted not in (ComputeDtype.AUTO, found.compute_dtype):
            found = None
        self.found = found
        self.compute_dtype = resolved if found is None else found.compute_dtype
        self._states: dict[str, Digest] = {}
        self._last_s = 0.0 if found is None else found.compute_s

    @property
    def computed_s(self) -> float:
        """Of the former run; 0 when there was none."""
        return 0.0 if self.found is None else self.found.compute_s

    def whole(self) -> list[Path]:
        """The files of the former run in order, up to the first that is not what was written."""
        files = []
        for name, digest in ({} if self.found is None else self.found.states).items():
            path = self._out_dir / name
            if path.is_symlink() or not path.is_file() or digest_of_file(path) != digest:
                break
            files.append(path)
        return files

    def go_on_from(self, files: Collection[Path]) -> None:
        """These hold: what is committed from now on comes after them. The other parts are removed."""
        kept = {path.name for path in files}
        states = {} if self.found is None else self.found.states
        self._states = {name: digest for name, digest in states.items() if name in kept}
        self._remove_parts(without=kept)

    def is_due(self, compute_s: float, size_bytes: int = 0) -> bool:
        """Whether so much has been computed since the last commit that it should not be lost.

        What takes about as long to write, all `size_bytes` of it, as to compute again is not worth it.
        """
        since_s = compute_s - self._last_s
        return since_s >= max(self._every_s, size_bytes / _WRITTEN_BYTES_PER_S / _SHARE_FOR_WRITING)

    def add_part(self, content: bytes, compute_s: float, *, done: float) -> bool:
        """Commit one part more, with which the share `done` is there.

        False when the disk does not take it, which is no reason to stop computing.
        """
        number = 1 + max((_number(name) for name in self._parts()), default=0)
        return self._try({_part_name(number): content}, compute_s, done, without=())

    def replace_parts(self, contents: Sequence[bytes], compute_s: float, *, done: float) -> bool:
        """Commit parts that say it all, instead of the former ones; False as above."""
        former = self._parts()
        # Other names: until the line is written, the former ones are what counts.
        first = 1 if all(_number(name) > len(contents) for name in former) else 1 + max(map(_number, former))
        files = {_part_name(first + index): content for index, content in enumerate(contents)}
        return self._try(files, compute_s, done, without=former)

    def add(self, name: str, content: bytes, compute_s: float, *, done: float) -> None:
        """Commit a file that is an output too; parts were for the way there."""
        self._add({name: content}, compute_s, done, without=self._parts())

    def _try(self, files: Mapping[str, bytes], compute_s: float, done: float, *, without: Collection[str]) -> bool:
        try:
            self._add(files, compute_s, done, without=without)
        except OSError:
            self._last_s = compute_s  # not again with every micro-batch
            return False
        return True

    def _parts(self) -> list[str]:
        return [name for name in self._states if PART_NAME.fullmatch(name)]

    def _add(self, files: Mapping[str, bytes], compute_s: float, done: float, *, without: Collection[str]) -> None:
        """First the files, then the line, then nobody needs the others."""
        for name, content in files.items():
            write_whole(self._out_dir / name, content)
        kept = {name: digest for name, digest in self._states.items() if name not in without}
        states = kept | {name: digest_of(content) for name, content in files.items()}
        line = {
            "unit": self._unit,
            "version": version("memgrid"),
            "compute_s": compute_s,
            "done": done,
            "compute_dtype": self.compute_dtype.value,
            "states": [[name, digest] for name, digest in states.items()],
        }
        write_whole(self._out_dir / COMMITTED_FILE, canonical_json(line))
        self._states = states
        self._last_s = compute_s
        for name in without:
            (self._out_dir / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """The unit is done: what was only for going on with it goes."""
        self._remove_parts()

    def _remove_parts(self, without: Collection[str] = ()) -> None:
        for path in self._out_dir.iterdir():
            if PART_NAME.fullmatch(path.name) and path.name not in without:
                path.unlink()


def _part_name(number: int) -> str:
    return f"part-{number:04d}.safetensors"


def _number(name: str) -> int:
    return int(name[5:9])


def read_committed(out_dir: Path, unit: UnitKey) -> Committed | None:
    """The line, when it is of this unit and this release; a release may compute otherwise than the one before."""
    path = out_dir / COMMITTED_FILE
    try:
        if path.is_symlink() or path.stat().st_size > _LINE_BYTES_MAX:
            return None
        line = json.loads(path.read_bytes())
        if (line["unit"], line["version"]) != (unit, version("memgrid")):
            return None
        states = {str(name): Digest(str(digest)) for name, digest in line["states"]}
        found = Committed(
            compute_s=float(line["compute_s"]),
            done=float(line["done"]),
            compute_dtype=ComputeDtype(line["compute_dtype"]),
            states=states,
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    is_sane = math.isfinite(found.compute_s) and found.compute_s >= 0 and 0 <= found.done <= 1
    is_sane = is_sane and not any("/" in name for name in states)
    return found if is_sane and found.compute_dtype is not ComputeDtype.AUTO else None
