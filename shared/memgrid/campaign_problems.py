"""What is wrong with a campaign file, one line a problem: key, what was expected, what was found."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from memgrid.campaign_parts import CONTRADICTION

FOUND_CHARACTERS_MAX = 60
_UNION_WITHOUT_TAG = "union_tag_not_found"
_UNION_WITH_OTHER_TAG = "union_tag_invalid"

Place = tuple[str | int, ...]


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """The problems in the order of the file, each once."""
    details = error.errors(include_url=False)
    return list(dict.fromkeys(_problem(detail, model) for detail in details if not _follows(detail, details)))


def _follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Whether a list is only too short because its items are faulty, which has been said."""
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(
        other["loc"][: len(loc)] == loc and other is not detail for other in details
    )


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        # The key is whatever somebody wrote, be it called like a type.
        around, _, known = _located(detail["loc"][:-1], model)
        return _unknown_key((*around, detail["loc"][-1]), known)
    place, expected, known = _located(detail["loc"], model)
    if kind == CONTRADICTION:
        return f"{_path((*place, detail['ctx']['key']))}: {detail['msg']}"
    return f"{_path(place)}: expected {expected or detail['msg']}, found {_found(detail)}"


def _located(loc: Place, model: type[BaseModel]) -> tuple[Place, str | None, list[str]]:
    """Where in the file an error is, what is expected there, and which keys the innermost mapping knows.

    Pydantic names the branch of a union, by its tag or its type, as if it were a key: those parts are left out.
    """
    place: list[str | int] = []
    expected: str | None = None
    branches: list[type[BaseModel]] = [model]
    for part in loc:
        field = next((branch.model_fields[part] for branch in branches if part in branch.model_fields), None)
        if field is not None:
            place.append(part)
            expected = field.description
            branches = list(models_in(field.annotation)) or branches
        elif tagged := [branch for branch in branches if _tag_of(branch) == part]:
            branches = tagged
        elif isinstance(part, int) or not _is_type_name(part):
            place.append(part)
    return tuple(place), expected, list(branches[0].model_fields)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The mappings a field can hold, itself, in a list or as branches of a union; a plain value holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for inner in get_args(annotation):
        yield from models_in(inner)


def _tag_of(branch: type[BaseModel]) -> str | None:
    """The one `kind` that a branch of a tagged union has; None where any of several kinds fits."""
    field = branch.model_fields.get("kind")
    return next(iter(get_args(field.annotation)), None) if field is not None else None


def _is_type_name(part: str) -> bool:
    return "[" in part or part in ("int", "str", "none", "float")


def _unknown_key(place: Place, known: list[str]) -> str:
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{_path(place)}: unknown key, expected one of {', '.join(known)}{hint}"


def _found(detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return "nothing"
    if detail["type"] == _UNION_WITHOUT_TAG:
        return "no kind"
    if detail["type"] == _UNION_WITH_OTHER_TAG:
        return f"kind {_shown(detail['input']['kind'])}"
    return _shown(detail["input"])


def _path(place: Place) -> str:
    """As people write it: sources[0].path."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "the file"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "an empty list" if not value else f"a list of {len(value)}"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= FOUND_CHARACTERS_MAX else text[: FOUND_CHARACTERS_MAX - 1] + "…"
