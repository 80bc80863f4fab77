"""Read the rows of an operator's files: text, JSON lines, Parquet, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from memgrid.digest import Digest
from memgrid.errors import InvalidError

ROWS_A_BATCH = 64


class SourceFormat(StrEnum):
    """How a source is read."""

    TXT = "txt"
    MD = "md"
    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a campaign: a blob of the content store, with what the operator said about it."""

    path: Path
    uri: str
    """Where the operator had it: what errors and cubes call it."""
    digest: Digest
    format: SourceFormat
    licence: str
    text_column: str = "text"
    id_column: str = ""
    """Empty: documents are numbered by row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLimits:
    """What no honest source exceeds; a row is checked before the next is read."""

    file_bytes: int = 16 << 30
    documents: int = 100_000
    document_characters: int = 8_000_000
    total_characters: int = 256_000_000


Row = tuple[int | None, str, str]
"""Row number (None: the whole file), the id it gives itself (or ""), its text."""


def rows_of(source: SourceFile, limits: DocumentLimits) -> Iterator[Row]:
    """Every row of a source; raises InvalidError naming file, row and what was expected."""
    _check_file(source, limits)
    return _READERS[source.format](source, limits)


def _check_file(source: SourceFile, limits: DocumentLimits) -> None:
    try:
        size_bytes = source.path.stat().st_size
    except OSError as error:
        raise InvalidError(f"{source.uri}: expected a readable file, found {error.strerror}") from None
    if size_bytes == 0:
        raise InvalidError(f"{source.uri}: expected text, found an empty file")
    if size_bytes > limits.file_bytes:
        raise InvalidError(f"{source.uri}: expected at most {limits.file_bytes:,} bytes, found {size_bytes:,}")


def _text_file(source: SourceFile, limits: DocumentLimits) -> Iterator[Row]:
    # No character takes more than four bytes: a longer file is refused unread.
    if source.path.stat().st_size > limits.document_characters * 4:
        raise InvalidError(f"{source.uri}: expected at most {limits.document_characters:,} characters a document")
    yield None, "", _decoded(source.path.read_bytes(), source.uri)


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise InvalidError(f"{where}: expected UTF-8 text, found binary content ({found})") from None


def _jsonl(source: SourceFile, limits: DocumentLimits) -> Iterator[Row]:
    # JSON may write a character as \uXXXX\uXXXX: twelve bytes. Other columns get as much again.
    line_bytes_max = limits.document_characters * 24
    with source.path.open("rb") as file:
        number = 0
        while line := file.readline(line_bytes_max + 1):
            number += 1
            where = f"{source.uri}: row {number}"
            if len(line) > line_bytes_max:
                raise InvalidError(f"{where}: expected at most {line_bytes_max:,} bytes a row")
            if not line.strip():
                continue
            row = _json_object(_decoded(line, where), where)
            yield number, _id_in(row, source, where), _text_in(row, source, where)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{where}: expected one JSON object a line, found {error}") from None
    if not isinstance(value, dict):
        raise InvalidError(f"{where}: expected one JSON object a line, found {type(value).__name__}")
    return value


def _text_in(row: dict[str, Any], source: SourceFile, where: str) -> str:
    if source.text_column not in row:
        raise InvalidError(f"{where}: expected a column {source.text_column!r}, found {_few(row)}; set text_column")
    text = row[source.text_column]
    if not isinstance(text, str):
        found = "null" if text is None else type(text).__name__
        raise InvalidError(f"{where}: expected text in {source.text_column!r}, found {found}")
    return text


def _id_in(row: dict[str, Any], source: SourceFile, where: str) -> str:
    if not source.id_column:
        return ""
    if source.id_column not in row:
        raise InvalidError(f"{where}: expected a column {source.id_column!r}, found {_few(row)}; set id_column")
    given = row[source.id_column]
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise InvalidError(f"{where}: expected a name or a number in {source.id_column!r}, found {str(given)[:80]!r}")
    return str(given)


def _few(columns: Iterable[str]) -> str:
    named = sorted(columns)
    shown = ", ".join(repr(column[:40]) for column in named[:8])
    return (shown or "none") + (f" and {len(named) - 8} more" if len(named) > 8 else "")


def _parquet(source: SourceFile, limits: DocumentLimits) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(source.path, memory_map=True) as file:
            columns = _parquet_columns(file.schema_arrow, source)
            if file.metadata.num_rows > limits.documents:
                raise InvalidError(
                    f"{source.uri}: expected at most {limits.documents:,} documents, found {file.metadata.num_rows:,}"
                )
            number = 0
            for batch in file.iter_batches(batch_size=ROWS_A_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{source.uri}: row {number}"
                    yield number, _id_in(row, source, where), _text_in(row, source, where)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InvalidError(f"{source.uri}: expected a Parquet file, found: {reason}") from None


def _parquet_columns(schema: Any, source: SourceFile) -> list[str]:
    wanted = [source.text_column, *([source.id_column] if source.id_column else [])]
    for key, column in zip(("text_column", "id_column"), wanted, strict=False):
        if column not in schema.names:
            raise InvalidError(f"{source.uri}: expected a column {column!r}, found {_few(schema.names)}; set {key}")
    return wanted


_READERS: dict[SourceFormat, Callable[[SourceFile, DocumentLimits], Iterator[Row]]] = {
    SourceFormat.TXT: _text_file,
    SourceFormat.MD: _text_file,
    SourceFormat.JSONL: _jsonl,
    SourceFormat.PARQUET: _parquet,
}
