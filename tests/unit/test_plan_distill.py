"""A distillation is planned: texts are cut evenly where sentences end, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.digest import digest_of, token_ids
from memgrid.errors import InvalidError
from memgrid.kinds.frame import ChatFrame, context_ids
from memgrid_coordinator.heavy.plan_distill import StudyParameters, cut_text, plan_distill
from memgrid_coordinator.heavy.sources import SourceFile, SourceFormat
from tests.models import make_tokenizer

SENTENCES = "The valve opens at three bar and closes at two. Nobody has to trust the donor of a part. "
TOKENIZER = make_tokenizer()
OVERHEAD = len(context_ids(TOKENIZER, ""))


@pytest.fixture(scope="module")
def identity(tiny_model_folder: Path) -> ModelIdentity:
    return identity_of_folder(tiny_model_folder, "models/tiny")


def source(path: Path, text: str) -> SourceFile:
    path.write_text(text)
    return SourceFile(
        path=path, uri=path.name, digest=digest_of(text.encode()), format=SourceFormat.TXT, licence="MIT"
    )


def parameters(**changed: Any) -> StudyParameters:
    return StudyParameters(**{"chunk_tokens": 96, "answer_room": 40, "document_tokens_max": 5000, **changed})


@settings(deadline=None)
@given(
    text=st.text(st.sampled_from("ab .\n中é🙂"), min_size=1, max_size=400).filter(str.strip),
    chunk_tokens=st.integers(OVERHEAD + 8, 200),
)
def test_pieces_fit_and_together_are_the_text(text: str, chunk_tokens: int) -> None:
    pieces = list(cut_text(text, TOKENIZER, chunk_tokens))
    assert all(len(ids) <= chunk_tokens for _, ids in pieces)
    assert all(ids == context_ids(TOKENIZER, piece) for piece, ids in pieces)
    kept = "".join(piece for piece, _ in pieces)
    # Of white space a whole piece may go, and with it what stood between two words that are in pieces of their own.
    assert "".join(kept.split()) == "".join(text.split()), "at most white space is dropped"


def test_pieces_end_where_sentences_do_and_are_about_even() -> None:
    pieces = list(cut_text(SENTENCES * 8, TOKENIZER, 96))
    assert len(pieces) > 3
    assert all(piece.endswith(". ") for piece, _ in pieces)
    lengths = [len(piece) for piece, _ in pieces]
    assert max(lengths) <= 1.5 * min(lengths), "half the talk would be about a mere rest"


def test_a_document_is_planned_with_all_that_later_stages_need(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity
) -> None:
    text = SENTENCES * 6
    plan = plan_distill([source(tmp_path / "manual.txt", text)], tiny_model_folder, identity, parameters())
    (document,) = plan.documents
    assert ChatFrame.from_bytes(plan.frame).tokenizer == identity.tokenizer
    assert token_ids(document.text) == context_ids(TOKENIZER, text)
    assert document.token_count == len(token_ids(document.text))
    assert document.terms[0] in ("valve", "open", "bar", "nobody", "trust")
    assert len(document.chunks) == len(list(cut_text(text, TOKENIZER, 96)))


def test_a_text_longer_than_the_model_reads_is_cut_for_its_start_only(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity
) -> None:
    plan = plan_distill([source(tmp_path / "long.txt", SENTENCES * 80)], tiny_model_folder, identity, parameters())
    (document,) = plan.documents
    assert document.token_count > 2048
    assert len(token_ids(document.text)) == 2048
    assert sum(len(token_ids(chunk)) for chunk in document.chunks) > document.token_count


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"chunk_tokens": 2040}, "distill.study.chunk_tokens: expected at most"),
        ({"document_tokens_max": 50}, "expected at most 50 tokens, found"),
    ],
)
def test_what_can_not_be_planned_is_said_in_one_line(
    tmp_path: Path, tiny_model_folder: Path, identity: ModelIdentity, changed: dict[str, int], words: str
) -> None:
    with pytest.raises(InvalidError, match=words) as raised:
        plan_distill(
            [source(tmp_path / "manual.txt", SENTENCES * 6)], tiny_model_folder, identity, parameters(**changed)
        )
    assert "\n" not in str(raised.value)
