"""Make an operator's files into documents: one a text file, one a row of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memgrid.digest import Digest
from memgrid.errors import InvalidError
from memgrid_coordinator.heavy.names import Names, stem_of
from memgrid_coordinator.heavy.sources import DocumentLimits, SourceFile, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text that becomes one cube; `name` is unique in its campaign and safe as part of a repository."""

    name: str
    text: str
    uri: str
    source: Digest
    licence: str
    row: int | None = None
    """Row of the source, from 1; None where the whole file is the document."""

    @property
    def where(self) -> str:
        """The document's place, as errors name it."""
        return self.uri if self.row is None else f"{self.uri}: row {self.row}"


def read_documents(sources: Sequence[SourceFile], limits: DocumentLimits | None = None) -> list[Document]:
    """All documents of the sources, in order; raises InvalidError naming file, row and what was expected."""
    return list(iterate_documents(sources, limits))


def iterate_documents(sources: Iterable[SourceFile], limits: DocumentLimits | None = None) -> Iterator[Document]:
    """The same, one by one: of a table only a few rows are in memory, of its columns only those asked for."""
    limits = limits or DocumentLimits()
    names = Names()
    count = characters = 0
    for source in sources:
        for row, given_id, text in rows_of(source, limits):
            document = _document(source, row, given_id, text, limits, names)
            count += 1
            characters += len(text)
            if count > limits.documents:
                raise InvalidError(f"{document.where}: expected at most {limits.documents:,} documents")
            if characters > limits.total_characters:
                raise InvalidError(
                    f"{document.where}: expected at most {limits.total_characters:,} characters in all documents"
                )
            yield document
    if not count:
        raise InvalidError("sources: expected at least one document, found none")


def _document(
    source: SourceFile, row: int | None, given_id: str, text: str, limits: DocumentLimits, names: Names
) -> Document:
    where = source.uri if row is None else f"{source.uri}: row {row}"
    _check_text(text, where, limits)
    if given_id and not names.is_first(source.digest, given_id):
        raise InvalidError(f"{where}: expected a unique {source.id_column!r}, found {given_id[:80]!r} again")
    stem = stem_of(source.uri)
    wish = given_id or (stem if row is None else f"{stem}-{row:05d}")
    return Document(
        name=names.take(wish), text=text, uri=source.uri, source=source.digest, licence=source.licence, row=row
    )


def _check_text(text: str, where: str, limits: DocumentLimits) -> None:
    if not text.strip():
        raise InvalidError(f"{where}: expected text, found nothing but white space")
    if "\0" in text:
        found = f"a NUL at character {text.index(chr(0))}"
        raise InvalidError(f"{where}: expected text, found binary content ({found})")
    if len(text) > limits.document_characters:
        most = f"{limits.document_characters:,} characters a document"
        raise InvalidError(f"{where}: expected at most {most}, found {len(text):,}")
    if not _is_unicode(text):
        raise InvalidError(f"{where}: expected Unicode text, found half of a surrogate pair")


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
