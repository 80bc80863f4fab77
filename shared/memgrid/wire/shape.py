"""How many fields a protobuf message has, seen without parsing it: an empty submessage of two bytes takes seventy."""

from __future__ import annotations

from memgrid.errors import InvalidError

_VARINT_BYTES_MAX = 10


def check_field_count(content: bytes, fields_max: int) -> None:
    """Raises InvalidError for a message with more fields than that at its top, or that is none.

    >>> check_field_count(bytes.fromhex("0801") * 3, 3)
    >>> check_field_count(bytes.fromhex("0801") * 4, 3)
    Traceback (most recent call last):
    ...
    memgrid.errors.InvalidError: message: more than 3 fields
    """
    if len(content) <= 2 * fields_max:
        return  # a field takes two bytes at least
    at = 0
    for _ in range(fields_max):
        if at == len(content):
            return
        at = _after_field(content, at)
        if at > len(content):
            raise InvalidError("message: ends inside a field")
    if at < len(content):
        raise InvalidError(f"message: more than {fields_max} fields")


def _after_field(content: bytes, at: int) -> int:
    tag, at = _varint(content, at)
    match tag & 7:
        case 0:
            return _varint(content, at)[1]
        case 1:
            return at + 8
        case 2:
            length, at = _varint(content, at)
            return at + length
        case 5:
            return at + 4
        case kind:
            raise InvalidError(f"message: unknown wire type {kind}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(content[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise InvalidError("message: ends inside a number")
