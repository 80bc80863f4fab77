"""Names of teams: what can be one, and which names are too like another."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.errors import InvalidError
from memgrid.teams import NAME_LENGTH_MAX, likeness, team_name


@pytest.mark.parametrize(
    "name",
    [
        "Early Birds",
        "R&D",
        "Zürich",
        "Ελλάδα",
        "Команда 7",
        "東京GPUクラブ",
        "서울 팀",
        "भारत टीम",
        "O'Brien's",
        "C++ club",
    ],
)
def test_a_name_is_kept_as_people_write_it(name: str) -> None:
    assert team_name(name) == unicodedata.normalize("NFKC", name)
    assert team_name(f"  {name} ") == team_name(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "2 to 32 characters"),
        ("x", "2 to 32 characters"),
        ("x" * 33, "2 to 32 characters"),
        ("--", "begins with a letter"),
        ("a----b", "heaps of signs"),
        ("<b>bold</b>", "expected letters"),
        ("tab\x00name", "expected letters"),
        ("left\u202eright", "expected letters"),
        ("zero\u200bwidth", "expected letters"),
        ("p\u0430ypal", "letters of one script, found cyrillic and latin"),
        ("Z\u0335\u0336\u0337\u0338algo", "heaps of signs"),
        ("a!", "at least 2 letters"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(name: str, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        team_name(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Early Birds", "EARLY  BIRDS"),
        ("Early Birds", "early-birds"),
        ("Zürich", "Zurich"),
        ("соса", "coca"),
        ("Straße", "STRASSE"),
        ("Ｆｕｌｌ", "full"),
        ("B0B", "BOB"),
        ("ﬁne", "fine"),
    ],
)
def test_names_that_look_alike_are_one(one: str, other: str) -> None:
    assert likeness(one) == likeness(other)
    assert likeness(one) != likeness(one + "s")


@given(st.text(max_size=60))
def test_whatever_passes_is_short_printable_and_settled(text: str) -> None:
    try:
        name = team_name(text)
    except InvalidError as error:
        assert str(error).startswith("team: ")
        return
    assert len(name) <= NAME_LENGTH_MAX and name.isprintable() and name == name.strip()
    assert team_name(name) == name
    assert likeness(name) == likeness(name.swapcase()) or name.swapcase().casefold() != name.casefold()
