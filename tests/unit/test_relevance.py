"""What a question is about: rare words count more than common ones, length wins nothing, strangers match nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memgrid.cube.terms import subject_terms, words_of
from memgrid.serving.relevance import Index
from memgrid.serving.writing import StopWords

PUMP = "The pump lifts water. Its valve opens at three bar, and the pump stops at nine bar."
MILL = "The mill grinds grain. The wheel stands in the water of the river, and the water turns it."
LONG = "Water, water and more water. " * 30 + "A pump is mentioned once among many other things, such as a valve."


def index_of(**texts: str) -> Index[str]:
    return Index([(name, words_of(text)) for name, text in texts.items()])


def test_the_text_with_the_rarer_words_is_chosen() -> None:
    index = index_of(pump=PUMP, mill=MILL)
    match = index.best("Does water turn the wheel?")
    assert match is not None and match.thing == "mill" and match.matched == ("water", "turn", "wheel")
    match = index.best("What lifts the water at the valve?")
    assert match is not None and match.thing == "pump"


def test_a_long_text_does_not_win_by_its_length() -> None:
    match = index_of(long=LONG, pump=PUMP).best("When does the valve of the pump open?")
    assert match is not None and match.thing == "pump"


def test_one_word_of_many_is_not_enough() -> None:
    index = index_of(pump=PUMP, mill=MILL)
    assert index.best("Which president opened parliament during the water shortage of Rome?") is None
    assert index.best("What is the capital of France?") is None
    assert index.best("And why is that so?") is None
    assert Index([]).best("pump") is None


def test_words_are_told_apart_from_their_plurals_and_owners_only_in_writing() -> None:
    assert words_of("Pumps, pump's, PUMP and pump’s") == ["pump"] * 4
    assert words_of("Bus, glass, basis, cities, 1987, 42") == ["bus", "glass", "basis", "city", "1987"]
    assert subject_terms(PUMP, 2) == ("pump", "bar")


@given(
    st.lists(st.text("abc\n", max_size=5), max_size=12),
    st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=3),
)
def test_what_is_shown_is_the_text_before_the_first_stop_string(pieces: list[str], words: list[str]) -> None:
    stop, text = StopWords(words), "".join(pieces)
    shown = "".join(stop.add(piece) for piece in pieces)
    # Which of two stop strings is seen first depends on which is complete first.
    ends = [text.index(word) + len(word) for word in words if word in text]
    if ends:
        whole = text[: min(ends)]
        cut = min(whole.index(word) for word in words if word in whole)
        assert stop.is_stopped and stop.rest() == "" and text.startswith(shown) and len(shown) <= cut
        assert not any(word in shown for word in words)
    else:
        assert not stop.is_stopped and shown + stop.rest() == text
