"""Which role may what: an owner all that an operator may, an operator all that a reader may."""

from __future__ import annotations

from memgrid.errors import NotAllowedError, TokenRequiredError
from memgrid_coordinator.records import Caller, Role

OWNERS = frozenset({Role.OWNER})
OPERATORS = OWNERS | {Role.OPERATOR}
READERS = OPERATORS | {Role.READER}
GIVEN = READERS
"""Roles that an owner may give a token."""
_WITH_AT_LEAST = {Role.OWNER: OWNERS, Role.OPERATOR: OPERATORS, Role.READER: READERS}


def check(caller: Caller, least: Role, what: str) -> None:
    """Whether the caller has that role or a greater one. `what` is what they want to do.

    Raises TokenRequiredError where a token might help, NotAllowedError where the caller has a lesser one.

    >>> check(Caller(role=Role.OWNER), Role.READER, "seeing campaigns")
    >>> check(Caller(role=Role.READER), Role.OPERATOR, "submitting campaigns")
    Traceback (most recent call last):
    ...
    memgrid.errors.NotAllowedError: submitting campaigns needs an operator token; this one is a reader's
    """
    if caller.role in _WITH_AT_LEAST[least]:
        return
    article = "a" if least is Role.READER else "an"
    if caller.role is Role.ANONYMOUS:
        raise TokenRequiredError(f"{what} needs {article} {least} token: --token, or MEMGRID_TOKEN")
    raise NotAllowedError(f"{what} needs {article} {least} token; this one is a {caller.role}'s")
