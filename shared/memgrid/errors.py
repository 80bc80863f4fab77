"""Every error that crosses a process: a code and one clear line. Knows no transport."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """What went wrong, for machines. `channel.py` and the interceptors map codes to gRPC statuses."""

    INVALID = "invalid"
    BAD_SIGNATURE = "bad_signature"
    BAD_CHALLENGE = "bad_challenge"
    INVITE_REQUIRED = "invite_required"
    TOKEN_REQUIRED = "token_required"
    TOKEN_EXPIRED = "token_expired"
    NOT_ALLOWED = "not_allowed"
    SESSION_REPLACED = "session_replaced"
    STALE_SEQUENCE = "stale_sequence"
    UNKNOWN_HOST = "unknown_host"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_SOURCE = "unknown_source"
    UNKNOWN_CAMPAIGN = "unknown_campaign"
    UNKNOWN_ID = "unknown_id"
    UNKNOWN_CUBE = "unknown_cube"
    AMBIGUOUS_ID = "ambiguous_id"
    TOO_LARGE = "too_large"
    DIGEST_MISMATCH = "digest_mismatch"
    NOT_VERIFIED = "not_verified"
    DOES_NOT_FIT = "does_not_fit"
    UNTRUSTED_GRID = "untrusted_grid"
    UNAVAILABLE = "unavailable"
    BUSY = "busy"
    DRAINING = "draining"
    INTERNAL = "internal"


_MESSAGE_CHARACTERS_MAX = 4000


class MemgridError(Exception):
    """An error a person or another process can act on.

    `str(error)` is the line shown to people: what happened, to which id, what to do. Whatever a stranger's words in
    it were, it can be sent, stored and shown: no half characters, no NUL, nothing that moves a terminal's cursor.

    >>> raise InvalidError("campaign.yaml: activation.layout: expected chained or independent, found 'chain'")
    Traceback (most recent call last):
    ...
    memgrid.errors.InvalidError: campaign.yaml: activation.layout: expected chained or independent, found 'chain'
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    by_code: ClassVar[dict[ErrorCode, type[MemgridError]]] = {}

    def __init__(self, message: str = "") -> None:
        super().__init__(_presentable(message))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # A narrower class of the same code stays on its side of the wire.
        MemgridError.by_code.setdefault(cls.code, cls)

    @staticmethod
    def of(code: str, message: str) -> MemgridError:
        """The error of that code, as it was on the side that raised it; an unknown code is internal."""
        try:
            known = ErrorCode(code)
        except ValueError:
            return InternalError(message)
        return MemgridError.by_code.get(known, InternalError)(message)


def _presentable(message: str) -> str:
    r"""The same message as text that every other part can take.

    >>> _presentable("tensor \ud800\0 is missing")
    'tensor \\ud800\\x00 is missing'
    """
    shown = message[: _MESSAGE_CHARACTERS_MAX + 1]
    if not shown.isprintable():
        shown = "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in shown)
    return shown if len(shown) <= _MESSAGE_CHARACTERS_MAX else shown[: _MESSAGE_CHARACTERS_MAX - 1] + "…"


class InvalidError(MemgridError):
    """Input that can't be meant: says where, which key, and what was expected."""

    code = ErrorCode.INVALID


class BadSignatureError(MemgridError):
    code = ErrorCode.BAD_SIGNATURE


class BadChallengeError(MemgridError):
    code = ErrorCode.BAD_CHALLENGE


class InviteRequiredError(MemgridError):
    code = ErrorCode.INVITE_REQUIRED


class TokenRequiredError(MemgridError):
    code = ErrorCode.TOKEN_REQUIRED


class TokenExpiredError(MemgridError):
    code = ErrorCode.TOKEN_EXPIRED


class NotAllowedError(MemgridError):
    code = ErrorCode.NOT_ALLOWED


class SessionReplacedError(MemgridError):
    code = ErrorCode.SESSION_REPLACED


class StaleSequenceError(MemgridError):
    code = ErrorCode.STALE_SEQUENCE


class UnknownHostError(MemgridError):
    code = ErrorCode.UNKNOWN_HOST


class UnknownModelError(MemgridError):
    code = ErrorCode.UNKNOWN_MODEL


class UnknownSourceError(MemgridError):
    code = ErrorCode.UNKNOWN_SOURCE


class UnknownCampaignError(MemgridError):
    code = ErrorCode.UNKNOWN_CAMPAIGN


class UnknownIdError(MemgridError):
    code = ErrorCode.UNKNOWN_ID


class UnknownCubeError(MemgridError):
    code = ErrorCode.UNKNOWN_CUBE


class AmbiguousIdError(MemgridError):
    code = ErrorCode.AMBIGUOUS_ID


class TooLargeError(MemgridError):
    code = ErrorCode.TOO_LARGE


class DigestMismatchError(MemgridError):
    """Bytes are not what their address says."""

    code = ErrorCode.DIGEST_MISMATCH


class NotVerifiedError(MemgridError):
    """A cube whose signature or content does not hold."""

    code = ErrorCode.NOT_VERIFIED


class DoesNotFitError(MemgridError):
    """A cube made for another model, tokenizer or format; names the field that differs."""

    code = ErrorCode.DOES_NOT_FIT


class UntrustedGridError(MemgridError):
    """The grid's certificate or key is not the one pinned."""

    code = ErrorCode.UNTRUSTED_GRID


class UnavailableError(MemgridError):
    """Nobody answers; trying again later may help."""

    code = ErrorCode.UNAVAILABLE


class BusyError(MemgridError):
    """Too many ask at once: nothing was done. Asking again after `wait_s` seconds is no failure.

    `ticket`, where there is one, is to be brought then: it keeps one's place before those who come first then.
    """

    code = ErrorCode.BUSY

    def __init__(self, message: str, *, wait_s: float = 1.0, ticket: str = "") -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.ticket = ticket


class DrainingError(MemgridError):
    code = ErrorCode.DRAINING


class InternalError(MemgridError):
    """A bug on the other side; its log has the trace."""

    code = ErrorCode.INTERNAL
