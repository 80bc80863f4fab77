"""The parts of a cube's manifest, and how each is read from JSON: every field there, of its kind, and no other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from memgrid.digest import Digest, parse_digest
from memgrid.errors import InvalidError
from memgrid.specs import AdapterKind
from memgrid.units import ComputeDtype, StoreDtype, UnitKey

Part = TypeVar("Part")
_UNIT_KEY = re.compile(r"[0-9a-f]{64}")


class CubeKind(StrEnum):
    PLAINTEXT = "plaintext"
    ACTIVATION = "activation"
    PARAMETER = "parameter"


class LayoutKind(StrEnum):
    """`chained`: chunks follow one another exactly. `independent`: each from position 0, behind a shared sink."""

    CHAINED = "chained"
    INDEPENDENT = "independent"


class Wrap(StrEnum):
    """`chat`: the document is the system message of the chat template. `plain`: the document as it is."""

    CHAT = "chat"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How chunk files make one cache. K is rotated for the positions the chunk was computed at."""

    kind: LayoutKind
    wrap: Wrap
    chunk_tokens: int
    sink_tokens: int
    """Independent layout: every chunk file begins with these first tokens of the document. Chained: 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """What the units asked for; `compute_dtype` AUTO left it to each host."""

    compute_dtype: ComputeDtype
    store_dtype: StoreDtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One KV file: the output of one unit. `start` is the position of its first token as computed."""

    path: str
    digest: Digest
    size_bytes: int
    unit: UnitKey
    start: int
    token_count: int
    tokens: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceText:
    """Where the text came from; `digest` is that of the document's bytes."""

    uri: str
    digest: Digest
    licence: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A cube this one was derived from, and how."""

    cube: Digest
    operation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the result takes to compute once; `flops` is also what each consumer saves.

    In JSON `flops` is text: numbers of JSON are exact up to 2**53 only, which large models pass.
    """

    flops: int
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """How results were checked before they were accepted; limits by statistic, relative L2."""

    policy: str
    min_replicas: int
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How a parameter cube did on conversations that it never saw, between the two anchors.

    `none` is the model without the text, `text` the model that read it, `cube` the model with the cube. `nll` is in
    nats a token of the answers, `kl` the divergence from the model that read the text, `correct` the share of answer
    tokens that come first, `exact` the share of answers that come out whole.
    """

    items: int
    tokens: int
    nll_none: float
    nll_cube: float
    nll_text: float
    kl_none: float
    kl_cube: float
    correct_none: float
    correct_cube: float
    exact_none: float
    exact_cube: float

    @property
    def gap_closed(self) -> float:
        """The share of the gap in NLL between no text and text that the cube closes; 0 where there is no gap."""
        gap = self.nll_none - self.nll_text
        return (self.nll_none - self.nll_cube) / gap if gap > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """As reports show it, `gap_closed` beside what it is made of."""
        return {**asdict(self), "gap_closed": round(self.gap_closed, 6)}


def read_part(kind: type[Part], value: Any) -> Part:
    """A part from JSON; raises InvalidError naming the field.

    >>> read_part(Parent, {"cube": "sha256:" + "0" * 64, "operation": 3})
    Traceback (most recent call last):
    ...
    memgrid.errors.InvalidError: parent.operation: expected text, found 3
    """
    name = kind.__name__.lower()
    readers = {each.name: _READERS[str(each.type)] for each in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or set(value) != set(readers):
        raise InvalidError(f"{name}: expected exactly {', '.join(readers)}")
    found = {}
    for field, reader in readers.items():
        try:
            found[field] = reader(value[field])
        except (ValueError, InvalidError) as error:
            raise InvalidError(f"{name}.{field}: {error}"[:300]) from None
    return kind(**found)


def text(value: Any) -> str:
    """Raises InvalidError for anything but text."""
    if not isinstance(value, str):
        raise InvalidError(f"expected text, found {str(value)[:80]}")
    return value


def whole_number(value: Any) -> int:
    """Raises InvalidError for anything but a whole number from 0 on."""
    if type(value) is not int or value < 0:
        raise InvalidError(f"expected a whole number from 0 on, found {str(value)[:80]}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InvalidError(f"expected a number, found {str(value)[:80]}")
    return float(value)


def _maybe_whole_number(value: Any) -> int | None:
    return None if value is None else whole_number(value)


def texts(value: Any) -> tuple[str, ...]:
    """Raises InvalidError for anything but a list of texts."""
    if not isinstance(value, list):
        raise InvalidError(f"expected a list, found {str(value)[:80]}")
    return tuple(text(each) for each in value)


def _unit_key(value: Any) -> UnitKey:
    if not _UNIT_KEY.fullmatch(text(value)):
        raise InvalidError(f"expected 64 hex digits, found {value[:80]!r}")
    return UnitKey(value)


def _numbers(value: Any) -> Mapping[str, float]:
    if not isinstance(value, dict) or not all(type(number) in (int, float) for number in value.values()):
        raise InvalidError("expected numbers by name")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": text,
    "int": whole_number,
    "int | None": _maybe_whole_number,
    "float": _number,
    "tuple[str, ...]": texts,
    "AdapterKind": AdapterKind,
    "Digest": lambda value: parse_digest(text(value)),
    "UnitKey": _unit_key,
    "LayoutKind": LayoutKind,
    "Wrap": Wrap,
    "ComputeDtype": ComputeDtype,
    "StoreDtype": StoreDtype,
    "Mapping[str, float]": _numbers,
}
