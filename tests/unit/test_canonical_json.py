"""Canonical JSON has one form, whichever way it is written."""

from __future__ import annotations

from enum import StrEnum

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import canonical_json

WHOLE = st.integers(min_value=-(2**53 - 1), max_value=2**53 - 1)
LEAVES = st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


class Colour(StrEnum):
    RED = "red"


@given(VALUES)
def test_it_is_what_the_standard_says(value: object) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_every_plain_character_is_written_as_the_standard_says(text: str) -> None:
    assert canonical_json({text: [text]}) == rfc8785.dumps({text: [text]})


def test_words_of_an_enum_are_their_text() -> None:
    assert canonical_json({"colour": Colour.RED, "all": (Colour.RED,)}) == b'{"all":["red"],"colour":"red"}'


@pytest.mark.parametrize("value", [2**53, float("nan"), "\ud800", {"a": [-(2**60)]}, {1: "a"}])
def test_what_no_reader_would_get_back_is_refused(value: object) -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        canonical_json(value)
