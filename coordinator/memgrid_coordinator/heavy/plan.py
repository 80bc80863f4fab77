"""Plan an activation campaign: documents become tokens, tokens become prefill units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.wrap import ids_of_documents, question_ids
from memgrid.digest import Digest, digest_of
from memgrid.errors import InvalidError
from memgrid_coordinator.heavy.chunks import (
    PlannedChunk,
    PlanParameters,
    Tokens,
    as_tokens,
    choose_chunk_tokens,
    cut,
)
from memgrid_coordinator.heavy.documents import Document, iterate_documents
from memgrid_coordinator.heavy.sources import DocumentLimits, SourceFile

_BATCH_CHARACTERS = 1_000_000
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDocument:
    """A document that will be one cube, and its chunks in order; `tokens` is the digest of all its ids."""

    name: str
    uri: str
    source: Digest
    licence: str
    tokens: Digest
    token_count: int
    chunks: tuple[PlannedChunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPlan:
    """What a campaign asks the grid to compute."""

    chunk_tokens: int
    documents: tuple[PlannedDocument, ...]

    @property
    def chunks(self) -> tuple[PlannedChunk, ...]:
        """Every unit once, each after the one it continues."""
        return tuple({chunk.key: chunk for document in self.documents for chunk in document.chunks}.values())


def plan_activation(
    sources: Sequence[SourceFile],
    model_folder: Path,
    model: ModelIdentity,
    parameters: PlanParameters,
    limits: DocumentLimits | None = None,
) -> ActivationPlan:
    """Read, tokenise and cut the documents; raises InvalidError in one line and then nothing is planned.

    The tokenizer is the model's own and runs no code of the model's folder.
    """
    chunk_tokens = choose_chunk_tokens(model.geometry, parameters)
    tokenizer = load_tokenizer(model_folder)
    _check_wrap(tokenizer, parameters)
    digest = model.digest
    documents = [
        _plan_document(document, tokens, chunk_tokens, digest, model, parameters)
        for document, tokens in tokenise(iterate_documents(sources, limits), tokenizer, parameters)
    ]
    return ActivationPlan(chunk_tokens=chunk_tokens, documents=tuple(documents))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, from its files alone; raises InvalidError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare Exception for a broken file
        reason = " ".join(str(error).split())[:200]
        raise InvalidError(f"model: its tokenizer can't be loaded: {type(error).__name__}: {reason}") from None


def longest_context(model: ModelIdentity) -> int | None:
    """The tokens a model can read, if its configuration says so."""
    return next((model.config[key] for key in _LENGTH_KEYS if isinstance(model.config.get(key), int)), None)


def tokenise(
    documents: Iterable[Document], tokenizer: Any, parameters: PlanParameters
) -> Iterator[tuple[Document, Tokens]]:
    """Each document with its tokens; only a few million characters are in memory at a time."""
    for batch in _batches(documents):
        found = ids_of_documents(tokenizer, [document.text for document in batch], parameters.wrap)
        yield from zip(batch, map(as_tokens, found), strict=True)


def _check_wrap(tokenizer: Any, parameters: PlanParameters) -> None:
    """Whether documents fit into the chat template, and questions behind them."""
    try:
        question_ids(tokenizer, "?", parameters.wrap)
    except InvalidError as error:
        raise InvalidError(f"activation.wrap: {error}") from None


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _plan_document(
    document: Document,
    tokens: Tokens,
    chunk_tokens: int,
    digest: Digest,
    model: ModelIdentity,
    parameters: PlanParameters,
) -> PlannedDocument:
    _check_tokens(document, tokens, model, parameters)
    return PlannedDocument(
        name=document.name,
        uri=document.uri if document.row is None else f"{document.uri}#row={document.row}",
        source=document.source,
        licence=document.licence,
        tokens=digest_of(tokens.tobytes()),
        token_count=len(tokens),
        chunks=tuple(cut(tokens, chunk_tokens, digest, model.geometry, parameters)),
    )


def _check_tokens(document: Document, tokens: Tokens, model: ModelIdentity, parameters: PlanParameters) -> None:
    where = f"{document.where}: document {document.name!r}"
    if not len(tokens):
        raise InvalidError(f"{where}: expected tokens, found none: the tokenizer drops all of its text")
    most = longest_context(model)
    if most is not None and len(tokens) > most:
        raise InvalidError(f"{where}: expected at most the {most} tokens its model can read, found {len(tokens)}")
    if len(tokens) > parameters.document_tokens_max:
        raise InvalidError(
            f"{where}: expected at most {parameters.document_tokens_max} tokens, found {len(tokens)}; split it"
        )
    if (highest := int(tokens.max())) >= model.geometry.vocab:
        raise InvalidError(f"{where}: token {highest} is not one of the model's {model.geometry.vocab}")
