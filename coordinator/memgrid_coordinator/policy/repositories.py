"""Names in the pool, and who may read or push under which of them."""

from __future__ import annotations

import re
from enum import StrEnum

from memgrid.errors import InvalidError, NotAllowedError, TokenRequiredError
from memgrid.units import LeaseId
from memgrid_coordinator.policy.roles import OPERATORS
from memgrid_coordinator.records import Caller, Role

INPUTS = "grid/inputs"
"""What units read; no manifests, any digest a volunteer was told of."""
_OUTPUTS = "grid/outputs/"
_CHECKPOINTS = "grid/checkpoints/"
_RESERVED = "grid/"
_SOURCES = "sources/"

_NAME_LENGTH_MAX = 255
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


class RepositoryKind(StrEnum):
    """What a repository is for, from its name alone."""

    CUBES = "cubes"
    MODELS = "models"
    SOURCES = "sources"
    INPUTS = "inputs"
    OUTPUTS = "outputs"
    CHECKPOINTS = "checkpoints"
    RESERVED = "reserved"


def parse_repository(text: str) -> str:
    """A repository name as OCI allows it; raises InvalidError.

    >>> parse_repository("docs/quick-start")
    'docs/quick-start'
    """
    if len(text) > _NAME_LENGTH_MAX or not _NAME.fullmatch(text):
        raise InvalidError(f"expected a repository like namespace/name in lower case, found {text[:80]!r}")
    return text


def parse_tag(text: str) -> str:
    """A tag as OCI allows it; raises InvalidError."""
    if not _TAG.fullmatch(text):
        raise InvalidError(f"expected a tag of letters, digits, '.', '_' and '-', found {text[:80]!r}")
    return text


def kind_of(repository: str) -> RepositoryKind:
    """What a repository is for."""
    if repository == INPUTS:
        return RepositoryKind.INPUTS
    if repository.startswith(_OUTPUTS):
        return RepositoryKind.OUTPUTS
    if repository.startswith(_CHECKPOINTS):
        return RepositoryKind.CHECKPOINTS
    if repository.startswith(_RESERVED) or repository == "grid":
        return RepositoryKind.RESERVED
    if repository.startswith(_SOURCES):
        return RepositoryKind.SOURCES
    if repository.startswith("models/"):
        return RepositoryKind.MODELS
    return RepositoryKind.CUBES


def outputs_of(lease_id: LeaseId) -> str:
    """Where the outputs of a lease are uploaded to."""
    return f"{_OUTPUTS}{lease_id}"


def checkpoints_of(lease_id: LeaseId) -> str:
    """Where what is done of a lease's unit is uploaded to, and read from by other hosts of its account."""
    return f"{_CHECKPOINTS}{lease_id}"


def upload_path(repository: str) -> str:
    """Where the data plane takes what is uploaded to a repository.

    >>> upload_path(outputs_of(LeaseId("lease-1")))
    '/v2/grid/outputs/lease-1/blobs/uploads/'
    """
    return f"/v2/{repository}/blobs/uploads/"


def lease_of(repository: str) -> LeaseId:
    """The lease that a repository of outputs, or of a checkpoint, belongs to."""
    return LeaseId(repository.removeprefix(_OUTPUTS).removeprefix(_CHECKPOINTS))


ORDERED = frozenset({RepositoryKind.OUTPUTS, RepositoryKind.CHECKPOINTS})
"""What hosts send, and only when it was ordered of them."""
_READERS: dict[RepositoryKind, frozenset[Role]] = {
    RepositoryKind.CUBES: frozenset(Role),
    RepositoryKind.MODELS: frozenset(Role),
    RepositoryKind.SOURCES: OPERATORS,
    RepositoryKind.INPUTS: OPERATORS | {Role.VOLUNTEER},
    RepositoryKind.OUTPUTS: OPERATORS,
    RepositoryKind.CHECKPOINTS: frozenset({Role.VOLUNTEER}),  # and only of their account: travelling knows
    RepositoryKind.RESERVED: frozenset(),
}
_WRITERS: dict[RepositoryKind, frozenset[Role]] = {
    RepositoryKind.CUBES: OPERATORS,
    RepositoryKind.MODELS: OPERATORS,
    RepositoryKind.SOURCES: OPERATORS,
    RepositoryKind.INPUTS: frozenset(),
    RepositoryKind.OUTPUTS: frozenset({Role.VOLUNTEER}),  # and only what was ordered: judging knows
    RepositoryKind.CHECKPOINTS: frozenset({Role.VOLUNTEER}),  # likewise: travelling knows
    RepositoryKind.RESERVED: frozenset(),
}


def may_read(caller: Caller, repository: str) -> bool:
    return caller.role in _READERS[kind_of(repository)]


def check_read(caller: Caller, repository: str) -> None:
    """Raises TokenRequiredError where a token might help, NotAllowedError where the caller has the wrong one."""
    _check(caller, repository, _READERS, "read")


def check_push(caller: Caller, repository: str) -> None:
    """Raises like `check_read`."""
    _check(caller, repository, _WRITERS, "push to")


def _check(caller: Caller, repository: str, allowed: dict[RepositoryKind, frozenset[Role]], verb: str) -> None:
    kind = kind_of(repository)
    if caller.role in allowed[kind]:
        return
    if caller.role is Role.ANONYMOUS:
        raise TokenRequiredError(f"a token is needed to {verb} {repository}")
    raise NotAllowedError(f"{caller.role} may not {verb} {repository}")
