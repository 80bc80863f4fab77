"""The page of the cube's manifest, memcube.json, from the values that it is written from."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from manual.markdown import attribute_docs, code, first_paragraph, table
from memgrid.cube.manifest import ActivationManifest, CubeManifest, ParameterManifest

_HEAD = """\
# memcube.json

A cube's manifest: canonical JSON (RFC 8785) whose sha256 is the cube's name. It says what the cube is and what it
is made of, and nothing of who computed it, where or when; that stands in the signed provenance,
`memcube.intoto.jsonl`. A reader refuses fields that it does not know. Beside the fields below each manifest has
`format`, `memgrid.cube.v1`, and `kind`. FLOPs are written as a string of digits: they outgrow what JSON numbers
hold exactly.

"""


def page() -> str:
    """Markdown."""
    kinds = [(f"kind {each.kind.value}", each) for each in (ActivationManifest, ParameterManifest)]
    parts = sorted({part for _, kind in kinds for part in parts_of(kind)}, key=lambda part: part.__name__)
    sections = [_section(title, kind) for title, kind in [*kinds, *((part.__name__, part) for part in parts)]]
    return _HEAD + "\n".join(sections)


def parts_of(value: type[Any]) -> Iterator[type[Any]]:
    """The dataclasses that a dataclass's fields hold, and theirs."""
    for kind in typing.get_type_hints(value).values():
        for inner in _classes_in(kind):
            if is_dataclass(inner):
                yield inner
                yield from parts_of(inner)


def _section(title: str, value: type[Any]) -> str:
    bases = [each for each in (CubeManifest,) if issubclass(value, each)]
    docs = attribute_docs(*dict.fromkeys([*bases, value]))
    hints = typing.get_type_hints(value)
    rows = [(code(each.name), _type(hints[each.name]), docs.get(each.name, "")) for each in fields(value)]
    return f"## {title}\n\n{first_paragraph(value.__doc__)}\n\n" + table(("field", "holds", "means"), rows)


def _classes_in(kind: Any) -> Iterator[type[Any]]:
    if isinstance(kind, type) and not typing.get_args(kind):
        yield kind
    for inner in typing.get_args(kind):
        yield from _classes_in(inner)


def _type(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if inner and type(None) in inner:
        return f"{_type(next(each for each in inner if each is not type(None)))} or null"
    if inner:
        return f"mapping of {' to '.join(map(_type, inner))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(code(each.value) for each in kind)
    if is_dataclass(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return {"str": "text", "int": "number", "float": "number"}.get(kind.__name__, kind.__name__)
