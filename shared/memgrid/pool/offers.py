"""What the pool says of a cube before it is pulled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from memgrid.cube.info import CubeInfo
from memgrid.digest import Digest, parse_digest
from memgrid.errors import InternalError, InvalidError


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A cube as a search finds it."""

    repository: str
    tag: str
    digest: Digest
    manifest_digest: Digest
    kind: str
    base: str
    title: str
    tokens: int
    bytes: int
    licence: str
    produced_flops: int
    created_at: str
    gap_closed: float | None = None
    """A trained cube's quality: 0 is the model without the text, 1 the model that read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A cube's label with what pulling it would transfer now."""

    reference: str
    manifest_digest: Digest
    info: CubeInfo
    download_bytes: int
    missing_bytes: int
    """What of it is not in the local cache yet."""

    def to_json(self) -> dict[str, Any]:
        rest = {key: value for key, value in asdict(self).items() if key != "info"}
        return {**rest, **self.info.to_json()}


def listings_from_json(content: bytes) -> list[Listing]:
    """The answer of `GET /v1/cubes`; fields this version does not know are left out."""
    try:
        return [_listing(entry) for entry in json.loads(content)["cubes"]]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, InvalidError) as error:
        raise InternalError(f"search: the grid's answer can't be read: {type(error).__name__}: {error}") from None


def _listing(entry: dict[str, Any]) -> Listing:
    return Listing(
        repository=str(entry["repository"]),
        tag=str(entry["tag"]),
        digest=parse_digest(entry["digest"]),
        manifest_digest=parse_digest(entry["manifest_digest"]),
        kind=str(entry["kind"]),
        base=str(entry["base"]),
        title=str(entry["title"]),
        tokens=int(entry["tokens"]),
        bytes=int(entry["bytes"]),
        licence=str(entry["licence"]),
        produced_flops=int(entry["produced_flops"]),
        created_at=str(entry["created_at"]),
        gap_closed=_maybe_number(entry.get("gap_closed")),
    )


def _maybe_number(value: Any) -> float | None:
    return None if value is None else float(value)
