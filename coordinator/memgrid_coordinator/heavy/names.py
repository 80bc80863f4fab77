"""Names of documents: readable, unique, and legal as part of an OCI repository."""

from __future__ import annotations

import hashlib
import re
import unicodedata

NAME_CHARACTERS_MAX = 96
"""Long enough to tell documents apart; an OCI repository may have 255 in all."""

_OUTSIDE = re.compile(r"[^a-z0-9._-]+")
_SEPARATORS = re.compile(r"[._-]+")
_LEGAL_SEPARATOR = re.compile(r"\.|__?|-+")


def slug_of(name: str) -> str:
    """The nearest legal component of an OCI repository name.

    Source: OCI distribution spec v1.1, "Pulling manifests": `[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*`.

    >>> slug_of("PEP 8 — Style Guide"), slug_of("Élan_vital.v2"), slug_of("../etc/passwd")
    ('pep-8-style-guide', 'elan_vital.v2', 'etc-passwd')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    joined = _SEPARATORS.sub(_legal, _OUTSIDE.sub("-", plain)).strip("._-")
    # A name of another script leaves nothing readable, but two of them must stay two.
    return (
        joined[:NAME_CHARACTERS_MAX].rstrip("._-")
        or "document-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    )


def stem_of(uri: str) -> str:
    """The last part of a path or URL, without its extension.

    >>> stem_of("docs/why.md"), stem_of("https://example.org/corpus.jsonl?raw=1"), stem_of(".profile")
    ('why', 'corpus', '.profile')
    """
    last = re.split(r"[/\\]", re.split(r"[?#]", uri)[0].rstrip("/\\"))[-1]
    return last.rpartition(".")[0] or last


class Names:
    """The names given so far in one campaign.

    >>> names = Names()
    >>> names.take("Read me"), names.take("read-me")
    ('read-me', 'read-me-2')
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        self._ids: set[tuple[str, str]] = set()

    def take(self, wish: str) -> str:
        """The slug of a wish, numbered where it is taken; the same wishes in the same order get the same names."""
        slug = slug_of(wish)
        name, number = slug, self._next.get(slug, 2)
        while name in self._taken:
            name, number = f"{slug}-{number}", number + 1
        self._next[slug] = number
        self._taken.add(name)
        return name

    def is_first(self, space: str, given_id: str) -> bool:
        """Whether an id is new in its space; remembers it."""
        before = len(self._ids)
        self._ids.add((space, given_id))
        return len(self._ids) > before


def _legal(match: re.Match[str]) -> str:
    found = match.group()
    return found if _LEGAL_SEPARATOR.fullmatch(found) else "-"
