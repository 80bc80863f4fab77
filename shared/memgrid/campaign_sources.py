"""The files a campaign names, found and looked at on the operator's machine before anything is sent."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memgrid.campaign import CampaignFile, SourcePattern
from memgrid.errors import InvalidError

FORMATS = {".txt": "txt", ".md": "md", ".markdown": "md", ".jsonl": "jsonl", ".parquet": "parquet"}
SOURCE_BYTES_MAX = 1 << 30
SOURCES_MAX = 10_000
_BLOCK_BYTES = 1 << 20
_FIRST_ROW_BYTES_MAX = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSource:
    """One file to bring; `uri` is its path relative to the campaign file, and what cubes will call it."""

    path: Path
    uri: str
    size_bytes: int
    format: str
    licence: str
    text_column: str
    id_column: str


def find_sources(campaign: CampaignFile, folder: Path, *, where: str = "campaign.yaml") -> tuple[LocalSource, ...]:
    """Every file the campaign's patterns match below `folder`, each once, in the order of the patterns.

    Raises InvalidError with one line, begun by `where`, for each pattern without a file and each unfit file.
    """
    problems: list[str] = []
    found: dict[Path, LocalSource] = {}
    for index, pattern in enumerate(campaign.sources):
        paths = _matches(pattern.path, folder)
        if not paths:
            problems.append(f"sources[{index}].path: expected files, found none at {pattern.path!r} below {folder}")
        for path in paths:
            if path in found:
                continue
            try:
                found[path] = _source(path, folder, pattern, campaign.publish.licence)
            except InvalidError as error:
                problems.append(f"sources[{index}].path: {error}")
    if len(found) > SOURCES_MAX:
        problems.append(f"sources: expected at most {SOURCES_MAX} files, found {len(found)}; use jsonl or parquet")
    if problems:
        raise InvalidError("\n".join(f"{where}: {problem}" for problem in problems))
    return tuple(found.values())


def _matches(pattern: str, folder: Path) -> list[Path]:
    """Files in a stable order; a plain path that exists is itself, whatever brackets it holds."""
    plain = folder / Path(pattern).expanduser()
    if plain.is_file():
        return [plain]
    root, relative = folder, Path(pattern).expanduser()
    if relative.is_absolute():
        root, relative = Path(relative.anchor), relative.relative_to(relative.anchor)
    try:
        return sorted(path for path in root.glob(str(relative)) if path.is_file())
    except (ValueError, NotImplementedError):
        return []


def _source(path: Path, folder: Path, pattern: SourcePattern, licence: str) -> LocalSource:
    uri = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise InvalidError(f"{uri}: expected one of {', '.join(FORMATS)}, found {path.suffix or 'no extension'!r}")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise InvalidError(f"{uri}: expected text, found an empty file")
    if size_bytes > SOURCE_BYTES_MAX:
        raise InvalidError(f"{uri}: expected at most {SOURCE_BYTES_MAX >> 20} MiB, found {size_bytes >> 20} MiB")
    if form == "parquet":
        _check_parquet(path, uri)
    else:
        _check_text(path, uri)
    if form == "jsonl":
        _check_first_row(path, uri, pattern)
    return LocalSource(
        path=path,
        uri=uri,
        size_bytes=size_bytes,
        format=form,
        licence=pattern.licence or licence,
        text_column=pattern.text_column,
        id_column=pattern.id_column,
    )


def _check_parquet(path: Path, uri: str) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise InvalidError(f"{uri}: expected a Parquet file, found other bytes")


def _check_text(path: Path, uri: str) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_blank = True
    for block in _blocks(path):
        if b"\0" in block:
            raise InvalidError(f"{uri}: expected text, found a binary file")
        try:
            is_blank = not decoder.decode(block).strip() and is_blank
        except UnicodeDecodeError as error:
            raise InvalidError(f"{uri}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x}") from None
    if decoder.getstate()[0]:
        raise InvalidError(f"{uri}: expected UTF-8 text, found half a character at the end")
    if is_blank:
        raise InvalidError(f"{uri}: expected text, found only white space")


def _check_first_row(path: Path, uri: str, pattern: SourcePattern) -> None:
    """The first row tells most mistakes; the coordinator reads them all."""
    with path.open("rb") as file:
        line = file.readline(_FIRST_ROW_BYTES_MAX)
    try:
        row = json.loads(line)
    except ValueError:
        raise InvalidError(f"{uri}: row 1: expected a JSON object, found {line[:40]!r}") from None
    if not isinstance(row, dict):
        raise InvalidError(f"{uri}: row 1: expected a JSON object, found {type(row).__name__}")
    for column in filter(None, (pattern.text_column, pattern.id_column)):
        if column not in row:
            raise InvalidError(f"{uri}: row 1: expected the key {column!r}, found {', '.join(row) or 'none'}")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
