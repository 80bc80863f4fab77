"""Plan a distillation: documents become chunks that models can talk about, and the tokens around the talk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.terms import subject_terms
from memgrid.digest import Digest, token_bytes
from memgrid.errors import InvalidError
from memgrid.kinds.frame import build_frame, context_ids
from memgrid_coordinator.heavy.documents import Document, iterate_documents
from memgrid_coordinator.heavy.plan import load_tokenizer, longest_context
from memgrid_coordinator.heavy.sources import DocumentLimits, SourceFile

_TRIES = 16
_FILLED = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyParameters:
    """What a campaign decides about a plan; `answer_room` is what a question and its answer take behind a chunk."""

    chunk_tokens: int
    answer_room: int
    document_tokens_max: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StudiedDocument:
    """A document that will be one cube. `text` and `chunks` are token ids (little-endian u32) as contexts.

    `text` is all of it, or as much as the model can read: what a start state is made of.
    """

    name: str
    uri: str
    source: Digest
    licence: str
    token_count: int
    text: bytes
    chunks: tuple[bytes, ...]
    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillPlan:
    """`frame` is the content of frame.json, one for all documents."""

    frame: bytes
    documents: tuple[StudiedDocument, ...]


def plan_distill(
    sources: Sequence[SourceFile],
    model_folder: Path,
    model: ModelIdentity,
    parameters: StudyParameters,
    limits: DocumentLimits | None = None,
) -> DistillPlan:
    """Read, tokenise and cut the documents; raises InvalidError in one line and then nothing is planned."""
    if find_spec("torch") is None:
        raise InvalidError(
            "recipe: expected activation, found distill: this grid's coordinator was installed without what "
            "begins and replays training (memgrid[coordinator])"
        )
    tokenizer = load_tokenizer(model_folder)
    frame = build_frame(tokenizer)
    longest = longest_context(model)
    room = parameters.answer_room + max(len(ask) for ask in frame.asks) + len(frame.teacher_before)
    if longest is not None and parameters.chunk_tokens + room > longest:
        raise InvalidError(
            f"distill.study.chunk_tokens: expected at most {longest - room}, so that a conversation fits behind a "
            f"chunk into the {longest} tokens that the model can read, found {parameters.chunk_tokens}"
        )
    documents = tuple(
        _plan_document(document, tokenizer, model, longest, parameters)
        for document in iterate_documents(sources, limits)
    )
    return DistillPlan(frame=frame.to_bytes(), documents=documents)


def cut_text(text: str, tokenizer: Any, chunk_tokens: int) -> Iterator[tuple[str, list[int]]]:
    """Pieces of a text with their ids as contexts, each of at most `chunk_tokens`; together they are the text.

    They are as even as can be, and are cut behind a sentence or a word where one ends nearby: half a fact is none.
    """
    around = len(context_ids(tokenizer, ""))
    room = chunk_tokens - around
    if room < 1:
        raise InvalidError(f"distill.study.chunk_tokens: expected more than {around}, found {chunk_tokens}")
    left = len(context_ids(tokenizer, text)) - around
    while text:
        # Cuts fall before what was wanted, so none is wanted full: the last piece must not be a mere rest.
        pieces = 1 if left <= room else max(2, ceil(left / (_FILLED * room)))
        wanted = len(text) if pieces == 1 else _end_nearby(text, -(-len(text) // pieces))
        for _ in range(_TRIES):
            ids = context_ids(tokenizer, text[:wanted])
            if len(ids) <= chunk_tokens:
                break
            # Words are not evenly long: the first guess may be too much.
            wanted = _end_nearby(text, max(1, int(wanted * 0.95 * chunk_tokens / len(ids))))
        else:
            raise InvalidError(f"distill.study.chunk_tokens: expected more than {chunk_tokens}")
        if text[:wanted].strip():
            yield text[:wanted], ids
        text = text[wanted:]
        left -= len(ids) - around


def _end_nearby(text: str, wanted: int) -> int:
    """Where a sentence or at least a word ends, at most `wanted` characters in and not before half of that."""
    for end in (". ", ".\n", "\n", " "):
        found = text.rfind(end, wanted // 2, wanted)
        if found >= 0:
            return found + len(end)
    return wanted


def _plan_document(
    document: Document, tokenizer: Any, model: ModelIdentity, longest: int | None, parameters: StudyParameters
) -> StudiedDocument:
    where = f"{document.where}: document {document.name!r}"
    ids = context_ids(tokenizer, document.text)
    if len(ids) > parameters.document_tokens_max:
        raise InvalidError(
            f"{where}: expected at most {parameters.document_tokens_max} tokens, found {len(ids)}; split it"
        )
    chunks = [chunk for _, chunk in cut_text(document.text, tokenizer, parameters.chunk_tokens)]
    highest = max(max(chunk) for chunk in chunks)
    if highest >= model.geometry.vocab:
        raise InvalidError(f"{where}: token {highest} is not one of the model's {model.geometry.vocab}")
    return StudiedDocument(
        name=document.name,
        uri=document.uri if document.row is None else f"{document.uri}#row={document.row}",
        source=document.source,
        licence=document.licence,
        token_count=len(ids),
        text=token_bytes(ids[:longest]),
        chunks=tuple(token_bytes(chunk) for chunk in chunks),
        terms=subject_terms(document.text),
    )
