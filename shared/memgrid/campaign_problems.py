"""What is wrong with a campaign file, one line a problem: key, what was expected, what was found."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

FOUND_CHARACTERS_MAX = 60


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """The problems in the order of the file, each once."""
    return list(dict.fromkeys(_problem(detail, model) for detail in error.errors(include_url=False)))


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    place = tuple(part for part in detail["loc"] if not _is_type_name(part))
    kind = detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(place, model)
    if kind == "order":
        return f"{_path(place)}: {detail['msg']}"
    found = "nothing" if kind == "missing" else _shown(detail["input"])
    return f"{_path(place)}: expected {_expected(place, model) or detail['msg']}, found {found}"


def _unknown_key(place: tuple[str | int, ...], model: type[BaseModel]) -> str:
    known = list(_fields_at(place[:-1], model))
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{_path(place)}: unknown key, expected one of {', '.join(known)}{hint}"


def _expected(place: tuple[str | int, ...], model: type[BaseModel]) -> str | None:
    """The description of the field at `place`."""
    described: str | None = None
    for field in _walk(place, model):
        described = field.description
    return described


def _fields_at(place: tuple[str | int, ...], model: type[BaseModel]) -> dict[str, FieldInfo]:
    fields = model.model_fields
    for field in _walk(place, model):
        fields = _model_in(field.annotation).model_fields
    return fields


def _walk(place: tuple[str | int, ...], model: type[BaseModel]) -> Iterator[FieldInfo]:
    """The fields on the way to `place`; positions in lists are passed over."""
    for part in place:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        field = model.model_fields[part]
        yield field
        model = _model_in(field.annotation)


def _model_in(annotation: Any) -> type[BaseModel]:
    """The mapping a field holds, itself or in a list; a plain value holds none."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return BaseModel


def _is_type_name(part: str | int) -> bool:
    # pydantic names the branch of a union as if it were a key.
    return isinstance(part, str) and ("[" in part or part in ("int", "str", "none"))


def _path(place: tuple[str | int, ...]) -> str:
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
