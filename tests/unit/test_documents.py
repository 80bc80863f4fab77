"""Files of all four formats become documents, and what can't be meant is refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import digest_of
from memgrid.errors import InvalidError
from memgrid_coordinator.heavy.documents import iterate_documents, read_documents
from memgrid_coordinator.heavy.names import Names, slug_of
from memgrid_coordinator.heavy.sources import DocumentLimits, SourceFile, SourceFormat

OCI_COMPONENT = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")


def make_source(folder: Path, uri: str, content: bytes, **more: Any) -> SourceFile:
    """A file as the content store keeps it: under a name that says nothing."""
    path = folder / digest_of(content).removeprefix("sha256:")
    path.write_bytes(content)
    kind = SourceFormat(uri.rpartition(".")[2])
    return SourceFile(path=path, uri=uri, digest=digest_of(content), format=kind, licence="CC0-1.0", **more)


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(folder: Path, columns: dict[str, Any]) -> bytes:
    path = folder / "made.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path.read_bytes()


def test_a_text_file_is_one_document_as_it_stands(tmp_path: Path) -> None:
    text = "# Why\r\n\r\nBecause it’s so.\n"
    (document,) = read_documents([make_source(tmp_path, "docs/Why Not.md", text.encode())])
    assert (document.text, document.name, document.row) == (text, "why-not", None)
    assert (document.uri, document.licence) == ("docs/Why Not.md", "CC0-1.0")
    assert document.source == digest_of(text.encode())


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (document,) = read_documents([make_source(tmp_path, "a.txt", b"\xef\xbb\xbfhello")])
    assert document.text == "hello"


def test_one_json_line_is_one_document_and_blank_lines_count_as_rows(tmp_path: Path) -> None:
    content = lines({"text": "first"}) + b"\n" + lines({"text": "third", "other": [1]})
    documents = read_documents([make_source(tmp_path, "corpus.jsonl", content)])
    assert [(document.name, document.text, document.row) for document in documents] == [
        ("corpus-00001", "first", 1),
        ("corpus-00003", "third", 3),
    ]


def test_one_parquet_row_is_one_document(tmp_path: Path) -> None:
    columns = {"body": [f"text {i}" for i in range(150)], "number": range(150), "noise": [b"\0"] * 150}
    source = make_source(tmp_path, "peps.parquet", parquet(tmp_path, columns), text_column="body", id_column="number")
    documents = read_documents([source])
    assert [document.text for document in documents] == columns["body"]
    assert [document.name for document in documents][:2] == ["0", "1"]
    assert documents[149].where == "peps.parquet: row 150"


def test_parquet_text_may_be_dictionary_encoded(tmp_path: Path) -> None:
    column = pyarrow.array(["same", "same", "other"]).dictionary_encode()
    documents = read_documents([make_source(tmp_path, "d.parquet", parquet(tmp_path, {"text": column}))])
    assert [document.text for document in documents] == ["same", "same", "other"]


def test_names_stay_unique_across_files(tmp_path: Path) -> None:
    sources = [make_source(tmp_path, f"{folder}/README.md", folder.encode()) for folder in ("a", "b", "c")]
    assert [document.name for document in read_documents(sources)] == ["readme", "readme-2", "readme-3"]


def test_ids_of_another_script_stay_apart(tmp_path: Path) -> None:
    content = lines({"text": "x", "id": "記憶"}, {"text": "y", "id": "格子"})
    first, second = read_documents([make_source(tmp_path, "c.jsonl", content, id_column="id")])
    assert first.name != second.name
    assert OCI_COMPONENT.fullmatch(first.name)


BY_ID = {"id_column": "id"}
BAD: list[tuple[str, bytes, dict[str, str], str]] = [
    ("empty.txt", b"", {}, "expected text, found an empty file"),
    ("blank.md", b" \n\t\n", {}, "expected text, found nothing but white space"),
    ("photo.txt", b"\xff\xd8\xff\xe0", {}, "expected UTF-8 text, found binary content (byte 0xff at offset 0)"),
    ("nul.txt", b"abc\0def", {}, "expected text, found binary content (a NUL at character 3)"),
    ("long.txt", b"x" * 101, {}, "expected at most 100 characters a document, found 101"),
    ("longer.txt", b"x" * 401, {}, "expected at most 100 characters a document"),
    ("a.jsonl", b'{"text": "fine"}\n{"text": \n', {}, "row 2: expected one JSON object a line, found "),
    ("deep.jsonl", b"[" * 2400, {}, "row 1: expected one JSON object a line, found "),
    ("b.jsonl", b'["text"]\n', {}, "row 1: expected one JSON object a line, found list"),
    ("c.jsonl", lines({"body": 1}), {}, "row 1: expected a column 'text', found 'body'; set text_column"),
    ("d.jsonl", lines({"text": "x"}, {"text": 7}), {}, "row 2: expected text in 'text', found int"),
    ("e.jsonl", lines({"text": None}), {}, "row 1: expected text in 'text', found null"),
    ("f.jsonl", lines({"text": ""}), {}, "row 1: expected text, found nothing but white space"),
    ("g.jsonl", lines({"text": "a\0b"}), {}, "row 1: expected text, found binary content (a NUL at character 1)"),
    ("h.jsonl", b'{"text": "\\ud800"}\n', {}, "row 1: expected Unicode text, found half of a surrogate pair"),
    ("i.jsonl", b'{"text": "\xff"}\n', {}, "row 1: expected UTF-8 text, found binary content"),
    ("j.jsonl", b'{"text": "' + b"x" * 2400 + b'"}', {}, "row 1: expected at most 2,400 bytes a row"),
    ("k.jsonl", lines({"text": "x"}), BY_ID, "row 1: expected a column 'id', found 'text'; set id_column"),
    ("l.jsonl", lines({"text": "x", "id": True}), BY_ID, "row 1: expected a name or a number in 'id'"),
    ("m.jsonl", lines(*[{"text": "x", "id": "same"}] * 2), BY_ID, "row 2: expected a unique 'id', found 'same'"),
    ("n.jsonl", lines(*[{"text": "x"}] * 5), {}, "row 5: expected at most 4 documents"),
    ("o.jsonl", lines(*[{"text": "x" * 90}] * 3), {}, "row 3: expected at most 200 characters in all documents"),
    ("p.parquet", b"PAR1 not really", {}, "expected a Parquet file, found: "),
    ("big.md", b"x" * 5001, {}, "expected at most 5,000 bytes, found 5,001"),
]  # fmt: skip


@pytest.mark.parametrize(("uri", "content", "more", "message"), BAD, ids=[uri for uri, *_ in BAD])
def test_bad_sources_are_refused_in_one_line(
    tmp_path: Path, uri: str, content: bytes, more: dict[str, str], message: str
) -> None:
    limits = DocumentLimits(file_bytes=5000, documents=4, document_characters=100, total_characters=200)
    with pytest.raises(InvalidError) as caught:
        read_documents([make_source(tmp_path, uri, content, **more)], limits)
    assert str(caught.value).startswith(f"{uri}: {message}")
    assert "\n" not in str(caught.value)


BAD_TABLES: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"body": ["x"]}, {}, "t.parquet: expected a column 'text', found 'body'; set text_column"),
    ({"text": ["x"]}, {"id_column": "id"}, "t.parquet: expected a column 'id', found 'text'; set id_column"),
    ({"text": [1, 2]}, {}, "t.parquet: row 1: expected text in 'text', found int"),
    ({"text": ["x", None]}, {}, "t.parquet: row 2: expected text in 'text', found null"),
    ({"text": ["x"] * 5}, {}, "t.parquet: expected at most 4 documents, found 5"),
    ({"text": pyarrow.array([], type=pyarrow.string())}, {}, "sources: expected at least one document, found none"),
]


@pytest.mark.parametrize(("columns", "more", "message"), BAD_TABLES)
def test_bad_tables_are_refused_in_one_line(
    tmp_path: Path, columns: dict[str, Any], more: dict[str, str], message: str
) -> None:
    source = make_source(tmp_path, "t.parquet", parquet(tmp_path, columns), **more)
    with pytest.raises(InvalidError, match=re.escape(message)):
        read_documents([source], DocumentLimits(documents=4))


def test_a_missing_blob_is_named_by_the_operators_own_path(tmp_path: Path) -> None:
    source = make_source(tmp_path, "docs/a.md", b"x")
    source.path.unlink()
    with pytest.raises(InvalidError, match=r"docs/a\.md: expected a readable file, found No such file"):
        read_documents([source])


def test_rows_come_one_by_one_before_the_file_is_read(tmp_path: Path) -> None:
    content = lines({"text": "good"}) + b"not json\n"
    documents = iterate_documents([make_source(tmp_path, "s.jsonl", content)])
    assert isinstance(documents, Iterator)
    assert next(documents).text == "good"
    with pytest.raises(InvalidError, match=r"s\.jsonl: row 2"):
        next(documents)


@given(st.lists(st.text(max_size=120), max_size=12))
def test_any_names_become_distinct_legal_components(wishes: list[str]) -> None:
    names = Names()
    taken = [names.take(wish) for wish in wishes]
    assert len(set(taken)) == len(taken)
    assert all(OCI_COMPONENT.fullmatch(name) and len(name) <= 110 for name in taken)


@given(st.text(max_size=200))
def test_a_slug_is_its_own_slug(name: str) -> None:
    assert slug_of(slug_of(name)) == slug_of(name)


def test_numbered_names_do_not_collide_with_given_ones() -> None:
    names = Names()
    assert [names.take(wish) for wish in ("a", "a-2", "a", "a", "a-2")] == ["a", "a-2", "a-3", "a-4", "a-2-2"]
