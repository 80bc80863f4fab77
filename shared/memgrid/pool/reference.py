"""How people name a thing in the pool: `namespace/name[:tag][@sha256:…]`."""

from __future__ import annotations

from dataclasses import dataclass

from memgrid.cube.oci import is_repository, is_tag
from memgrid.digest import Digest, parse_digest
from memgrid.errors import InvalidError

DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A name in the pool. A digest, where given, decides; the tag is then only for people.

    >>> Reference.parse("peps/pep-0008:1.0.0")
    Reference(repository='peps/pep-0008', tag='1.0.0', digest=None)
    >>> str(Reference.parse("peps/pep-0008"))
    'peps/pep-0008:latest'
    """

    repository: str
    tag: str
    digest: Digest | None

    @staticmethod
    def parse(text: str) -> Reference:
        """Raises InvalidError, saying what a reference looks like."""
        name, at, digest = text.partition("@")
        repository, colon, tag = name.partition(":")
        tag = tag if colon else DEFAULT_TAG
        if not (is_repository(repository) and is_tag(tag)):
            raise InvalidError(f"expected namespace/name[:tag][@sha256:…] in lower case, found {text[:120]!r}")
        return Reference(repository=repository, tag=tag, digest=parse_digest(digest) if at else None)

    @property
    def wanted(self) -> str:
        """What to ask the registry for."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}" + (f"@{self.digest}" if self.digest else "")
